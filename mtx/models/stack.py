"""n equal blocks with stacked parameters, run by one `lax.scan`: compile time and host overhead of a single block."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from mtx.models.attention import Attention, RelativeBias, write
from mtx.models.context import Context
from mtx.models.layers import SAVED, Dense, RMSNorm, dropout
from pallas_kernels.attention.api import Mask


class GatedMLP(nnx.Module):
  """gelu(x W0) * (x W1) Wo (Shazeer 2020, arXiv 2002.05202; tanh gelu as T5 1.1 has it)."""

  def __init__(self, d_model: int, d_ff: int, *, rngs: nnx.Rngs):
    self.wi_0 = Dense(d_model, d_ff, ("embed", "mlp"), std=d_model**-0.5, rngs=rngs)
    self.wi_1 = Dense(d_model, d_ff, ("embed", "mlp"), std=d_model**-0.5, rngs=rngs)
    self.wo = Dense(d_ff, d_model, ("mlp", "embed"), std=d_ff**-0.5, rngs=rngs)

  def __call__(self, x: Float[Array, "batch length d_model"], ctx: Context, rate: float, key: PRNGKeyArray | None):
    h = jax.nn.gelu(self.wi_0(x, ctx.fold(8)), approximate=True) * self.wi_1(x, ctx.fold(9))
    return self.wo(dropout(h, rate, key), ctx.fold(10))


class Block(nnx.Module):
  """Self-attention, optional cross-attention, gated MLP; each pre-normed and residual."""

  def __init__(self, config: ConfigDict, *, cross: bool, rngs: nnx.Rngs):
    c = config
    norm = lambda: RMSNorm(c.d_model, epsilon=c.norm_epsilon, rngs=rngs)
    self.self_norm, self.mlp_norm = norm(), norm()
    self.self_attention = Attention(c.d_model, c.heads, c.d_kv, rngs=rngs)
    self.mlp = GatedMLP(c.d_model, c.d_ff, rngs=rngs)
    self.cross = cross
    if cross:
      self.cross_norm = norm()
      self.cross_attention = Attention(c.d_model, c.heads, c.d_kv, rngs=rngs)
    self.rate = c.dropout

  def __call__(self, x, ctx: Context, mask: Mask, bias, *, source=None, cache=None, index=0):
    """One layer.

    Args:
      x: [batch, query, d_model].
      source: (encoder output, encoder context, cross mask) of an encoder-decoder.
      cache: this layer's {"self": {k, v}, "cross": {k, v}} when decoding; cross keys are already complete.
      index: row position at which the new keys are written into the cache.

    Returns:
      (x, the self-attention cache with this call's keys and values, or None). Cross keys do not change, and are not
      copied from step to step.
    """
    keys = [None] * 4 if ctx.key is None else list(jax.random.split(ctx.key, 4))
    h = self.self_norm(x)
    fresh = self.self_attention.keys_values(h, ctx)
    if cache is not None:
      fresh = write(cache["self"], fresh, index)
    x = x + dropout(self.self_attention(h, ctx, fresh, mask, bias), self.rate, keys[0])
    if self.cross:
      encoded, encoded_ctx, cross_mask = source
      site = ctx.fold(16)
      if cache is None:
        cross = self.cross_attention.keys_values(encoded, encoded_ctx.with_key(site.key))
      else:
        cross = cache["cross"]
      y = self.cross_attention(self.cross_norm(x), site, cross, cross_mask, None)
      x = x + dropout(y, self.rate, keys[1])
    y = self.mlp(self.mlp_norm(x), ctx, self.rate, keys[2])
    return x + dropout(y, self.rate, keys[3]), None if cache is None else fresh


def stacked(make, n: int, rngs: nnx.Rngs):
  """n modules from `make(rngs)` as one, each array with a leading layer axis."""
  return nnx.vmap(make, in_axes=0, out_axes=0)(rngs.split(n))


class Stack(nnx.Module):
  """Blocks, final norm and the relative bias they share."""

  def __init__(self, config: ConfigDict, layers: int, *, cross: bool, bidirectional: bool, rngs: nnx.Rngs):
    c = config
    self.layers = stacked(lambda r: Block(c, cross=cross, rngs=r), layers, rngs)
    self.norm = RMSNorm(c.d_model, epsilon=c.norm_epsilon, rngs=rngs)
    self.relative_bias = RelativeBias(
      c.heads,
      bidirectional=bidirectional,
      buckets=c.relative_buckets,
      max_distance=c.relative_max_distance,
      std=c.d_model**-0.5,
      rngs=rngs,
    )
    self.depth, self.cross, self.rate, self.remat, self.unroll = layers, cross, c.dropout, c.remat, c.unroll

  def __call__(self, x, ctx: Context, mask: Mask, *, source=None, cache=None, index=0):
    """Runs all layers over x [batch, query, d_model]; returns (normed output, cache)."""
    key_length = x.shape[1] if cache is None else cache["self"]["k"].shape[2]
    bias = self.relative_bias(x.shape[1], key_length, index)
    keys = None
    if ctx.key is not None:
      keys = jax.random.split(ctx.key, self.depth + 2)
      x = dropout(x, self.rate, keys[-1])

    def body(x, layer):
      block, key, cache = layer
      return block(x, ctx.with_key(key), mask, bias, source=source, cache=cache, index=index)

    policy = None if self.remat else jax.checkpoint_policies.save_only_these_names(*SAVED)
    body = jax.checkpoint(body, prevent_cse=False, policy=policy)
    xs = (self.layers, None if keys is None else keys[: self.depth], cache)
    x, fresh = jax.lax.scan(body, x, xs, unroll=self.unroll)
    if cache is not None:
      cache = {**cache, "self": fresh}
    x = self.norm(x)
    return (x if keys is None else dropout(x, self.rate, keys[self.depth])), cache

  def cross_keys_values(self, encoded, ctx: Context) -> dict[str, Array]:
    """Cross-attention keys and values of every layer, [layer, batch, key, heads, d_kv]."""

    def body(_, block):
      return None, block.cross_attention.keys_values(encoded, ctx)

    return jax.lax.scan(body, None, self.layers)[1]

  def empty_cache(self, config: ConfigDict, batch: int, length: int, dtype) -> dict[str, Array]:
    """Zeroed self-attention keys and values for `length` row positions."""
    shape = (self.depth, batch, length, config.heads, config.d_kv)
    return {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}
