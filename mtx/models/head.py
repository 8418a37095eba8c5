"""Embedding and output head of a model."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from mtx.models.context import Context
from mtx.models.layers import Dense, Embedding, param


class Head(nnx.Module):
  """Embedding and output head, tied (one table, scaled by d_model^-1/2) or untied."""

  def __init__(self, config: ConfigDict, *, rngs: nnx.Rngs):
    c = config
    self.embedding = Embedding(c.vocab_size, c.d_model, std=c.embedding_std, rngs=rngs)
    self.places = c.absolute_positions
    if self.places:
      init = nnx.initializers.normal(c.embedding_std)
      self.position_table = param(init, (self.places, c.d_model), ("position", "embed"), rngs)
    self.tied = c.tied_head
    if not c.tied_head:
      self.projection = Dense(c.d_model, c.vocab_size, ("embed", "vocab"), std=c.d_model**-0.5, rngs=rngs)
    self.dtype = jnp.dtype(c.dtype)

  def embed(
    self, tokens: Int[Array, "batch length"], positions: Int[Array, "batch length"]
  ) -> Float[Array, "batch length d_model"]:
    """Token embeddings, plus learned positions within the segment if the model has them (the last one repeats)."""
    x = self.embedding(tokens, self.dtype)
    if self.places:
      x = x + self.position_table[...][jnp.minimum(positions, self.places - 1)].astype(self.dtype)
    return x

  def logits(self, x: Float[Array, "batch length d_model"], ctx: Context) -> Float[Array, "batch length vocab"]:
    y = self.embedding.attend(x) if self.tied else self.projection(x, ctx)
    return y.astype(jnp.float32)
