"""Beam search with the results of `transformers` 5: `GenerationMixin._beam_search`, batched, in one while loop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mtx.decode import stops
from mtx.decode.outputs import Decoded
from mtx.decode.rows import reordered, tree_reordered
from mtx.decode.sampling import repetition_penalty
from mtx.decode.settings import Settings
from mtx.models.cache import Cache

_NONE = -1e9  # the score of what does not exist


class Finished(NamedTuple):
  """The best finished outputs of each row so far, best first. `ranks`: sums / lengths ** length_penalty."""

  tokens: Int[Array, "batch beams cells"]
  lengths: Int[Array, "batch beams"]
  sums: Float[Array, "batch beams"]
  ranks: Float[Array, "batch beams"]
  real: Bool[Array, "batch beams"]


class _Carry(NamedTuple):
  step: Int[Array, ""]
  open: Bool[Array, " batch"]
  parents: Int[Array, "batch beams"]
  tokens: Int[Array, "batch beams cells"]
  sums: Float[Array, "batch beams"]
  finished: Finished
  caches: list[Cache]
  state: Any
  seen: Bool[Array, "rows vocab"] | None


def search(step, combine, settings: Settings, logits, caches, state, seen, limits, room: int) -> Decoded:
  """The `samples` best of `beams` outputs a row; arguments as `mtx.decode.loop` has them, rows = [batch * beams].

  A step extends every beam by every token and keeps the best (1 + ends) * beams of a row, so that `beams` of them can
  go on. Those among the best `beams` that end are finished. A row is closed when it cannot be improved
  (`Settings.early_stopping`) or at its limit; it then changes no more.
  """
  beams, back = settings.beams, settings.longest_stop - 1
  batch = limits.shape[0]
  kept = max(2, 1 + len(settings.eos_ids)) * beams

  def choose(logits, carry: _Carry) -> _Carry:
    i = carry.step
    combined, state = combine(logits, carry.state)
    scores = jax.nn.log_softmax(combined, axis=-1)
    if carry.seen is not None:
      scores = repetition_penalty(scores, carry.seen, settings.repetition_penalty)
    vocab = scores.shape[-1]
    total = scores.reshape(batch, beams, vocab) + carry.sums[..., None]
    sums, found = jax.lax.top_k(total.reshape(batch, beams * vocab), kept)
    parents, tokens = found // vocab, (found % vocab).astype(jnp.int32)
    texts = jnp.take_along_axis(carry.tokens, parents[..., None], axis=1)
    texts = jax.lax.dynamic_update_slice(texts, tokens[..., None], (0, 0, back + i))
    window = jax.lax.dynamic_slice(texts, (0, 0, i), (batch, kept, back + 1))
    ends = stops.ends(window, settings) | (i + 1 >= limits)[:, None]
    going_sums, going = jax.lax.top_k(jnp.where(ends, sums + _NONE, sums), beams)
    pick = lambda each: jnp.take_along_axis(each, going, axis=1)
    finished = _merged(carry.finished, texts, sums, ends, i + 1, settings, carry.open)
    chosen = pick(parents)
    seen = carry.seen
    if seen is not None:
      seen = tree_reordered(seen, chosen).at[jnp.arange(batch * beams), pick(tokens).reshape(-1)].set(True)
    full = finished.real.all(axis=1)
    closed = ~_improvable(going_sums[:, 0], finished, i + 1, limits, settings) | ends.all(axis=1)
    if settings.early_stopping is True:
      closed |= full
    return carry._replace(
      step=i + 1,
      open=carry.open & ~closed,
      parents=chosen,
      tokens=jnp.take_along_axis(texts, going[..., None], axis=1),
      sums=going_sums,
      finished=finished,
      state=tree_reordered(state, chosen),
      seen=seen,
    )

  def advance(carry: _Carry) -> _Carry:
    caches = [reordered(cache, carry.parents) for cache in carry.caches]
    newest = jax.lax.dynamic_slice(carry.tokens, (0, 0, back + carry.step - 1), (batch, beams, 1))
    logits, caches = step(newest.reshape(-1), caches)
    return choose(logits, carry._replace(caches=caches))

  blank = jnp.concatenate(
    [jnp.full((batch, beams, back), -1, jnp.int32), jnp.full((batch, beams, room), settings.pad_id, jnp.int32)], axis=2
  )
  nothing = jnp.full((batch, beams), _NONE, jnp.float32)
  start = _Carry(
    step=jnp.zeros((), jnp.int32),
    open=limits > 0,
    parents=jnp.zeros((batch, beams), jnp.int32),
    tokens=blank,
    sums=nothing.at[:, 0].set(0.0),  # all beams are equal at first, and one of them speaks
    finished=Finished(blank, jnp.zeros((batch, beams), jnp.int32), nothing, nothing, jnp.zeros((batch, beams), bool)),
    caches=caches,
    state=state,
    seen=seen,
  )
  end = jax.lax.while_loop(lambda carry: carry.open.any(), advance, choose(logits, start)).finished
  best = jax.tree.map(lambda each: each[:, : settings.samples], end)
  return Decoded(best.tokens[..., back:], best.lengths, jnp.where(best.real, best.sums, 0.0))


def _merged(old: Finished, texts, sums, ends, length, settings: Settings, open_: Bool[Array, " batch"]) -> Finished:
  """`old` with the candidates [batch, kept], best first, that have just ended; closed rows as they were."""
  beams = settings.beams
  just = ends & (jnp.arange(sums.shape[1]) < beams) & open_[:, None] & (sums > _NONE / 2)
  ranks = jnp.where(just, sums / length.astype(jnp.float32) ** settings.length_penalty, _NONE)
  new = Finished(texts, jnp.full_like(texts[..., 0], length), sums, ranks, just)
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), old, new)
  best = jax.lax.top_k(both.ranks, beams)[1]
  at = lambda each: jnp.take_along_axis(each, best.reshape(*best.shape, *[1] * (each.ndim - 2)), axis=1)
  return jax.tree.map(at, both)


def _improvable(best_sum, finished: Finished, length, limits, settings: Settings) -> Bool[Array, " batch"]:
  """Whether the best running beam could still come before one of the finished outputs (or there are too few)."""
  reach = limits if settings.early_stopping == "never" and settings.length_penalty > 0 else length
  hoped = best_sum / jnp.maximum(reach, 1).astype(jnp.float32) ** settings.length_penalty
  return ~finished.real.all(axis=1) | (hoped > finished.ranks.min(axis=1))
