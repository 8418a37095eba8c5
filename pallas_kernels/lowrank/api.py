"""The one call for a projection with a routed low-rank update, and the choice of a backend.

A backend is a module with

  projection(x, kernel, a, b, w, ids) -> x W + x A_t B_t, x, W, A and B in one dtype, to which it rounds w, and
  refusal(x, kernel, a, b, w, ids) -> str | None, why it can not do this, if so; only shapes and dtypes are read.

It is never called with what it refuses: `routed_projection` raises `Unsupported` first.
"""

import functools
import importlib
import logging
from types import ModuleType

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels.unsupported import Unsupported

Shaped = Array | jax.ShapeDtypeStruct
logger = logging.getLogger(__name__)
# Name -> module.
BACKENDS = {
  "reference": "pallas_kernels.lowrank.reference",
  "xla": "pallas_kernels.lowrank.xla",
  "mosaic_tpu": "pallas_kernels.lowrank.mosaic_tpu",
  "triton": "pallas_kernels.lowrank.triton",
}
LEAST_TOKENS = 512  # a block of them; below, as when decoding, a kernel would mostly read W
KERNELS = ("mosaic_tpu", "triton")  # one call, that the compiler can not split over devices


def backend(impl: str) -> ModuleType:
  """The module of that name.

  Raises:
    ValueError: no such backend.
  """
  if impl not in BACKENDS:
    raise ValueError(f"no backend {impl!r} of the routed projection; there are: {', '.join(BACKENDS)}.")
  return importlib.import_module(BACKENDS[impl])


def refusal(
  impl: str, x: Shaped, kernel: Shaped, a: Shaped, b: Shaped, w: Shaped, ids: Shaped | None = None
) -> str | None:
  """What a backend can not do of what is asked for; None: it can do it all."""
  return backend(impl).refusal(x, kernel, a, b, w, ids)


def routed_projection(
  x: Float[Array, "batch length din"],
  kernel: Float[Array, "din dout"],
  a: Float[Array, "split skill block_in rank"],
  b: Float[Array, "split skill rank block_out"],
  w: Float[Array, "batch split skill"] | Float[Array, "batch length split skill"] | Float[Array, "route split skill"],
  ids: Int[Array, "batch length"] | None = None,
  *,
  impl: str | None = None,
) -> Float[Array, "batch length dout"]:
  """x W + x A_t B_t / rank, with A_t = concat_q sum_s w[t,q,s] A[q,s] and B_t likewise, in x's dtype.

  Sums are in float32. Factors and weights are rounded to x's dtype, b after the division by rank.
  Caccia et al. 2023, arXiv 2211.03831.

  Args:
    w: mixing weights of every row, or of every token; with `ids`, a table of them.
    ids: the table's line for each token, as of the tasks of a packed row's segments.
    impl: name of a backend; None: the fastest that can do it.

  Raises:
    ValueError: no such backend, or shapes that do not fit each other.
    Unsupported: the named backend can not do it.
  """
  _check(x, kernel, a, b, w, ids)
  # The scale goes on the small factor, not on the output.
  kernel, a, b = (each.astype(x.dtype) for each in (kernel, a, b / a.shape[3]))
  name = chosen(x, kernel, a, b, w, ids) if impl is None else impl
  why = refusal(name, x, kernel, a, b, w, ids)
  if why is not None:
    able = [other for other in BACKENDS if refusal(other, x, kernel, a, b, w, ids) is None]
    raise Unsupported(f"routed projection: backend {name!r} can not do this: {why}. These can: {', '.join(able)}.")
  _tell(name, kernel.shape, a.shape)
  return backend(name).projection(x, kernel, a, b, w, ids)


def chosen(x: Shaped, kernel: Shaped, a: Shaped, b: Shaped, w: Shaped, ids: Shaped | None = None) -> str:
  """The backend of `impl=None` on the default device: on TPUs the kernel, where it can do it and tokens are many, and
  XLA's elsewhere.

  By the compiler's count the TPU kernel moves three fifths of XLA's bytes at width 2048. Nothing has been timed, and of
  the GPU kernel there is no count.
  """
  many = x.shape[0] * x.shape[1] >= LEAST_TOKENS
  if jax.default_backend() == "tpu" and many and refusal("mosaic_tpu", x, kernel, a, b, w, ids) is None:
    return "mosaic_tpu"
  return "xla"


def _check(x: Shaped, kernel: Shaped, a: Shaped, b: Shaped, w: Shaped, ids: Shaped | None) -> None:
  (batch, length, din), (splits, skills, _, rank), dout = x.shape, a.shape, kernel.shape[1]
  wanted = [
    ("kernel", kernel.shape, (din, dout)),
    ("a", a.shape, (splits, skills, din // splits, rank)),
    ("b", b.shape, (splits, skills, rank, dout // splits)),
    ("w", w.shape[-2:], (splits, skills)),
  ]
  if ids is None:
    wanted.append(("w", w.shape[:-2], (batch, length)[: w.ndim - 2]))
  else:
    wanted += [("ids", ids.shape, (batch, length)), ("w", (w.ndim,), (3,))]
  for name, found, needed in wanted:
    if tuple(found) != needed:
      raise ValueError(f"routed projection of x {tuple(x.shape)}: {name} has {tuple(found)} where {needed} would fit.")


@functools.cache
def _tell(name: str, kernel: tuple[int, ...], a: tuple[int, ...]) -> None:
  """Says once which backend was taken for what."""
  logger.info("routed projection: %s for %s x %s with %s splits x %s skills of rank %s", name, *kernel, *a[:2], a[3])
