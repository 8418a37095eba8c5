"""An output head as cross-entropy reads it."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LinearHead:
  """logits = cap(scale * x W + bias).

  Attributes:
    weight: W, or its transpose where the vocabulary comes first: a tied table is read as it lies. Products are in the
      dtype of x.
    vocabulary_first, scale, soft_cap: static. cap(s) = c tanh(s / c) (Gemma 2, arXiv 2408.00118); 0: no cap. T5's tied
      head has the scale d_model ** -0.5 (Raffel et al. 2020, arXiv 1910.10683).
  """

  weight: Float[Array, "d_model vocab"] | Float[Array, "vocab d_model"]
  bias: Float[Array, " vocab"] | None = None
  vocabulary_first: bool = field(default=False, metadata={"static": True})
  scale: float = field(default=1.0, metadata={"static": True})
  soft_cap: float = field(default=0.0, metadata={"static": True})

  @property
  def vocabulary(self) -> int:
    return self.weight.shape[0 if self.vocabulary_first else 1]

  def product(self, x: Float[Array, "*shape d_model"]) -> Float[Array, "*shape vocab"]:
    """x W, summed and given in float32 or wider."""
    contracted = ((x.ndim - 1,), (1 if self.vocabulary_first else 0,))
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jax.lax.dot_general(x, self.weight.astype(x.dtype), (contracted, ((), ())), preferred_element_type=wide)

  def logits(self, x: Float[Array, "*shape d_model"]) -> Float[Array, "*shape vocab"]:
    """In float32 or wider."""
    scores = self.product(x) * self.scale
    if self.bias is not None:
      scores = scores + self.bias
    return jnp.tanh(scores / self.soft_cap) * self.soft_cap if self.soft_cap else scores
