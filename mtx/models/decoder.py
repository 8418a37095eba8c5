"""Decoder-only model: causal, or non-causal over the inputs (prefix), from the same blocks as the encoder-decoder."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict

from mtx.models.cache import Cache
from mtx.models.context import Context, context
from mtx.models.head import Head
from mtx.models.outputs import Outputs
from mtx.models.stack import Stack
from pallas_kernels.attention.spec import AttentionSpec


class Decoder(nnx.Module):
  """One stack. The mask alone tells causal from prefix, so weights carry over between them (arXiv 2204.05832)."""

  def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
    self.head = Head(config, rngs=rngs)
    self.decoder = Stack(config, config.decoder_layers, cross=False, bidirectional=False, rngs=rngs)
    self.config = config.copy_and_resolve_references().lock() if not config.is_locked else config

  def __call__(self, batch: dict[str, Array], *, key: PRNGKeyArray | None = None, step=0) -> Outputs:
    """Teacher-forced logits of a packed or padded batch (features: mtx/data/convert.py)."""
    ctx = context(batch, "decoder", key, step)
    prefix = batch["decoder_causal_attention"] > 0 if self.config.architecture == "prefix" else None
    spec = AttentionSpec(ctx.segment_ids, ctx.segment_ids, prefix=prefix, causal=True)
    x, _ = self.decoder(self.head.embed(batch["decoder_input_tokens"], ctx.positions), ctx, spec)
    return self.head.outputs(x, ctx)

  def prefill(self, prompts: dict[str, Array], length: int) -> tuple[Float[Array, "batch vocab"], Cache]:
    """Runs prompts, padded on either side; returns the first logits and a cache with room for `length` more tokens."""
    prompts = _left_padded(prompts)
    ctx = context(prompts, "decoder")
    batch, prompt = ctx.segment_ids.shape
    room = lambda x, fill: jnp.concatenate([x, jnp.full((batch, length), fill, x.dtype)], axis=1)
    segments = room(ctx.segment_ids, 1)
    prefix = None
    if self.config.architecture == "prefix":
      prefix = room(prompts["decoder_causal_attention"] > 0, False)
    x = self.head.embed(prompts["decoder_input_tokens"], ctx.positions)
    layers = {"self": self.decoder.empty_cache(self.config, batch, prompt + length, x.dtype)}
    spec = AttentionSpec(ctx.segment_ids, segments, prefix=prefix, causal=True)
    x, layers = self.decoder(x, ctx, spec, cache=layers, index=0)
    cache = {
      "layers": layers,
      "segments": segments,
      "task_ids": prompts["task_ids"],
      "index": jnp.asarray(prompt, jnp.int32),
      "positions": ctx.positions[:, -1] + 1,
    }
    return self.head.logits(x[:, -1:], ctx)[:, 0], cache

  def extend(self, tokens: Int[Array, "batch n"], cache: Cache) -> tuple[Float[Array, "batch n vocab"], Cache]:
    """Logits after each of n more tokens in every row, and the cache that holds them."""
    index, n = cache["index"], tokens.shape[1]
    ones = jnp.ones_like(tokens)
    positions = cache["positions"][:, None] + jnp.arange(n)
    ctx = Context(cache["task_ids"], segment_ids=ones, positions=positions)
    # The whole prompt lies before these tokens: causal order shows it to them, prefix or not.
    spec = AttentionSpec(ones, cache["segments"], offset=index, causal=True)
    x, layers = self.decoder(self.head.embed(tokens, positions), ctx, spec, cache=cache["layers"], index=index)
    step = {"layers": layers, "index": index + n, "positions": cache["positions"] + n}
    return self.head.logits(x, ctx), {**cache, **step}

  def decode_step(self, tokens: Int[Array, " batch"], cache: Cache) -> tuple[Float[Array, "batch vocab"], Cache]:
    """Logits after one more token in every row, and the cache that holds it."""
    logits, cache = self.extend(tokens[:, None], cache)
    return logits[:, 0], cache


def _left_padded(prompts: dict[str, Array]) -> dict[str, Array]:
  """Rows that end with their last token, wherever their padding was.

  So all rows generate at one row index; every kind of position makes the shift invisible.
  """
  real = prompts["decoder_segment_ids"] > 0
  behind = real[:, ::-1].argmax(axis=1)  # padding after the last token; 0 in a row of padding alone
  places = (jnp.arange(real.shape[1]) - behind[:, None]) % real.shape[1]
  moved = lambda name, each: jnp.take_along_axis(each, places, axis=1) if name.startswith("decoder_") else each
  return {name: moved(name, each) for name, each in prompts.items()}
