"""Dense attention in plain XLA: scores of all queries and keys in memory, fastest where they are few."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.attention.spec import FEATURES, AttentionSpec

# Finite, so that a query that sees no key does not give NaN.
HIDDEN = -1e30
HONOURED = FEATURES


def attention(
  q: Float[Array, "batch query heads d_kv"],
  k: Float[Array, "batch key kv_heads d_kv"],
  v: Float[Array, "batch key kv_heads d_kv"],
  spec: AttentionSpec,
) -> Float[Array, "batch query heads d_kv"]:
  """See `AttentionSpec`; the softmax is in float32."""
  groups = q.shape[2] // k.shape[2]
  if groups == 1:
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
  else:
    grouped = q.reshape(*q.shape[:2], k.shape[2], groups, q.shape[3])
    scores = jnp.einsum("bqhgd,bkhd->bhgqk", grouped, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
  if spec.scale != 1.0:
    scores = scores * spec.scale
  if spec.soft_cap:
    scores = jnp.tanh(scores / spec.soft_cap) * spec.soft_cap
  bias = spec.dense_bias(q.shape[1], k.shape[1])
  if bias is not None:
    scores = scores + bias.astype(jnp.float32)
  allowed = spec.allowed(q.shape[1], k.shape[1])
  if allowed is not None:
    scores = jnp.where(allowed, scores, HIDDEN)
  weights = jax.nn.softmax(scores, axis=-1)
  if allowed is not None:
    weights = jnp.where(allowed.any(-1, keepdims=True), weights, 0)
  weights = weights.astype(v.dtype)
  if groups == 1:
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)
  weights = weights.reshape(q.shape[0], k.shape[2], groups, *weights.shape[2:])
  return jnp.einsum("bhgqk,bkhd->bqhgd", weights, v).reshape(q.shape)


def refusal(q, k, v, spec) -> None:
  """Nothing is refused."""
