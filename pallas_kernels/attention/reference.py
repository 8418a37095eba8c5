"""Attention written out, for what it means and not for speed: every backend is held against it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.attention.spec import FEATURES, AttentionSpec

HONOURED = FEATURES


def attention(
  q: Float[Array, "batch query heads d_kv"],
  k: Float[Array, "batch key kv_heads d_kv"],
  v: Float[Array, "batch key kv_heads d_kv"],
  spec: AttentionSpec,
) -> Float[Array, "batch query heads d_kv"]:
  """Dense attention in float64 where x64 is enabled, else in float32; the result has q's dtype.

  Args:
    k, v: fewer heads than q serve groups of its heads: head h of q uses head h // (heads / kv_heads).
  """
  dtype = jnp.promote_types(jnp.asarray(0.0).dtype, jnp.float32)
  repeat = q.shape[2] // k.shape[2]
  k, v = (jnp.repeat(x.astype(dtype), repeat, axis=2) for x in (k, v))
  scores = jnp.einsum("bqhd,bkhd->bhqk", q.astype(dtype), k, precision="highest") * spec.scale
  if spec.soft_cap:
    scores = jnp.tanh(scores / spec.soft_cap) * spec.soft_cap
  bias = spec.dense_bias(q.shape[1], k.shape[1])
  if bias is not None:
    scores = scores + bias.astype(dtype)
  allowed = spec.allowed(q.shape[1], k.shape[1])
  allowed = jnp.ones((1, 1, 1, 1), bool) if allowed is None else allowed
  # The largest visible score, and any number where there is none: exp stays finite, and so do gradients.
  # No part of the result: its gradient would divide by a count of equal scores, which a fused program may see as 0.
  highest = jax.lax.stop_gradient(jnp.max(jnp.where(allowed, scores, -jnp.inf), axis=-1, keepdims=True))
  highest = jnp.where(jnp.isfinite(highest), highest, 0)
  exponent = jnp.where(allowed, scores - highest, 0)
  weights = jnp.where(allowed, jnp.exp(exponent), 0)
  total = weights.sum(-1, keepdims=True)
  weights = weights / jnp.where(total > 0, total, 1)
  return jnp.einsum("bhqk,bkhd->bqhd", weights, v, precision="highest").astype(q.dtype)


def refusal(q, k, v, spec) -> None:
  """Nothing is refused."""
