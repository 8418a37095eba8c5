"""The decoding loop: one `jax.jit`, one static cache a model, any number of models and rows that end where they like.

All rows step together; what differs between rows (prompt lengths, limits, ends) is data, so that only the shape of the
prompts and the room for outputs, a bucket of lengths, decide what is compiled. The host hears of it when all is done.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mtx.decode import beam, sampling, stops
from mtx.decode.lengths import bucket
from mtx.decode.outputs import Decoded
from mtx.decode.rows import repeated
from mtx.decode.settings import Settings
from mtx.errors import UserError
from mtx.models.cache import Cache
from mtx.parallel.activations import within
from mtx.parallel.rules import batch_sharding, replicated
from mtx.training.parameters import Blueprint, Params

Combine = Callable[[list[Array], Any], tuple[Array, Any]]
Step = Callable[[Int[Array, " rows"], list[Cache]], tuple[list[Array], list[Cache]]]


def first(logits: list[Float[Array, "rows vocab"]], state: Any) -> tuple[Float[Array, "rows vocab"], Any]:
  """The combination that a single model needs: its own logits."""
  return logits[0], state


def make_decode(models: Sequence[Blueprint], mesh: Mesh, settings: Settings, *, combine: Combine = first):
  """Returns `decode(params, prompts, limits, key, *, room=None) -> Decoded`, compiled once a prompt shape and room.

  Args:
    models: all have the same ids for the same tokens.
    settings: with the vocabulary's ids, see `mtx.decode.stops.for_vocabulary`.
    combine: `combine(logits, state) -> (logits, state)`, pure: the last step's logits of every model, float32
      [rows, vocab], to those that a token is chosen by; temperature and filters come after it. `combine.init(rows)`, if
      it is there, makes the first state: arrays whose first axis is rows; otherwise the state is ().

  The function that is returned takes
    params, prompts: one of each a model; prompts as `mtx.data.convert.prompts` makes them, all with the same rows.
    limits: int32[batch], most tokens of each row; 0 for rows that only fill the batch.
    key: one for all, or one a row (`mtx.decode.sampling.row_keys`), which makes what a row draws independent of what
      else is in the batch; None where nothing is drawn.
    room: tokens that fit into the cache; the bucket of the largest limit if None, which then must be on the host.
  """

  @partial(jax.jit, static_argnums=4, in_shardings=(None, *[batch_sharding(mesh)] * 3), out_shardings=replicated(mesh))
  @within(mesh)
  def run(params, prompts, limits, keys, room: int) -> Decoded:
    filled = [model.merge(p).prefill(each, room) for model, p, each in zip(models, params, prompts, strict=True)]
    logits = [jnp.repeat(first_logits, settings.width, axis=0) for first_logits, _ in filled]
    caches = [repeated(cache, settings.width) for _, cache in filled]
    rows = limits.shape[0] * settings.width
    state = combine.init(rows) if hasattr(combine, "init") else ()
    seen = None
    if settings.repetition_penalty != 1:
      seen = jnp.repeat(_in_prompt(models[0], params[0], prompts[0], logits[0].shape[-1]), settings.width, axis=0)

    def step(tokens, caches):
      made = [m.merge(p).decode_step(tokens, c) for m, p, c in zip(models, params, caches, strict=True)]
      return [each for each, _ in made], [cache for _, cache in made]

    limits = jnp.minimum(limits, room)
    if settings.beams > 1:
      return beam.search(step, combine, settings, logits, caches, state, seen, limits, room)
    return _rows(step, combine, settings, logits, caches, state, seen, limits, keys, room)

  def decode(params, prompts, limits, key: PRNGKeyArray | None, *, room: int | None = None) -> Decoded:
    room = bucket(int(np.max(limits, initial=1))) if room is None else room
    keys = None
    if settings.temperature:
      if key is None:
        raise UserError(f"decode.temperature is {settings.temperature}, and there is no key to draw with.")
      keys = key if key.ndim else sampling.row_keys(key, jnp.arange(len(limits)))
    return run(tuple(params), tuple(prompts), jnp.asarray(limits, jnp.int32), keys, room)

  return decode


class _Carry(NamedTuple):
  """Rows are [batch * samples]. `tokens` begins with as many cells as a stop sequence looks back."""

  step: Int[Array, ""]
  ended: Bool[Array, " rows"]
  tokens: Int[Array, "rows cells"]
  lengths: Int[Array, " rows"]
  scores: Float[Array, " rows"]
  caches: list[Cache]
  state: Any
  seen: Bool[Array, "rows vocab"] | None


def _rows(step: Step, combine, settings, logits, caches, state, seen, limits, keys, room: int) -> Decoded:
  """Greedy choice, or drawing: every row for itself."""
  back, samples = settings.longest_stop - 1, settings.samples
  batch = limits.shape[0]
  rows = batch * samples
  limits = jnp.repeat(limits, samples)
  if keys is not None:
    each = jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(samples)))(keys)
    keys = each.reshape(rows)

  def choose(logits, carry: _Carry) -> _Carry:
    """The carry with one more token in every row that has not ended."""
    i = carry.step
    combined, state = combine(logits, carry.state)
    wanted = combined
    if carry.seen is not None:
      wanted = sampling.repetition_penalty(wanted, carry.seen, settings.repetition_penalty)
    if keys is None:
      tokens = sampling.greedy(wanted)
    else:
      here = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, i)
      tokens = sampling.draw(here, sampling.warp(wanted, settings))
    score = jnp.where(carry.ended, 0.0, sampling.chosen_log_probability(combined, tokens))
    tokens = jnp.where(carry.ended, settings.pad_id, tokens)
    written = jax.lax.dynamic_update_slice(carry.tokens, tokens[:, None], (0, back + i))
    window = jax.lax.dynamic_slice(written, (0, i), (rows, back + 1))
    return carry._replace(
      step=i + 1,
      ended=carry.ended | stops.ends(window, settings) | (i + 1 >= limits),
      tokens=written,
      lengths=carry.lengths + ~carry.ended,
      scores=carry.scores + score,
      state=state,
      seen=None if carry.seen is None else carry.seen.at[jnp.arange(rows), tokens].set(True),
    )

  def advance(carry: _Carry) -> _Carry:
    newest = jax.lax.dynamic_slice(carry.tokens, (0, back + carry.step - 1), (rows, 1))[:, 0]
    logits, caches = step(newest, carry.caches)
    return choose(logits, carry._replace(caches=caches))

  start = _Carry(
    step=jnp.zeros((), jnp.int32),
    ended=limits <= 0,
    tokens=jnp.concatenate(
      [jnp.full((rows, back), -1, jnp.int32), jnp.full((rows, room), settings.pad_id, jnp.int32)], axis=1
    ),
    lengths=jnp.zeros(rows, jnp.int32),
    scores=jnp.zeros(rows, jnp.float32),
    caches=caches,
    state=state,
    seen=seen,
  )
  # The prompt's logits choose the first token, and the last token is never read: a model runs once less than it speaks.
  end = jax.lax.while_loop(lambda carry: ~carry.ended.all(), advance, choose(logits, start))
  grouped = lambda each: each.reshape(batch, samples, *each.shape[1:])
  return Decoded(grouped(end.tokens[:, back:]), grouped(end.lengths), grouped(end.scores), end.state)


def _in_prompt(model: Blueprint, params: Params, prompts: dict[str, Array], vocab: int) -> Bool[Array, "batch vocab"]:
  """What a repetition penalty sees in each prompt; see `Settings.repetition_penalty`."""
  if "decoder_input_tokens" in prompts:
    tokens = jnp.where(prompts["decoder_segment_ids"] > 0, prompts["decoder_input_tokens"], vocab)
  else:
    start = model.merge(params).config.decoder_start
    tokens = jnp.full((prompts["task_ids"].shape[0], 1), start, jnp.int32)
  rows = jnp.arange(tokens.shape[0])[:, None]
  return jnp.zeros((tokens.shape[0], vocab), bool).at[rows, tokens].set(True, mode="drop")
