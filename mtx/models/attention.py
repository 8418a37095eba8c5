"""Multi-head attention with T5's relative position bias, for packed rows and for decoding with a cache."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mtx.models.context import Context
from mtx.models.layers import Dense, param
from pallas_kernels.attention.api import Mask, attention


def relative_buckets(
  relative: Int[Array, "query key"], *, bidirectional: bool, buckets: int, max_distance: int
) -> Int[Array, "query key"]:
  """Bucket of each key position minus query position: exact near, logarithmic far (Raffel et al. 2020, section 2.1).

  Args:
    relative: key index minus query index.
    bidirectional: half of the buckets for keys after the query; otherwise those all share bucket 0.
    buckets: how many in all.
    max_distance: distance from which everything shares the last bucket.
  """
  offset = jnp.zeros_like(relative)
  if bidirectional:
    buckets //= 2
    offset = jnp.where(relative > 0, buckets, 0)
    distance = jnp.abs(relative)
  else:
    distance = jnp.maximum(-relative, 0)
  exact = buckets // 2
  # +eps keeps log(0) out of the branch that jnp.where discards.
  ratio = jnp.log(distance.astype(jnp.float32) / exact + jnp.finfo(jnp.float32).eps) / jnp.log(max_distance / exact)
  far = exact + (ratio * (buckets - exact)).astype(jnp.int32)
  return offset + jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))


class RelativeBias(nnx.Module):
  """One learned scalar a bucket and head, shared by all layers of a stack.

  Packed segments are contiguous in their row, so the difference of row indices is the difference of positions within
  a segment, and one [heads, query, key] bias serves the whole batch.
  """

  def __init__(self, heads: int, *, bidirectional: bool, buckets: int, max_distance: int, std: float, rngs: nnx.Rngs):
    self.table = param(nnx.initializers.normal(std), (buckets, heads), ("bucket", "heads"), rngs)
    self.bidirectional, self.buckets, self.max_distance = bidirectional, buckets, max_distance

  def __call__(self, query: int, key: int, offset: Int[Array, ""] | int = 0) -> Float[Array, "heads query key"]:
    relative = jnp.arange(key)[None, :] - (jnp.arange(query)[:, None] + offset)
    index = relative_buckets(
      relative, bidirectional=self.bidirectional, buckets=self.buckets, max_distance=self.max_distance
    )
    return self.table[...][index].transpose(2, 0, 1)


class Attention(nnx.Module):
  """q, k, v, o projections around `pallas_kernels.attention`. No biases, no score scale: T5 1.1."""

  def __init__(self, d_model: int, heads: int, d_kv: int, *, rngs: nnx.Rngs):
    inner = heads * d_kv
    self.q = Dense(d_model, inner, ("embed", "heads"), std=(d_model * d_kv) ** -0.5, rngs=rngs)
    self.k = Dense(d_model, inner, ("embed", "heads"), std=d_model**-0.5, rngs=rngs)
    self.v = Dense(d_model, inner, ("embed", "heads"), std=d_model**-0.5, rngs=rngs)
    self.o = Dense(inner, d_model, ("heads", "embed"), std=inner**-0.5, rngs=rngs)
    self.heads = heads

  def split(self, x: Float[Array, "batch length inner"]) -> Float[Array, "batch length heads d_kv"]:
    return x.reshape(*x.shape[:-1], self.heads, -1)

  def keys_values(self, x: Float[Array, "batch key d_model"], ctx: Context) -> dict[str, Array]:
    """Keys and values of a source; computed once for an encoder's output when decoding."""
    return {"k": self.split(self.k(x, ctx.fold(1))), "v": self.split(self.v(x, ctx.fold(2)))}

  def __call__(
    self,
    x: Float[Array, "batch query d_model"],
    ctx: Context,
    keys_values: dict[str, Array],
    mask: Mask,
    bias: Float[Array, "heads query key"] | None,
  ) -> Float[Array, "batch query d_model"]:
    q = self.split(self.q(x, ctx.fold(0)))
    y = attention(q, keys_values["k"], keys_values["v"], mask, bias)
    return self.o(y.reshape(*y.shape[:-2], -1), ctx.fold(3))


def write(cache: dict[str, Array], fresh: dict[str, Array], index: Int[Array, ""] | int) -> dict[str, Array]:
  """The cache with `fresh` keys and values at row position `index`."""
  return jax.tree.map(lambda c, f: jax.lax.dynamic_update_slice_in_dim(c, f.astype(c.dtype), index, 1), cache, fresh)
