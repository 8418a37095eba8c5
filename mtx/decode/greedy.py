"""Greedy decoding of one model: `mtx.decode.loop` with nothing to set."""

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int

from mtx.decode.loop import make_decode
from mtx.decode.settings import Settings
from mtx.training.parameters import Blueprint, Params


def make_greedy(model: Blueprint, mesh: Mesh, *, eos_id: int):
  """Returns `greedy(params, prompts, length) -> tokens [batch, length]`; compiled once a prompt shape and length.

  Rows end at `eos_id`, which is kept; what follows is 0 (padding). Rows without a prompt only fill the batch, and are
  padding throughout. Decoding stops when every row has ended.
  """
  # All of them, so that what gin binds `decode` to changes nothing here.
  settings = Settings(
    samples=1,
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    repetition_penalty=1.0,
    beams=1,
    stop=(),
    eos_ids=(eos_id,),
  )
  decode = make_decode([model], mesh, settings)

  def greedy(params: Params, prompts: dict[str, Array], length: int) -> Int[Array, "batch length"]:
    side = "encoder_segment_ids" if "encoder_segment_ids" in prompts else "decoder_segment_ids"
    limits = jnp.where((prompts[side] > 0).any(axis=1), length, 0)
    return decode([params], [prompts], limits, None, room=length).tokens[:, 0]

  return greedy
