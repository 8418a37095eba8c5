"""LoRA: a low-rank update x A B * alpha / r, the same for every task. Hu et al. 2021, arXiv 2106.09685."""

import gin
from flax import nnx
from jaxtyping import Array, Float

from mtx.models.context import Context
from mtx.models.layers import Axes, param


@gin.configurable(denylist=["din", "dout", "axes", "tasks", "rngs"])
class LoRA(nnx.Module):
  """delta = (x A) B * alpha / rank; B starts at zero, so the model starts unchanged.

  Args:
    rank: r. alpha: scale numerator; None = rank, a scale of 1.
  """

  def __init__(
    self, din: int, dout: int, axes: Axes, *, tasks: int, rngs: nnx.Rngs, rank: int = 8, alpha: float | None = None
  ):
    # kaiming_uniform(a=sqrt(5)) of the reference implementation is U(+-1/sqrt(din)): variance 1/(3 din).
    init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    self.a = param(init, (din, rank), ("adapter_in", "rank"), rngs)
    self.b = param(nnx.initializers.zeros, (rank, dout), ("rank", "adapter_out"), rngs)
    self.scale = 1.0 if alpha is None else alpha / rank

  def __call__(self, x: Float[Array, "batch length din"], ctx: Context) -> Float[Array, "batch length dout"]:
    return (x @ self.a[...].astype(x.dtype)) @ self.b[...].astype(x.dtype) * self.scale
