"""What a model returns."""

from dataclasses import dataclass

import jax
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outputs:
  """Attributes:
  logits: float32 next-token scores on the decoder side.
  """

  logits: Float[Array, "batch length vocab"]
