"""Cross-entropy written out, for what it means and not for speed: every backend is held against it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.cross_entropy.head import LinearHead
from pallas_kernels.cross_entropy.loss import TokenLoss
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
  """In float64 where x64 is enabled, else in float32."""
  dtype = jnp.promote_types(jnp.asarray(0.0).dtype, jnp.float32)
  head = jax.tree.map(lambda each: each.astype(dtype), head)
  weight = head.weight.T if head.vocabulary_first else head.weight
  logits = replace(head, weight=weight, vocabulary_first=False).logits(x.astype(dtype))
  log_z = jax.nn.logsumexp(logits, axis=-1)
  wanted = jax.nn.one_hot(targets, head.vocabulary, dtype=dtype) * (1 - loss.label_smoothing)
  wanted = wanted + loss.label_smoothing / head.vocabulary
  losses = -(wanted * (logits - log_z[..., None])).sum(-1) + loss.z_loss * jnp.square(log_z)
  losses = jnp.where((targets >= 0) & (targets < head.vocabulary), losses, jnp.nan)
  losses = losses if counted is None else jnp.where(counted, losses, 0)
  return jnp.where(weights != 0, weights.astype(dtype) * losses, 0).sum(), losses


def refusal(x, head, loss, split) -> None:
  """Nothing is refused."""
