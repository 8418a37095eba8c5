"""Attention in plain XLA: the semantics that every backend must meet."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.attention.spec import Mask

# Finite, so that a query with no visible key gives a finite (ignored) output instead of NaN.
HIDDEN = -1e30


def attention(
  q: Float[Array, "batch query heads d_kv"],
  k: Float[Array, "batch key heads d_kv"],
  v: Float[Array, "batch key heads d_kv"],
  mask: Mask,
  bias: Float[Array, "heads query key"] | None = None,
  *,
  scale: float = 1.0,
) -> Float[Array, "batch query heads d_kv"]:
  """softmax(scale * q k^T + bias, masked) v, with the softmax in float32.

  T5 folds the scale into the initialisation of q, hence the default 1.0 (Raffel et al. 2020, arXiv 1910.10683).
  """
  scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * scale
  if bias is not None:
    scores = scores + bias.astype(jnp.float32)
  weights = jax.nn.softmax(jnp.where(mask.allowed(), scores, HIDDEN), axis=-1)
  return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(v.dtype), v)
