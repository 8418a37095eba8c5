"""Speculative decoding: a small model drafts, the large one reads the whole draft in one call, and what is emitted has
the large one's distribution (Leviathan et al. 2023, arXiv 2211.17192, algorithm 1 and appendix A.1).

Every row keeps its own part of its draft, so rows advance at their own pace: each has its own index in both caches.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mtx.decode import sampling, stops
from mtx.decode.combine import resized
from mtx.decode.lengths import bucket
from mtx.decode.loop import Combine, first
from mtx.decode.outputs import Decoded
from mtx.decode.rows import repeated
from mtx.decode.settings import Settings
from mtx.errors import UserError
from mtx.models.cache import Cache, per_row, rewind
from mtx.parallel.activations import within
from mtx.parallel.rules import batch_sharding, replicated
from mtx.training.parameters import Blueprint


def make_speculative(
  targets: Sequence[Blueprint],
  drafter: Blueprint,
  mesh: Mesh,
  settings: Settings,
  *,
  draft: int = 4,
  combine: Combine = first,
):
  """Returns `decode(params, prompts, limits, key, *, room=None) -> (Decoded, rounds)`, as `make_decode` does.

  With temperature 0 the tokens are those of greedy decoding; otherwise every output is distributed as without a
  drafter, whatever the drafter is, though with one key the two draw different ones.

  Args:
    targets: the models that `combine` makes one of, as in `make_decode`.
    drafter: has the same ids for the same tokens. The closer it is to the combination, the more of its drafts stay.
    settings: temperature and filters hold for both sides. No beams, and no repetition penalty, under which a token's
      distribution depends on tokens of the draft.
    draft: tokens that are drafted at a time.
    combine: its state, if it has one, follows the tokens that stay.

  The function that is returned takes `params` and `prompts` of the targets and then of the drafter. `rounds`
  int32[batch, samples] is how often the targets ran for a row after its prompt; without a drafter they run once for
  every token but the first.

  Raises:
    UserError: settings that do not fit, or a draft of no token.
  """
  _check(settings, draft)
  models = [*targets, drafter]

  @partial(jax.jit, static_argnums=4, in_shardings=(None, *[batch_sharding(mesh)] * 3), out_shardings=replicated(mesh))
  @within(mesh)
  def run(params, prompts, limits, keys, room: int):
    # A row that lacks one token still reads a whole draft.
    merged = [model.merge(p) for model, p in zip(models, params, strict=True)]
    filled = [model.prefill(each, room + draft) for model, each in zip(merged, prompts, strict=True)]
    logits = [jnp.repeat(each, settings.samples, axis=0) for each, _ in filled[:-1]]
    caches = [per_row(repeated(cache, settings.samples)) for _, cache in filled]
    rows = limits.shape[0] * settings.samples
    limits = jnp.repeat(jnp.minimum(limits, room), settings.samples)
    state = combine.init(rows) if hasattr(combine, "init") else ()
    if keys is not None:
      each = jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(settings.samples)))(keys)
      keys = each.reshape(rows)
    steps = _Steps([partial(_step, m, p) for m, p in zip(models, params, strict=True)], combine, settings, draft)
    end = _rounds(steps, logits, caches, state, limits, keys, room)
    grouped = lambda each: each.reshape(limits.shape[0] // settings.samples, settings.samples, *each.shape[1:])
    tokens = grouped(end.tokens[:, settings.longest_stop - 1 :][:, :room])
    return Decoded(tokens, grouped(end.lengths), grouped(end.scores), end.state), grouped(end.rounds)

  def decode(params, prompts, limits, key: PRNGKeyArray | None, *, room: int | None = None):
    room = bucket(int(np.max(limits, initial=1))) if room is None else room
    keys = None
    if settings.temperature:
      if key is None:
        raise UserError(f"decode.temperature is {settings.temperature}, and there is no key to draw with.")
      keys = key if key.ndim else sampling.row_keys(key, jnp.arange(len(limits)))
    return run(tuple(params), tuple(prompts), jnp.asarray(limits, jnp.int32), keys, room)

  return decode


def verify(
  p: Float[Array, "batch n1 vocab"], q: Float[Array, "batch n vocab"], tokens: Int[Array, "batch n"], keys: PRNGKeyArray
) -> tuple[Int[Array, " batch"], Int[Array, " batch"]]:
  """Which of the drafted tokens stay, and the token that follows them (algorithm 1).

  A token x stays with probability min(1, p(x) / q(x)) if all before it did; instead of the first that does not, one is
  drawn from max(0, p - q), normalised. Where all stay, one more is drawn from p.

  Args:
    p: probabilities under the target: of each drafted token's place, and of the place after them.
    q: probabilities that `tokens` were drawn from.
    keys: one a row.

  Returns:
    (how many stay, the next token).
  """
  rows, drafted = jnp.arange(len(tokens)), tokens.shape[1]
  accepting, drawing = jax.vmap(lambda key: jax.random.split(key))(keys).swapaxes(0, 1)
  uniform = jax.vmap(lambda key: jax.random.uniform(key, (drafted,)))(accepting)
  at = lambda each: jnp.take_along_axis(each[:, :drafted], tokens[..., None], axis=-1)[..., 0]
  kept = _leading(uniform * at(q) < at(p))
  # After a whole draft q is 0, and what is left of p is p.
  here, rest = p[rows, kept], jnp.pad(q, ((0, 0), (0, 1), (0, 0)))[rows, kept]
  left = jnp.maximum(here - rest, 0.0)
  # Nothing is left only where p equals q but for rounding.
  left = jnp.where(left.sum(-1, keepdims=True) > 0, left, here)
  return kept, sampling.draw(drawing, jnp.log(left))


def verify_greedy(
  best: Int[Array, "batch n1"], tokens: Int[Array, "batch n"]
) -> tuple[Int[Array, " batch"], Int[Array, " batch"]]:
  """`verify` for the target's most probable tokens."""
  kept = _leading(best[:, :-1] == tokens)
  return kept, best[jnp.arange(len(best)), kept]


def _leading(accepted: Bool[Array, "batch n"]) -> Int[Array, " batch"]:
  return jnp.cumprod(accepted.astype(jnp.int32), axis=1).sum(axis=1)


class _Steps(NamedTuple):
  """`models` are functions (tokens [rows, n], cache) -> (logits [rows, n, vocab], cache), the drafter last."""

  models: list
  combine: Combine
  settings: Settings
  draft: int


class _Carry(NamedTuple):
  """`tokens` begins with as many cells as a stop sequence looks back, and ends with room for a draft. The newest token
  of a row stands in no cache yet."""

  round: Int[Array, ""]
  ended: Bool[Array, " rows"]
  tokens: Int[Array, "rows cells"]
  lengths: Int[Array, " rows"]
  scores: Float[Array, " rows"]
  rounds: Int[Array, " rows"]
  caches: list[Cache]
  state: Any


def _step(model: Blueprint, params, tokens: Int[Array, "rows n"], cache: Cache):
  return model.merge(params).extend(tokens, cache)


def _rounds(steps: _Steps, logits, caches, state, limits, keys, room: int) -> _Carry:
  settings, draft = steps.settings, steps.draft
  rows, back = len(limits), settings.longest_stop - 1
  every = jnp.arange(rows)

  def key_of(*numbers) -> PRNGKeyArray:
    made = keys
    for number in numbers:
      made = jax.vmap(jax.random.fold_in, in_axes=(0, None))(made, number)
    return made

  def emit(carry: _Carry, tokens: Int[Array, "rows n"], log_p: Float[Array, "rows n"], offered) -> tuple[_Carry, Array]:
    """The carry with the first `offered` [rows] of `tokens`, up to a row's end; and how many of them that is."""
    place = jnp.arange(tokens.shape[1])
    put = jax.vmap(lambda row, new, at: jax.lax.dynamic_update_slice(row, new, (at,)))
    written = put(carry.tokens, tokens, back + carry.lengths)
    cells = carry.lengths[:, None, None] + place[:, None] + jnp.arange(back + 1)
    ends = stops.ends(written[every[:, None, None], cells], settings)
    before = jnp.cumsum(ends, axis=1) - ends  # ends before this token
    stays = (place < offered[:, None]) & (before == 0) & (carry.lengths[:, None] + place < limits[:, None])
    stays &= ~carry.ended[:, None]
    kept = stays.sum(axis=1)
    lengths = carry.lengths + kept
    carry = carry._replace(
      ended=carry.ended | (stays & ends).any(axis=1) | (lengths >= limits),
      tokens=put(carry.tokens, jnp.where(stays, tokens, settings.pad_id), back + carry.lengths),
      lengths=lengths,
      scores=carry.scores + jnp.where(stays, log_p, 0.0).sum(axis=1),
    )
    return carry, kept

  def begin(carry: _Carry) -> _Carry:
    """The first token of every row, from the prompts' logits."""
    combined, state = steps.combine(logits, carry.state)
    if keys is None:
      token = sampling.greedy(combined)
    else:
      token = sampling.draw(key_of(0), sampling.warp(combined, settings))
    log_p = sampling.chosen_log_probability(combined, token)
    return emit(carry._replace(state=state), token[:, None], log_p[:, None], jnp.ones(rows, jnp.int32))[0]

  def advance(carry: _Carry) -> _Carry:
    newest = carry.tokens[every, back + jnp.maximum(carry.lengths, 1) - 1]
    width = logits[0].shape[-1]

    def one(drafting, i):
      token, cache = drafting
      made, cache = steps.models[-1](token[:, None], cache)
      made = resized(made[:, 0], width)
      if keys is None:
        token = sampling.greedy(made)
        return (token, cache), (token, ())
      warped = sampling.warp(made, settings)
      token = sampling.draw(key_of(carry.round, i), warped)
      return (token, cache), (token, jax.nn.softmax(warped))

    # One step more than is drafted: should all stay, the drafter has read its last token, too.
    (_, cache), (drafted, q) = jax.lax.scan(one, (newest, carry.caches[-1]), jnp.arange(draft + 1))
    drafted = drafted[:draft].swapaxes(0, 1)
    read = jnp.concatenate([newest[:, None], drafted], axis=1)
    made = [step(read, each) for step, each in zip(steps.models[:-1], carry.caches[:-1], strict=True)]

    def joined(state, place):
      combined, state = steps.combine(place, state)
      return state, (combined, state)

    by_place = [each.swapaxes(0, 1) for each, _ in made]
    _, (combined, states) = jax.lax.scan(joined, carry.state, by_place)
    if keys is None:
      kept, following = verify_greedy(sampling.greedy(combined).swapaxes(0, 1), drafted)
    else:
      p = jax.nn.softmax(sampling.warp(combined, settings)).swapaxes(0, 1)
      kept, following = verify(p, q[:draft].swapaxes(0, 1), drafted, key_of(carry.round, draft + 1))
    place = jnp.arange(draft + 1)
    tokens = jnp.where(place == kept[:, None], following[:, None], jnp.pad(drafted, ((0, 0), (0, 1))))
    log_p = jax.vmap(sampling.chosen_log_probability)(combined, tokens.swapaxes(0, 1)).swapaxes(0, 1)
    active = ~carry.ended
    after, stayed = emit(carry, tokens, log_p, kept + 1)
    back_to = draft + 1 - stayed
    follow = lambda old, new: jnp.concatenate([old[None], new])[stayed, every]
    return after._replace(
      round=carry.round + 1,
      rounds=carry.rounds + active,
      caches=[rewind(each, back_to) for each in [*(each for _, each in made), cache]],
      state=jax.tree.map(follow, carry.state, states),
    )

  start = _Carry(
    round=jnp.ones((), jnp.int32),
    ended=limits <= 0,
    tokens=jnp.concatenate(
      [jnp.full((rows, back), -1, jnp.int32), jnp.full((rows, room + draft + 1), settings.pad_id, jnp.int32)], axis=1
    ),
    lengths=jnp.zeros(rows, jnp.int32),
    scores=jnp.zeros(rows, jnp.float32),
    rounds=jnp.zeros(rows, jnp.int32),
    caches=caches,
    state=state,
  )
  return jax.lax.while_loop(lambda carry: ~carry.ended.all(), advance, begin(start))


def _check(settings: Settings, draft: int) -> None:
  for name, nothing in (("beams", 1), ("repetition_penalty", 1.0)):
    if getattr(settings, name) != nothing:
      raise UserError(
        f"decode.{name} is {getattr(settings, name)!r}, which speculative decoding does not have.",
        hint=f"leave it at {nothing}, or decode without a drafter.",
      )
  if draft < 1:
    raise UserError(f"a draft of {draft} tokens: it must be 1 or more.")
