"""Encoder-decoder in the form of T5 1.1 (Raffel et al. 2020, arXiv 1910.10683)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict

from mtx.models.context import Context, context
from mtx.models.head import Head
from mtx.models.outputs import Outputs
from mtx.models.stack import Stack
from pallas_kernels.attention.api import Mask


class EncoderDecoder(nnx.Module):
  """Encoder stack, decoder stack with cross-attention, shared embedding."""

  def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
    self.head = Head(config, rngs=rngs)
    self.encoder = Stack(config, config.encoder_layers, cross=False, bidirectional=True, rngs=rngs)
    self.decoder = Stack(config, config.decoder_layers, cross=True, bidirectional=False, rngs=rngs)
    self.config = config.copy_and_resolve_references().lock() if not config.is_locked else config

  def encode(self, batch: dict[str, Array], ctx: Context) -> Float[Array, "batch length d_model"]:
    x = self.head.embed(batch["encoder_input_tokens"], ctx.positions)
    return self.encoder(x, ctx, Mask(ctx.segment_ids, ctx.segment_ids))[0]

  def __call__(self, batch: dict[str, Array], *, key: PRNGKeyArray | None = None, step=0) -> Outputs:
    """Teacher-forced logits of a packed or padded batch (features: mtx/data/convert.py)."""
    ctx = context(batch, "encoder", key, step)
    encoded = self.encode(batch, ctx.fold(0))
    out = context(batch, "decoder", key, step).fold(1)
    source = (encoded, ctx.with_key(None), Mask(out.segment_ids, ctx.segment_ids))
    x = self.head.embed(batch["decoder_input_tokens"], out.positions)
    x, _ = self.decoder(x, out, Mask(out.segment_ids, out.segment_ids, causal=True), source=source)
    return Outputs(self.head.logits(x, out))

  def prefill(self, prompts: dict[str, Array], length: int) -> tuple[Float[Array, "batch vocab"], dict]:
    """Encodes prompts (one example a row, right-padded); returns first logits and a cache for `length` tokens."""
    ctx = context(prompts, "encoder")
    encoded = self.encode(prompts, ctx)
    batch = encoded.shape[0]
    cache = {
      "layers": {
        "self": self.decoder.empty_cache(self.config, batch, length, encoded.dtype),
        "cross": self.decoder.cross_keys_values(encoded, ctx),
      },
      "source_segments": ctx.segment_ids,
      "task_ids": prompts["task_ids"],
      "index": jnp.zeros((), jnp.int32),
    }
    return self.decode_step(jnp.zeros((batch,), jnp.int32), cache)

  def decode_step(self, tokens: Int[Array, "batch"], cache: dict) -> tuple[Float[Array, "batch vocab"], dict]:
    """Logits after one more token in every row, and the cache that holds it."""
    index = cache["index"]
    length = cache["layers"]["self"]["k"].shape[2]
    one = jnp.ones((tokens.shape[0], 1), jnp.int32)
    ctx = Context(cache["task_ids"], segment_ids=one, positions=one * index)
    mask = Mask(one, jnp.ones((tokens.shape[0], length), jnp.int32), offset=index, causal=True)
    source = (None, ctx, Mask(one, cache["source_segments"]))
    x = self.head.embed(tokens[:, None], ctx.positions)
    x, layers = self.decoder(x, ctx, mask, source=source, cache=cache["layers"], index=index)
    return self.head.logits(x, ctx)[:, 0], {**cache, "layers": layers, "index": index + 1}
