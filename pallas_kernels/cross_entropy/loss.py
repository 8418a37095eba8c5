"""What a token's loss is made of, and what each backend is asked for."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclass(frozen=True)
class TokenLoss:
  """-sum_v q(v) log p(v) + z_loss * log(Z)^2, where q is 1 - label_smoothing at the target, and label_smoothing spread
  evenly over all of the vocabulary (Szegedy et al. 2016, arXiv 1512.00567, section 7).

  Attributes:
    z_loss: keeps log Z near zero (Chowdhery et al. 2022, arXiv 2204.02311, section 5).
    label_smoothing: in [0, 1].
  """

  z_loss: float = 0.0
  label_smoothing: float = 0.0

  def __post_init__(self):
    if not 0 <= self.label_smoothing <= 1:
      raise ValueError(f"label_smoothing is {self.label_smoothing}, and must be from 0 to 1.")

  def __call__(
    self, log_z: Float[Array, "*shape"], score: Float[Array, "*shape"], mean: Float[Array, "*shape"] | float
  ) -> Float[Array, "*shape"]:
    """The loss from log Z, the target's logit, and the mean logit (read only with label smoothing)."""
    loss = log_z - (1 - self.label_smoothing) * score
    if self.label_smoothing:
      loss = loss - self.label_smoothing * mean
    return loss + self.z_loss * jnp.square(log_z) if self.z_loss else loss


def weighted(losses: Float[Array, "*shape"], weights: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
  """weights * losses; a token of weight 0 gives 0, though its target may be no token and its loss NaN."""
  return jnp.where(weights != 0, weights * losses, 0)
