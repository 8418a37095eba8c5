"""Attention in plain XLA: the semantics that every backend must meet."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.attention.spec import Mask

# Finite, so that a query with no visible key gives a finite (ignored) output instead of NaN.
HIDDEN = -1e30


def attention(
  q: Float[Array, "batch query heads d_kv"],
  k: Float[Array, "batch key kv_heads d_kv"],
  v: Float[Array, "batch key kv_heads d_kv"],
  mask: Mask,
  bias: Float[Array, "heads query key"] | Float[Array, "batch heads query key"] | None = None,
  *,
  scale: float = 1.0,
  soft_cap: float = 0.0,
) -> Float[Array, "batch query heads d_kv"]:
  """softmax(cap(scale * q k^T) + bias, masked) v, with the softmax in float32.

  T5 folds the scale into the initialisation of q, hence the default 1.0 (Raffel et al. 2020, arXiv 1910.10683).

  Args:
    k, v: fewer heads than q serve groups of its heads: head h of q uses head h // (heads / kv_heads).
    soft_cap: c of cap(s) = c tanh(s / c) (Gemma 2, arXiv 2408.00118); 0: no cap.
  """
  groups = q.shape[2] // k.shape[2]
  if groups == 1:
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
  else:
    grouped = q.reshape(*q.shape[:2], k.shape[2], groups, q.shape[3])
    scores = jnp.einsum("bqhgd,bkhd->bhgqk", grouped, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(q.shape[0], q.shape[2], q.shape[1], k.shape[1])
  if scale != 1.0:
    scores = scores * scale
  if soft_cap:
    scores = jnp.tanh(scores / soft_cap) * soft_cap
  if bias is not None:
    scores = scores + bias.astype(jnp.float32)
  weights = jax.nn.softmax(jnp.where(mask.allowed(), scores, HIDDEN), axis=-1).astype(v.dtype)
  if groups == 1:
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)
  weights = weights.reshape(q.shape[0], k.shape[2], groups, *weights.shape[2:])
  return jnp.einsum("bhgqk,bkhd->bqhgd", weights, v).reshape(q.shape)
