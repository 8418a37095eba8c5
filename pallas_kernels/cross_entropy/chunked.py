"""Cross-entropy some tokens at a time in XLA, on any device: the logits of one chunk are all that is ever there, in
both directions."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.cross_entropy.fused import Gradients, Kernels, Needed, fused
from pallas_kernels.cross_entropy.head import LinearHead
from pallas_kernels.cross_entropy.loss import TokenLoss
from pallas_kernels.cross_entropy.split import Split
from pallas_kernels.tuning.lookup import tuned

TOKENS = 1024


def linear_cross_entropy(
  x: Float[Array, "batch length d_model"],
  head: LinearHead,
  targets: Int[Array, "batch length"],
  weights: Float[Array, "batch length"],
  loss: TokenLoss,
  split: Split,
  *,
  tokens: int | None = None,
) -> tuple[Float[Array, ""], Float[Array, "batch length"]]:
  """See `pallas_kernels.cross_entropy.api`.

  Args:
    tokens: most of a chunk; None: as many as are fast.
  """
  kernels = Kernels(partial(losses, tokens=tokens), partial(gradients, tokens=tokens))
  return fused(kernels, loss, split, x, head, targets, weights)


def losses(
  x: Float[Array, "token d_model"],
  head: LinearHead,
  targets: Int[Array, " token"],
  loss: TokenLoss,
  axis: str | None,
  *,
  tokens: int | None = None,
) -> Float[Array, " token"]:
  """See `pallas_kernels.cross_entropy.fused.Kernels`."""

  def of_chunk(_, chunk):
    x, targets = chunk
    _, log_z, score, mean = _scored(x, targets, head, loss, axis)
    return None, loss(log_z, score, mean)

  _, found = jax.lax.scan(of_chunk, None, _chunks(tokens, head, x, targets))
  return found.reshape(-1)[: x.shape[0]]


def gradients(
  x: Float[Array, "token d_model"],
  head: LinearHead,
  targets: Int[Array, " token"],
  weights: Float[Array, " token"],
  loss: TokenLoss,
  needed: Needed,
  axis: str | None,
  *,
  tokens: int | None = None,
) -> tuple[Float[Array, " token"], Gradients]:
  """See `pallas_kernels.cross_entropy.fused.Kernels`."""
  wide = jnp.promote_types(x.dtype, jnp.float32)
  weight_first = head.vocabulary_first

  def of_chunk(sums, chunk):
    x, targets, weights = chunk
    logits, log_z, score, mean = _scored(x, targets, head, loss, axis)
    hot = jnp.arange(logits.shape[1]) == (targets - _start(head, axis))[:, None]
    d = jnp.exp(logits - log_z[:, None]) * (1 + 2 * loss.z_loss * log_z)[:, None]
    d = d - (1 - loss.label_smoothing) * hot - loss.label_smoothing / (head.vocabulary * _ways(axis))
    d = d * weights[:, None]
    if head.soft_cap:
      d = d * (1 - jnp.square(logits / head.soft_cap))
    of_bias = sums.bias + d.sum(0) if needed.bias else None
    d = (d * head.scale).astype(x.dtype)
    product = partial(jnp.einsum, preferred_element_type=wide)
    of_x = None
    if needed.x:
      of_x = product("tv,vd->td" if weight_first else "tv,dv->td", d, head.weight)
      of_x = (of_x if axis is None else jax.lax.psum(of_x, axis)).astype(x.dtype)
    of_weight = None
    if needed.weight:
      of_weight = sums.weight + product("tv,td->vd" if weight_first else "tv,td->dv", d, x)
    return Gradients(None, of_weight, of_bias), (loss(log_z, score, mean), of_x)

  zeros = lambda there, shape: jnp.zeros(shape, wide) if there else None
  start = Gradients(None, zeros(needed.weight, head.weight.shape), zeros(needed.bias, (head.vocabulary,)))
  sums, (found, of_x) = jax.lax.scan(of_chunk, start, _chunks(tokens, head, x, targets, weights))
  if of_x is not None:
    of_x = of_x.reshape(-1, x.shape[1])[: x.shape[0]]
  return found.reshape(-1)[: x.shape[0]], sums._replace(x=of_x)


def _chunks(tokens: int | None, head: LinearHead, x: Array, *more: Array) -> tuple[Array, ...]:
  """Arrays by token as [chunk, token of it, ...]: as few chunks as may be, and all of them as full as may be."""
  most = tokens or tuned("cross_entropy_chunked", {"tokens": TOKENS}, x.dtype, x.shape[1], head.vocabulary)["tokens"]
  number = -(-x.shape[0] // most)
  size = -(-x.shape[0] // number)
  fill = lambda each: jnp.pad(each, ((0, number * size - each.shape[0]), *[(0, 0)] * (each.ndim - 1)))
  return tuple(fill(each).reshape(number, size, *each.shape[1:]) for each in (x, *more))


def _scored(
  x: Float[Array, "token d_model"], targets: Int[Array, " token"], head: LinearHead, loss: TokenLoss, axis: str | None
):
  """(logits [token, vocab], log Z, target's logit, mean logit [token]); the last three over all of the vocabulary."""
  logits, vocabulary = head.logits(x), head.vocabulary * _ways(axis)
  of_all = lambda reduce, each: each if axis is None else reduce(each, axis)
  highest = of_all(jax.lax.pmax, logits.max(-1))
  log_z = highest + jnp.log(of_all(jax.lax.psum, jnp.exp(logits - highest[:, None]).sum(-1)))
  here = targets - _start(head, axis)
  score = jnp.take_along_axis(logits, jnp.clip(here, 0, head.vocabulary - 1)[:, None], axis=1)[:, 0]
  score = of_all(jax.lax.psum, jnp.where((here >= 0) & (here < head.vocabulary), score, 0))
  score = jnp.where((targets >= 0) & (targets < vocabulary), score, jnp.nan)
  mean = of_all(jax.lax.psum, logits.sum(-1)) / vocabulary if loss.label_smoothing else 0.0
  return logits, log_z, score, mean


def _start(head: LinearHead, axis: str | None) -> Int[Array, ""] | int:
  """The first token of this part of the vocabulary."""
  return 0 if axis is None else jax.lax.axis_index(axis) * head.vocabulary


def _ways(axis: str | None) -> int:
  return 1 if axis is None else jax.lax.axis_size(axis)


def refusal(x, head, loss, split) -> None:
  """Nothing is refused."""
