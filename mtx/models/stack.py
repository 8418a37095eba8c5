"""n equal blocks with stacked parameters, run by one `lax.scan`: compile time and host overhead of a single block."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray
from ml_collections import ConfigDict

from mtx.errors import UserError
from mtx.models.attention import Attention, RelativeBias, alibi_slopes, attention_backends, stored, write
from mtx.models.config import kv_heads
from mtx.models.context import Context
from mtx.models.layers import SAVED, Dense, dropout, norm
from mtx.models.rope import Turn, frequencies, turn
from pallas_kernels.attention import api, decode
from pallas_kernels.attention.bias import Alibi, Bias, DenseBias
from pallas_kernels.attention.decode import Cached
from pallas_kernels.attention.spec import AttentionSpec

ACTIVATIONS = {
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
}
NO_WINDOW = np.iinfo(np.int32).max


class MLP(nnx.Module):
  """act(x W0) * (x W1) Wo (gated: Shazeer 2020, arXiv 2002.05202), or act(x W0) Wo."""

  def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
    c = config
    inward = lambda: Dense(c.d_model, c.d_ff, ("embed", "mlp"), std=c.d_model**-0.5, rngs=rngs, bias=c.mlp_bias)
    self.wi_0 = inward()
    self.wi_1 = inward() if c.gated else None
    self.wo = Dense(c.d_ff, c.d_model, ("mlp", "embed"), std=c.d_ff**-0.5, rngs=rngs, bias=c.mlp_bias)
    self.activation = c.activation

  def __call__(self, x: Float[Array, "batch length d_model"], ctx: Context, rate: float, key: PRNGKeyArray | None):
    h = ACTIVATIONS[self.activation](self.wi_0(x, ctx.fold(8)))
    if self.wi_1 is not None:
      h = h * self.wi_1(x, ctx.fold(9))
    return self.wo(dropout(h, rate, key), ctx.fold(10))


class Block(nnx.Module):
  """Self-attention, optional cross-attention, MLP; each residual, with norms where the config places them."""

  def __init__(self, config: ConfigDict, *, cross: bool, rngs: nnx.Rngs):
    c = config
    both = c.placement == "both"
    self.self_norm, self.mlp_norm = norm(c, rngs), norm(c, rngs)
    self.self_after = norm(c, rngs) if both else None
    self.mlp_after = norm(c, rngs) if both else None
    self.self_attention = Attention(c, rngs=rngs)
    self.mlp = MLP(c, rngs=rngs)
    self.cross = cross
    if cross:
      self.cross_norm = norm(c, rngs)
      self.cross_after = norm(c, rngs) if both else None
      self.cross_attention = Attention(c, rngs=rngs)
    self.rate, self.parallel, self.post = c.dropout, c.parallel, c.placement == "post"

  def __call__(self, x, ctx: Context, spec: AttentionSpec, turn: Turn | None, *, source=None, cache=None):
    """One layer.

    Args:
      x: [batch, query, d_model].
      source: (encoder output, encoder context, who sees what of it) of an encoder-decoder.
      cache: when decoding, a function from this call's keys and values to all that a query may see, and the cross keys
        and values.
    """
    keys = [None] * 4 if ctx.key is None else list(jax.random.split(ctx.key, 4))
    extended, cross = (None, None) if cache is None else cache

    def attend(h):
      seen = self.self_attention.keys_values(h, ctx, turn)
      seen = seen if extended is None else extended(seen)
      return self.self_attention(h, ctx, seen, spec, turn)

    def look(h):
      encoded, encoded_ctx, cross_spec = source
      site = ctx.fold(16)
      seen = cross
      if seen is None:
        seen = self.cross_attention.keys_values(encoded, encoded_ctx.with_key(site.key))
      return self.cross_attention(h, site, seen, cross_spec)

    think = lambda h: self.mlp(h, ctx, self.rate, keys[2])
    if self.parallel:
      y = dropout(attend(self.self_norm(x)), self.rate, keys[0]) + dropout(think(self.mlp_norm(x)), self.rate, keys[3])
      return x + y
    x = self._residual(x, attend, self.self_norm, self.self_after, keys[0])
    if self.cross:
      x = self._residual(x, look, self.cross_norm, self.cross_after, keys[1])
    return self._residual(x, think, self.mlp_norm, self.mlp_after, keys[3])

  def _residual(self, x, sublayer, before, after, key):
    if self.post:
      return before(x + dropout(sublayer(x), self.rate, key))
    y = sublayer(before(x))
    return x + dropout(y if after is None else after(y), self.rate, key)


def stacked(make, n: int, rngs: nnx.Rngs):
  """n modules from `make(rngs)` as one, each array with a leading layer axis."""
  return nnx.vmap(make, in_axes=0, out_axes=0)(rngs.split(n))


class Stack(nnx.Module):
  """Blocks, final norm and the positions they share."""

  def __init__(self, config: ConfigDict, layers: int, *, cross: bool, bidirectional: bool, rngs: nnx.Rngs):
    c = config
    self.layers = stacked(lambda r: Block(c, cross=cross, rngs=r), layers, rngs)
    self.norm = norm(c, rngs) if c.final_norm else None
    learned = lambda: RelativeBias(
      c.heads,
      bidirectional=bidirectional,
      buckets=c.relative_buckets,
      max_distance=c.relative_max_distance,
      std=c.d_model**-0.5,
      rngs=rngs,
    )
    self.relative_bias = learned() if c.relative_buckets else None
    self.depth, self.rate, self.remat, self.unroll = layers, c.dropout, c.remat, c.unroll
    self.backends = attention_backends()
    self.heads, self.d_kv = (c.heads, kv_heads(c)), c.d_kv
    self.alibi = c.heads if c.alibi else 0
    self.window = c.window
    self.windowed = tuple(c.window_layers) or (1,) * layers
    dims = int(c.d_kv * c.rope_fraction)
    plain = frequencies(c.rope_theta, dims, c.rope_scaling) if c.rope_theta else None
    local = frequencies(c.rope_local_theta, dims) if c.rope_local_theta else None
    self.frequencies = tuple(None if f is None else tuple(f.tolist()) for f in (plain, local))  # static, so hashable
    scaling = c.rope_scaling or {}
    self.magnitudes = (scaling.get("magnitude", 1.0), 1.0)
    self.longest = scaling.get("longest", 0)

  def __call__(self, x, ctx: Context, spec: AttentionSpec, *, source=None, cache=None, index=0):
    """Runs all layers over x [batch, query, d_model].

    Args:
      spec: who sees whom; scale, cap and bias are the stack's own.
      source: (encoder output, encoder context, who sees what of it) of an encoder-decoder.
      cache: {"self": {k, v}, "cross": {k, v}} of all layers when decoding; cross keys are already complete.
      index: row position of the first query, one for all rows or one a row; the new keys are written there.

    Returns:
      (normed output, the cache with this call's keys and values).
    """
    length = x.shape[1] if cache is None else cache["self"]["k"].shape[3]
    if self.longest and length > self.longest:
      raise UserError(
        f"a row has {length} tokens: past {self.longest} this model turns positions by other factors (longrope), which "
        "mtx does not do.",
        hint=f"rows, and prompts with what is decoded after them, may have {self.longest} tokens",
      )
    heads = lambda n, length: jax.ShapeDtypeStruct((x.shape[0], length, n, self.d_kv), x.dtype)
    spec = replace(spec, bias=self._bias(x.shape[1], length, spec.offset))
    q, k = heads(self.heads[0], x.shape[1]), heads(self.heads[1], length)
    if cache is None:
      spec = api.prepared(spec, q, k, self.backends.impl)
    else:
      spec = decode.prepared(spec, q, k, **self.backends._asdict())
    turns = [
      None if f is None else turn(ctx.positions, np.array(f), magnitude)
      for f, magnitude in zip(self.frequencies, self.magnitudes, strict=True)
    ]
    keys = None
    if ctx.key is not None:
      keys = jax.random.split(ctx.key, self.depth + 2)
      x = dropout(x, self.rate, keys[-1])

    def positions(windowed) -> tuple[AttentionSpec, Turn | None]:
      """What a layer attends to, and its rotation."""
      if not self.window:
        return spec, turns[0]
      limited = replace(spec, window=jnp.where(windowed, self.window, NO_WINDOW))
      if turns[1] is None:
        return limited, turns[0]
      return limited, jax.tree.map(lambda own, other: jnp.where(windowed, own, other), turns[1], turns[0])

    windowed = jnp.array(self.windowed, bool) if self.window else None
    layer_keys = None if keys is None else keys[: self.depth]
    if cache is None:

      def body(x, layer):
        block, key, windowed = layer
        return block(x, ctx.with_key(key), *positions(windowed), source=source), None

      policy = None if self.remat else jax.checkpoint_policies.save_only_these_names(*SAVED)
      body = jax.checkpoint(body, prevent_cse=False, policy=policy)
      x, _ = jax.lax.scan(body, x, (self.layers, layer_keys, windowed), unroll=self.unroll)
    else:
      # The cache is carried and not scanned over: it is then written in place, and not copied once a step.
      def step(carry, layer):
        x, kept = carry
        i, block, key, windowed = layer
        held = []

        def extended(fresh):
          held.append(write(kept, fresh, i, jnp.asarray(index)))
          return Cached(**held[0], layer=i)

        known = (extended, Cached(**cache["cross"], layer=i) if "cross" in cache else None)
        x = block(x, ctx.with_key(key), *positions(windowed), source=source, cache=known)
        return (x, held[0]), None

      xs = (jnp.arange(self.depth), self.layers, layer_keys, windowed)
      (x, kept), _ = jax.lax.scan(step, (x, cache["self"]), xs, unroll=self.unroll)
      cache = {**cache, "self": kept}
    if self.norm is not None:
      x = self.norm(x)
    return (x if keys is None else dropout(x, self.rate, keys[self.depth])), cache

  def _bias(self, query: int, key: int, offset) -> Bias | None:
    learned = None if self.relative_bias is None else self.relative_bias()
    if not self.alibi:
      return learned
    linear = Alibi(jnp.asarray(alibi_slopes(self.alibi), jnp.float32))
    if learned is None:
      return linear
    both = [AttentionSpec(bias=bias, offset=offset).dense_bias(query, key) for bias in (learned, linear)]
    return DenseBias(jax.tree.reduce(jnp.add, both))

  def cross_keys_values(self, encoded, ctx: Context) -> dict[str, Array]:
    """Cross-attention keys and values of every layer, [layer, batch, kv_heads, key, d_kv]."""

    def body(_, block):
      return None, stored(block.cross_attention.keys_values(encoded, ctx))

    return jax.lax.scan(body, None, self.layers)[1]

  def empty_cache(self, config: ConfigDict, batch: int, length: int, dtype) -> dict[str, Array]:
    """Zeroed self-attention keys and values for `length` row positions."""
    shape = (self.depth, batch, kv_heads(config), length, config.d_kv)
    return {"k": jnp.zeros(shape, dtype), "v": jnp.zeros(shape, dtype)}
