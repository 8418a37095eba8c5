"""Poly and multi-head routing (MHR): each task mixes an inventory of LoRA skills, block by block.

Caccia et al. 2023, arXiv 2211.03831; Poly (Ponti et al. 2023, arXiv 2202.13914) is MHR with one split.
"""

from dataclasses import dataclass
from functools import partial

import gin
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mtx.errors import UserError, did_you_mean
from mtx.models.backends import bound
from mtx.models.context import Context
from mtx.models.layers import Axes, param
from mtx.parallel.kernels import is_tensor_parallel, over_rows
from pallas_kernels.lowrank import xla
from pallas_kernels.lowrank.api import BACKENDS, KERNELS, chosen, routed_projection


@gin.configurable("routed_projection", allowlist=["impl"])
def routed_projection_impl(impl: str | None = None) -> str | None:
  """What computes a projection together with its routed adapter, `routed_projection.impl = 'mosaic_tpu'`.

  Args:
    impl: a name in `pallas_kernels.lowrank.api.BACKENDS`; None: the fastest that can do it. Backends that are kernels
      ("mosaic_tpu", "triton") compute whole projections: they need `mesh.tensor = 1`.

  Raises:
    UserError: no such backend.
  """
  if impl is not None and impl not in BACKENDS:
    raise UserError(f"binding `routed_projection.impl`: no backend {impl!r}.", hint=did_you_mean(impl, BACKENDS))
  return impl


@gin.configurable(denylist=["din", "dout", "axes", "tasks", "rngs"])
class MHR(nnx.Module):
  """delta = x A_t B_t / rank; A_t = concat_q sum_s w[t,q,s] A[q,s], B_t likewise: factors are mixed, then multiplied.

  Args:
    skills: S, size of the inventory.
    splits: Q, blocks that are routed independently; must divide both sides of the projection. 1 is Poly.
    rank: r of each skill. The scale is 1/r; there is no alpha.

  Raises:
    UserError: a projection is not divisible by `splits`.
  """

  def __init__(
    self,
    din: int,
    dout: int,
    axes: Axes,
    *,
    tasks: int,
    rngs: nnx.Rngs,
    skills: int = 8,
    splits: int = 4,
    rank: int = 4,
  ):
    if din % splits or dout % splits:
      raise UserError(
        f"binding `MHR.splits`: {splits} does not divide a projection of {din} x {dout}.",
        hint=f"valid choices: {', '.join(str(q) for q in range(1, min(din, dout) + 1) if din % q == dout % q == 0)}",
      )
    # The released code draws A from U(+-1/sqrt(din/Q)) per split and starts B at zero.
    init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=2, out_axis=3, batch_axis=(0, 1))
    self.a = param(init, (splits, skills, din // splits, rank), ("split", "skill", "adapter_in", "rank"), rngs)
    shape = (splits, skills, rank, dout // splits)
    self.b = param(nnx.initializers.zeros, shape, ("split", "skill", "rank", "adapter_out"), rngs)
    self.router = param(router_init, (tasks, splits, skills), ("task", "split", "skill"), rngs)
    self.splits, self.rank, self.impl = splits, rank, routed_projection_impl()

  def __call__(self, x: Float[Array, "batch length din"], ctx: Context) -> Float[Array, "batch length dout"]:
    """The update alone."""
    w = mixture(self.router[...])[ctx.task_ids]
    # The scale goes on the small factor, not on the output.
    return xla.delta(x, self.a[...].astype(x.dtype), (self.b[...] / self.rank).astype(x.dtype), w)

  def project(
    self, x: Float[Array, "batch length din"], kernel: Float[Array, "din dout"], ctx: Context
  ) -> Float[Array, "batch length dout"]:
    """x W and the update, by the backend that the gin line says.

    Raises:
      UserError: a backend that can not do it; or one that is a kernel, where projections are split over devices.
    """
    w, ids = mixture(self.router[...]), None
    if ctx.task_ids.ndim == 1:
      w = w[ctx.task_ids]
    else:
      ids = ctx.task_ids
    a, b = self.a[...], self.b[...]
    impl = self.impl
    if impl is None:
      impl = "xla" if is_tensor_parallel() else chosen(x, kernel, a, b, w, ids)
    with bound("routed_projection.impl"):
      return self._by(impl, x, kernel, a, b, w, ids)

  def _by(self, impl: str, x, kernel, a, b, w, ids) -> Float[Array, "batch length dout"]:
    if impl not in KERNELS:
      return routed_projection(x, kernel, a, b, w, ids, impl=impl)
    if is_tensor_parallel():
      raise UserError(
        f"binding `routed_projection.impl` = {impl!r}: this kernel computes whole projections, and the mesh splits "
        "them over `tensor`.",
        hint="bind mesh.tensor = 1, or leave routed_projection.impl out.",
      )
    call = partial(routed_projection, impl=impl)
    if ids is None:
      return over_rows(lambda x, w, kernel, a, b: call(x, kernel, a, b, w), (x, w), (kernel, a, b))
    return over_rows(lambda x, ids, kernel, a, b, w: call(x, kernel, a, b, w, ids), (x, ids), (kernel, a, b, w))


def router_init(key, shape, dtype=jnp.float32) -> Float[Array, "task split skill"]:
  """U(-1e-3, 1e-3): nearly uniform mixing, with just enough asymmetry for skills to part."""
  return jax.random.uniform(key, shape, dtype, -1e-3, 1e-3)


def mixture(router: Float[Array, "*task split skill"]) -> Float[Array, "*task split skill"]:
  """Mixing weights: sigmoid, normalised over skills. Zeros give exactly 1/S."""
  w = jax.nn.sigmoid(router)
  return w / (w.sum(-1, keepdims=True) + 1e-12)


@dataclass(frozen=True)
class Adaptation:
  """How a trained inventory adapts to a new task (arXiv 2211.03831, section 3).

  Attributes:
    trainable: regex over parameter paths.
    router: "random", a new row for the new task (never a copy of an old one), or "uniform", fixed 1/S mixing.
  """

  trainable: str
  router: str


ADAPTATIONS = {
  "MHR-z": Adaptation(r".*/adapter/router", "random"),
  "MHR": Adaptation(r".*/adapter/(a|b|router)", "random"),
  "MHR-mu": Adaptation(r".*/adapter/(a|b)", "uniform"),
}


def new_router(router: Float[Array, "*layer task split skill"], tasks: int, kind: str, key):
  """Router rows for `tasks` new tasks in place of the trained ones; `kind` as in `Adaptation`."""
  shape = (*router.shape[:-3], tasks, *router.shape[-2:])
  return jnp.zeros(shape, router.dtype) if kind == "uniform" else router_init(key, shape, router.dtype)
