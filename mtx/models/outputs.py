"""What a model returns."""

from dataclasses import dataclass

import jax
from jaxtyping import Array, Float

from pallas_kernels.cross_entropy.head import LinearHead


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outputs:
  """Attributes:
  logits: float32 next-token scores on the decoder side. Nothing computes them in a program that does not read them.
  hidden, head: what logits are computed from; None where they are not all that logits depend on.
  """

  logits: Float[Array, "batch length vocab"]
  hidden: Float[Array, "batch length d_model"] | None = None
  head: LinearHead | None = None
