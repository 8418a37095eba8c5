"""Cross-entropy of logits that are all in memory: fastest where they are few."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.cross_entropy.head import LinearHead
from pallas_kernels.cross_entropy.loss import TokenLoss, weighted
from pallas_kernels.cross_entropy.split import Split


def linear_cross_entropy(
  x: Float[Array, "batch length d_model"],
  head: LinearHead,
  targets: Int[Array, "batch length"],
  weights: Float[Array, "batch length"],
  counted: Bool[Array, "batch length"] | None,
  loss: TokenLoss,
  split: Split,
) -> tuple[Float[Array, ""], Float[Array, "batch length"]]:
  """See `pallas_kernels.cross_entropy.api`; the partitioner splits it."""
  return of_logits(head.logits(x), targets, weights, counted, loss)


def of_logits(
  logits: Float[Array, "batch length vocab"],
  targets: Int[Array, "batch length"],
  weights: Float[Array, "batch length"],
  counted: Bool[Array, "batch length"] | None,
  loss: TokenLoss,
) -> tuple[Float[Array, ""], Float[Array, "batch length"]]:
  """The same from logits, whatever they were computed by."""
  log_z = jax.nn.logsumexp(logits, axis=-1)
  there = (targets >= 0) & (targets < logits.shape[-1])
  score = jnp.take_along_axis(logits, jnp.where(there, targets, 0)[..., None], axis=-1)[..., 0]
  losses = loss(log_z, jnp.where(there, score, jnp.nan), logits.mean(-1) if loss.label_smoothing else 0.0)
  losses = losses if counted is None else jnp.where(counted, losses, 0)
  return weighted(losses, weights).sum(), losses


def refusal(x, head, loss, split) -> None:
  """Nothing is refused."""
