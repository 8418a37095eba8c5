"""Embedding and output head of a model."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from mtx.models.context import Context
from mtx.models.layers import Dense, Embedding, norm, param
from mtx.models.outputs import Outputs
from mtx.parallel.activations import gathered
from pallas_kernels.cross_entropy.head import LinearHead


class Entry(nnx.Module):
  """What happens to token embeddings before the first layer: learned positions, a norm; each if the config has it."""

  def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
    c = config
    self.places, self.offset = c.absolute_positions, c.position_offset
    if self.places:
      init = nnx.initializers.normal(c.embedding_std)
      self.position_table = param(init, (self.places + self.offset, c.d_model), ("position", "embed"), rngs)
    self.norm = norm(c, rngs) if c.embedding_norm else None

  def __call__(
    self, x: Float[Array, "batch length d_model"], positions: Int[Array, "batch length"]
  ) -> Float[Array, "batch length d_model"]:
    """Positions count within the segment; the last one repeats."""
    if self.places:
      rows = jnp.minimum(positions, self.places - 1) + self.offset
      x = x + gathered(self.position_table[...], ("position", "embed"))[rows].astype(x.dtype)
    return x if self.norm is None else self.norm(x)


class Head(nnx.Module):
  """Embedding and output head, tied (one table) or untied."""

  def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
    c = config
    self.embedding = Embedding(c.vocab_size, c.d_model, std=c.embedding_std, rngs=rngs)
    self.entry = Entry(c, rngs=rngs)
    self.encoder_entry = Entry(c, rngs=rngs) if c.separate_entries and c.architecture == "encdec" else None
    self.tied = c.tied_head
    if not c.tied_head:
      self.projection = Dense(c.d_model, c.vocab_size, ("embed", "vocab"), std=c.d_model**-0.5, rngs=rngs)
    self.bias = param(nnx.initializers.zeros, (c.vocab_size,), ("vocab",), rngs) if c.head_bias else None
    self.dtype, self.embedding_scale = jnp.dtype(c.dtype), c.embedding_scale
    self.scale = c.d_model**-0.5 if c.tied_head and c.scale_tied_head else 1.0
    self.soft_cap = c.logit_soft_cap

  def embed(
    self, tokens: Int[Array, "batch length"], positions: Int[Array, "batch length"], side: str = "decoder"
  ) -> Float[Array, "batch length d_model"]:
    """What the first layer of the `side` ("encoder" or "decoder") reads."""
    x = self.embedding(tokens, self.dtype)
    if self.embedding_scale != 1.0:
      x = x * jnp.asarray(self.embedding_scale, self.dtype)
    entry = self.encoder_entry if side == "encoder" and self.encoder_entry is not None else self.entry
    return entry(x, positions)

  def logits(self, x: Float[Array, "batch length d_model"], ctx: Context) -> Float[Array, "batch length vocab"]:
    if self.scale != 1.0:
      x = x * self.scale
    y = (self.embedding.attend(x) if self.tied else self.projection(x, ctx)).astype(jnp.float32)
    if self.bias is not None:
      y = y + self.bias[...]
    return jnp.tanh(y / self.soft_cap) * self.soft_cap if self.soft_cap else y

  def outputs(self, x: Float[Array, "batch length d_model"], ctx: Context) -> Outputs:
    """Logits, and what they can be computed from without all being in memory."""
    if not self.tied and self.projection.adapter is not None:
      return Outputs(self.logits(x, ctx))
    weight = self.embedding.table[...] if self.tied else self.projection.kernel[...]
    bias = None if self.bias is None else self.bias[...]
    return Outputs(self.logits(x, ctx), x, LinearHead(weight, bias, self.tied, self.scale, self.soft_cap))
