"""Pure functions on logits: the filters of `transformers`' generation, greedy choice, and drawing by row."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mtx.decode.settings import Settings

Logits = Float[Array, "*rows vocab"]
_OUT = -jnp.inf


def repetition_penalty(logits: Logits, seen: Bool[Array, "*rows vocab"], penalty: float) -> Logits:
  """Logits of what a row has `seen` divided by `penalty` where positive, multiplied where negative."""
  return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def top_k(logits: Logits, k: int) -> Logits:
  """-inf for all that is less than the k-th largest logit; its equals stay."""
  return _least_kept(logits, jnp.ones_like(logits), k)


def top_p(logits: Logits, p: float) -> Logits:
  """-inf for every token to which likelier ones, of together `p` or more, leave no room; equals stay or go together."""
  return _least_kept(logits, jax.nn.softmax(logits, axis=-1), p)


def _least_kept(logits: Logits, weights: Float[Array, "*rows vocab"], enough: float) -> Logits:
  """-inf for every token whose betters have weights of together `enough` or more.

  The least logit that stays is found by bisection over the bits of float32, as integers in the order of the numbers:
  32 sums instead of a sort, which takes 20 times as long on CPU (and so does XLA's top-k when its indices are unused).
  """
  bits = jax.lax.bitcast_convert_type(logits.astype(jnp.float32), jnp.int32)
  order = jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)

  def halve(_, bounds):
    below, kept = bounds  # betters of what lies at `below` are enough, of what lies at `kept` they are not
    middle = (below & kept) + ((below ^ kept) >> 1)  # their mean, without overflow
    betters = jnp.where(order > middle, weights, 0.0).sum(axis=-1, keepdims=True)
    return jnp.where(betters < enough, below, middle), jnp.where(betters < enough, middle, kept)

  best = order.max(axis=-1, keepdims=True)
  _, least = jax.lax.fori_loop(0, 32, halve, (jnp.full_like(best, jnp.iinfo(jnp.int32).min), best))
  return jnp.where(order < least, _OUT, logits)


def min_p(logits: Logits, p: float) -> Logits:
  """-inf for every token of less than `p` times the probability of the most probable one."""
  probabilities = jax.nn.softmax(logits, axis=-1)
  return jnp.where(probabilities < p * probabilities.max(axis=-1, keepdims=True), _OUT, logits)


def warp(logits: Logits, settings: Settings) -> Logits:
  """Temperature, then top-k, top-p and min-p: logits of the distribution that is drawn from."""
  logits = logits / settings.temperature
  if settings.top_k:
    logits = top_k(logits, settings.top_k)
  if settings.top_p < 1:
    logits = top_p(logits, settings.top_p)
  if settings.min_p:
    logits = min_p(logits, settings.min_p)
  return logits


def greedy(logits: Logits) -> Int[Array, "*rows"]:
  """The first of the most probable tokens. Two plain reductions: XLA's argmax takes five times as long on CPU."""
  places = jnp.arange(logits.shape[-1], dtype=jnp.int32)
  best = logits.max(axis=-1, keepdims=True)
  first = jnp.where(logits == best, places, logits.shape[-1]).min(axis=-1)
  return jnp.minimum(first, logits.shape[-1] - 1)  # no logit equals a NaN


@jax.jit
def row_keys(key: PRNGKeyArray, rows: Int[Array, " batch"]) -> PRNGKeyArray:
  """A key for each row, by its number in the whole input: what it draws depends on neither batch nor mesh."""
  return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def draw(keys: PRNGKeyArray, logits: Float[Array, "batch vocab"]) -> Int[Array, " batch"]:
  """One token a row from softmax(logits), with the row's own key (Gumbel-max)."""
  noise = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[1:], logits.dtype))(keys)
  return greedy(logits + noise)


def chosen_log_probability(logits: Float[Array, "batch vocab"], tokens: Int[Array, " batch"]) -> Float[Array, " batch"]:
  """log softmax(logits) at `tokens`."""
  at = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
  return at - jax.nn.logsumexp(logits, axis=-1)
