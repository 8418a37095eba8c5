"""Greedy decoding with a key-value cache, for every architecture."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int

from mtx.parallel.rules import batch_sharding, replicated
from mtx.training.parameters import Blueprint, Params


def make_greedy(model: Blueprint, mesh: Mesh, *, eos_id: int):
  """Returns jitted `greedy(params, prompts, length) -> tokens [batch, length]`; compiled once a prompt shape.

  Rows end at `eos_id`, which is kept; what follows is 0 (padding). Decoding stops when every row has ended.
  """

  @partial(jax.jit, static_argnums=2, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))
  def greedy(params: Params, prompts: dict[str, Array], length: int) -> Int[Array, "batch length"]:
    module = model.merge(params)
    logits, cache = module.prefill(prompts, length)
    rows = logits.shape[0]

    def unfinished(carry):
      i, ended, *_ = carry
      return (i < length) & ~ended.all()

    def advance(carry):
      i, ended, logits, cache, tokens = carry
      token = jnp.where(ended, 0, logits.argmax(-1).astype(jnp.int32))
      tokens = jax.lax.dynamic_update_slice(tokens, token[:, None], (0, i))
      logits, cache = model.merge(params).decode_step(token, cache)
      return i + 1, ended | (token == eos_id), logits, cache, tokens

    # Rows that only fill the batch have no prompt and are finished from the start.
    side = "encoder_segment_ids" if "encoder_segment_ids" in prompts else "decoder_segment_ids"
    empty = ~(prompts[side] > 0).any(axis=1)
    first = (0, empty, logits, cache, jnp.zeros((rows, length), jnp.int32))
    return jax.lax.while_loop(unfinished, advance, first)[-1]

  return greedy
