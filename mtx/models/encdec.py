"""Encoder-decoder (T5: Raffel et al. 2020, arXiv 1910.10683; BART: Lewis et al. 2020, arXiv 1910.13461)."""

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


class EncoderDecoder(nnx.Module):
  """Encoder stack, decoder stack with cross-attention, shared embedding."""

  def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
    self.head = Head(config, rngs=rngs)
    self.encoder = Stack(config, config.encoder_layers, cross=False, bidirectional=True, rngs=rngs)
    self.decoder = Stack(config, config.decoder_layers, cross=True, bidirectional=False, rngs=rngs)
    self.config = config.copy_and_resolve_references().lock() if not config.is_locked else config

  def encode(self, batch: dict[str, Array], ctx: Context) -> Float[Array, "batch length d_model"]:
    x = self.head.embed(batch["encoder_input_tokens"], ctx.positions, "encoder")
    return self.encoder(x, ctx, AttentionSpec(ctx.segment_ids, ctx.segment_ids))[0]

  def __call__(self, batch: dict[str, Array], *, key: PRNGKeyArray | None = None, step=0) -> Outputs:
    """Teacher-forced logits of a packed or padded batch (features: mtx/data/convert.py)."""
    ctx = context(batch, "encoder", key, step)
    encoded = self.encode(batch, ctx.fold(0))
    out = context(batch, "decoder", key, step).fold(1)
    source = (encoded, ctx.with_key(None), AttentionSpec(out.segment_ids, ctx.segment_ids))
    x = self.head.embed(batch["decoder_input_tokens"], out.positions)
    x, _ = self.decoder(x, out, AttentionSpec(out.segment_ids, out.segment_ids, causal=True), source=source)
    return self.head.outputs(x, out)

  def prefill(self, prompts: dict[str, Array], length: int) -> tuple[Float[Array, "batch vocab"], Cache]:
    """Encodes prompts (one example a row, right-padded); returns first logits and a cache for `length` more tokens."""
    ctx = context(prompts, "encoder")
    encoded = self.encode(prompts, ctx)
    batch = encoded.shape[0]
    cache = {
      "layers": {
        "self": self.decoder.empty_cache(self.config, batch, length + 1, encoded.dtype),
        "cross": self.decoder.cross_keys_values(encoded, ctx),
      },
      "source_segments": ctx.segment_ids,
      "task_ids": prompts["task_ids"],
      "index": jnp.zeros((), jnp.int32),
    }
    return self.decode_step(jnp.full((batch,), self.config.decoder_start, jnp.int32), cache)

  def extend(self, tokens: Int[Array, "batch n"], cache: Cache) -> tuple[Float[Array, "batch n vocab"], Cache]:
    """Logits after each of n more tokens in every row, and the cache that holds them."""
    index, n = cache["index"], tokens.shape[1]
    ones = jnp.ones_like(tokens)
    positions = jnp.broadcast_to(jnp.reshape(index, (-1, 1)) + jnp.arange(n), tokens.shape)
    ctx = Context(cache["task_ids"], segment_ids=ones, positions=positions)
    seen = jnp.ones((tokens.shape[0], cache["layers"]["self"]["k"].shape[3]), jnp.int32)
    spec = AttentionSpec(ones, seen, offset=index, causal=True)
    source = (None, ctx, AttentionSpec(ones, cache["source_segments"]))
    x = self.head.embed(tokens, positions)
    x, layers = self.decoder(x, ctx, spec, source=source, cache=cache["layers"], index=index)
    return self.head.logits(x, ctx), {**cache, "layers": layers, "index": index + n}

  def decode_step(self, tokens: Int[Array, " batch"], cache: Cache) -> tuple[Float[Array, "batch vocab"], Cache]:
    """Logits after one more token in every row, and the cache that holds it."""
    logits, cache = self.extend(tokens[:, None], cache)
    return logits[:, 0], cache
