"""The one attention call of all models, and the choice of a backend.

A backend is a module with

  attention(q, k, v, spec) -> y
  HONOURED, the names out of `spec.FEATURES` that it honours, and
  refusal(q, k, v, spec) -> str | None, why it can not do these sizes and dtypes, if so.

It is never called with what it does not honour or refuses: `attention` raises `Unsupported` first.
"""

import functools
import importlib
import logging
from dataclasses import replace
from types import ModuleType

import jax
from jaxtyping import Array, Float

from pallas_kernels.attention.bias import DenseBias
from pallas_kernels.attention.spec import AttentionSpec
from pallas_kernels.unsupported import Unsupported

Shaped = Array | jax.ShapeDtypeStruct
logger = logging.getLogger(__name__)
# Name -> module.
BACKENDS = {
  "reference": "pallas_kernels.attention.reference",
  "xla": "pallas_kernels.attention.xla",
  "xla_chunked": "pallas_kernels.attention.chunked",
  "mosaic_tpu": "pallas_kernels.attention.mosaic_tpu",
  "splash": "pallas_kernels.attention.splash",
  "triton": "pallas_kernels.attention.triton",
  "cudnn": "pallas_kernels.attention.cudnn",
  "decode_tpu": "pallas_kernels.attention.decode_tpu",
  "decode_triton": "pallas_kernels.attention.decode_triton",
}
DENSE = ("reference", "xla")  # these hold all scores in memory
PARTITIONED = ("reference", "xla", "xla_chunked")  # the compiler splits these over a mesh; the others: sharded.py
# Scores of a row and head, from which on they are not held in memory at once: 16 MB in float32.
DENSE_SCORES = 2048 * 2048
# Kernels by platform, the first that can do it: others' where they do all that is asked for. They are taken from these
# many scores on, where the dense form waits for memory and not for products: by count, since none was timed on a chip.
KERNELS = {"tpu": ("splash", "mosaic_tpu"), "gpu": ("cudnn", "triton")}
KERNEL_SCORES = 512 * 512


def backend(impl: str) -> ModuleType:
  """The module of that name.

  Raises:
    ValueError: no such backend.
  """
  if impl not in BACKENDS:
    raise ValueError(f"no attention backend {impl!r}; there are: {', '.join(BACKENDS)}.")
  return importlib.import_module(BACKENDS[impl])


def refusal(impl: str, q: Shaped, k: Shaped, v: Shaped, spec: AttentionSpec) -> str | None:
  """What a backend can not do of what is asked for; None: it can do it all. Only shapes and dtypes are read."""
  module = backend(impl)
  missing = [name for name in spec.features if name not in module.HONOURED]
  return f"it does not honour {', '.join(missing)}" if missing else module.refusal(q, k, v, spec)


def chosen(q: Shaped, k: Shaped, v: Shaped, spec: AttentionSpec) -> str:
  """The backend that is fastest of those that can do it, on the default device."""
  scores = q.shape[1] * k.shape[1]
  for name in KERNELS.get(jax.default_backend(), ()) if scores >= KERNEL_SCORES else ():
    if refusal(name, q, k, v, spec) is None:
      return name
  return "xla" if scores <= DENSE_SCORES else "xla_chunked"


def prepared(spec: AttentionSpec, q: Shaped, k: Shaped, impl: str | None = None) -> AttentionSpec:
  """The spec with what a stack's layers share computed once: a bias that the backend reads written out is so here.

  Args:
    q, k: as of `attention`; only shapes and dtypes are read.
  """
  reads_dense = (chosen(q, k, k, spec) if impl is None else impl) in DENSE
  bias = spec.dense_bias(q.shape[1], k.shape[1]) if reads_dense else None
  return spec if bias is None else replace(spec, bias=DenseBias(bias))


def attention(
  q: Float[Array, "batch query heads d_kv"],
  k: Float[Array, "batch key kv_heads d_kv"],
  v: Float[Array, "batch key kv_heads d_kv"],
  spec: AttentionSpec,
  *,
  impl: str | None = None,
) -> Float[Array, "batch query heads d_kv"]:
  """Attention as `spec` says.

  Args:
    k, v: fewer heads than q serve groups of its heads: head h of q uses head h // (heads / kv_heads).
    impl: name of a backend; None: the best that honours the spec.

  Raises:
    ValueError: no such backend, or heads that are no multiple of key heads.
    Unsupported: the named backend can not do it.
  """
  if q.shape[2] % k.shape[2]:
    raise ValueError(f"attention: {q.shape[2]} heads of queries are no multiple of {k.shape[2]} heads of keys.")
  name = chosen(q, k, v, spec) if impl is None else impl
  why = refusal(name, q, k, v, spec)
  if why is not None:
    able = [other for other in BACKENDS if refusal(other, q, k, v, spec) is None]
    raise Unsupported(f"attention backend {name!r} can not do this: {why}. These can: {', '.join(able)}.")
  _tell(name, spec.features)
  return backend(name).attention(q, k, v, spec)


@functools.cache
def _tell(name: str, features: tuple[str, ...]) -> None:
  """Says once which backend was taken for what."""
  logger.info("attention: %s for %s", name, ", ".join(features) or "full attention")
