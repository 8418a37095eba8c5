"""Multi-head attention with relative, ALiBi or rotary positions, for packed rows and for decoding with a cache."""

import math
from dataclasses import replace
from typing import NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float64, Int
from ml_collections import ConfigDict

from mtx.errors import UserError, did_you_mean
from mtx.models.backends import bound
from mtx.models.config import kv_heads
from mtx.models.context import Context
from mtx.models.layers import Dense, RMSNorm, param
from mtx.models.rope import Turn, rotate
from mtx.parallel.activations import SPLIT
from mtx.parallel.mesh import ROWS
from pallas_kernels.attention.api import BACKENDS
from pallas_kernels.attention.bias import Buckets
from pallas_kernels.attention.decode import Cached
from pallas_kernels.attention.sharded import attention, in_cache
from pallas_kernels.attention.spec import AttentionSpec


class Backends(NamedTuple):
  """What `attention_backends` gives."""

  impl: str | None
  decode_impl: str | None


@gin.configurable("attention", allowlist=["impl", "decode_impl"])
def attention_backends(impl: str | None = None, decode_impl: str | None = None) -> Backends:
  """The attention backends that models are built with, `attention.impl = 'xla_chunked'`.

  Args:
    impl: a name in `pallas_kernels.attention.api.BACKENDS`; None: the fastest that honours what a model asks for.
    decode_impl: the same for decoding steps, which have a cache and few queries; None: the kernel of the device where
      it has one that can do it, as 'decode_tpu', else `impl`.

  Raises:
    UserError: no such backend.
  """
  for name, value in (("impl", impl), ("decode_impl", decode_impl)):
    if value is not None and value not in BACKENDS:
      raise UserError(f"binding `attention.{name}`: no backend {value!r}.", hint=did_you_mean(value, BACKENDS))
  return Backends(impl, decode_impl)


class RelativeBias(nnx.Module):
  """One learned scalar a bucket and head, shared by all layers of a stack.

  Packed segments are contiguous in their row, so the difference of row indices is the difference of positions within
  a segment, and one bias serves the whole batch.
  """

  def __init__(self, heads: int, *, bidirectional: bool, buckets: int, max_distance: int, std: float, rngs: nnx.Rngs):
    self.table = param(nnx.initializers.normal(std), (buckets, heads), ("bucket", "heads"), rngs)
    self.bidirectional, self.max_distance = bidirectional, max_distance

  def __call__(self) -> Buckets:
    return Buckets(self.table[...], self.bidirectional, self.max_distance)


def alibi_slopes(heads: int) -> Float64[np.ndarray, " heads"]:
  """2^(-8 i / n) for n = heads a power of two; others take every second slope of 2n for what is over the power below
  (Press et al. 2022, arXiv 2108.12409)."""
  power = 2 ** math.floor(math.log2(heads))
  slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)
  between = 2.0 ** (-4 * np.arange(1, 2 * (heads - power), 2) / power)
  return np.concatenate([slopes, between])


class Attention(nnx.Module):
  """q, k, v, o projections around `pallas_kernels.attention`."""

  def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
    c = config
    d, inner, shared = c.d_model, c.heads * c.d_kv, kv_heads(c) * c.d_kv
    # Where scores are not scaled, the initialisation of q is (T5).
    q_std = d**-0.5 * (c.d_kv**-0.5 if c.attention_scale == 1.0 else 1.0)
    self.q = Dense(d, inner, ("embed", "heads"), std=q_std, rngs=rngs, bias=c.qkv_bias)
    self.k = Dense(d, shared, ("embed", "heads"), std=d**-0.5, rngs=rngs, bias=c.qkv_bias)
    self.v = Dense(d, shared, ("embed", "heads"), std=d**-0.5, rngs=rngs, bias=c.qkv_bias)
    self.o = Dense(inner, d, ("heads", "embed"), std=inner**-0.5, rngs=rngs, bias=c.o_bias)
    each = lambda: RMSNorm(c.d_kv, epsilon=c.norm_epsilon, offset=c.norm_offset, rngs=rngs)
    self.q_norm = each() if c.qk_norm else None
    self.k_norm = each() if c.qk_norm else None
    self.d_kv, self.scale, self.soft_cap = c.d_kv, c.attention_scale, c.attention_soft_cap
    self.backends = attention_backends()

  def split(self, x: Float[Array, "batch length inner"]) -> Float[Array, "batch length heads d_kv"]:
    return x.reshape(*x.shape[:-1], -1, self.d_kv)

  def keys_values(
    self, x: Float[Array, "batch key d_model"], ctx: Context, turn: Turn | None = None
  ) -> dict[str, Array]:
    """Keys (turned) and values of a source; computed once for an encoder's output when decoding."""
    k = self.split(self.k(x, ctx.fold(1)))
    if self.k_norm is not None:
      k = self.k_norm(k)
    return {"k": k if turn is None else rotate(k, turn), "v": self.split(self.v(x, ctx.fold(2)))}

  def __call__(
    self,
    x: Float[Array, "batch query d_model"],
    ctx: Context,
    keys_values: dict[str, Array] | Cached,
    spec: AttentionSpec,
    turn: Turn | None = None,
  ) -> Float[Array, "batch query d_model"]:
    """What x sees, projected back.

    Args:
      keys_values: as the method of that name gives them, or a layer of a cache.
    """
    q = self.split(self.q(x, ctx.fold(0)))
    if self.q_norm is not None:
      q = self.q_norm(q)
    if turn is not None:
      q = rotate(q, turn)
    spec = replace(spec, scale=self.scale, soft_cap=self.soft_cap)
    impl, decode_impl = self.backends
    rows, heads = ROWS, SPLIT["heads"]
    if isinstance(keys_values, Cached):
      with bound("attention.decode_impl" if decode_impl else "attention.impl"):
        y = in_cache(q, keys_values, spec, impl=impl, decode_impl=decode_impl, rows=rows, heads=heads)
    else:
      with bound("attention.impl"):
        y = attention(q, keys_values["k"], keys_values["v"], spec, impl=impl, rows=rows, heads=heads)
    return self.o(y.reshape(*y.shape[:-2], -1), ctx.fold(3))


# Keys and values in a cache are [layer, batch, kv_heads, length, d_kv]: what one head reads at a step lies together,
# and no step transposes the whole cache.
def stored(fresh: dict[str, Array]) -> dict[str, Array]:
  """Keys and values [..., length, kv_heads, d_kv] in the order of the cache."""
  return jax.tree.map(lambda x: jnp.swapaxes(x, -3, -2), fresh)


def write(
  cache: dict[str, Array], fresh: dict[str, Array], layer: Int[Array, ""], index: Int[Array, ""] | Int[Array, " batch"]
) -> dict[str, Array]:
  """The cache of all layers with `fresh` keys and values [batch, n, kv_heads, d_kv] of one layer at row position
  `index`, one for all rows or one a row."""

  def one(old: Array, new: Array) -> Array:
    new = new.astype(old.dtype)
    if jnp.ndim(index) == 0:
      return jax.lax.dynamic_update_slice(old, new[None], (layer, 0, 0, index, 0))
    rows = jnp.arange(new.shape[0])[:, None]
    places = index[:, None] + jnp.arange(new.shape[2])
    # Advanced indices on both sides of a slice: the result leads with them.
    return old.at[layer, rows, :, places].set(jnp.swapaxes(new, 1, 2))

  return jax.tree.map(one, cache, stored(fresh))
