"""Cross-entropy some tokens at a time in XLA, on any device: the logits of one chunk are all that is ever there, in
both directions, and tokens that do not count have none."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.cross_entropy.fused import Gradients, Kernels, Needed, fused
from pallas_kernels.cross_entropy.head import LinearHead
from pallas_kernels.cross_entropy.loss import TokenLoss
from pallas_kernels.cross_entropy.split import Split
from pallas_kernels.tuning.lookup import tuned

# Of a chunk. Head and sums of its gradient go through memory once a chunk: about a thousand tokens give a chip enough
# to compute meanwhile (256 operations a byte), and a CPU's caches want fewer.
TOKENS, TOKENS_ON_CPU = 1024, 128
BLOCK = 4096


def linear_cross_entropy(
  x: Float[Array, "batch length d_model"],
  head: LinearHead,
  targets: Int[Array, "batch length"],
  weights: Float[Array, "batch length"],
  counted: Bool[Array, "batch length"] | None,
  loss: TokenLoss,
  split: Split,
  *,
  tokens: int | None = None,
  block: int = BLOCK,
) -> tuple[Float[Array, ""], Float[Array, "batch length"]]:
  """See `pallas_kernels.cross_entropy.api`.

  Args:
    tokens: most of a chunk; None: as the tuning table or the kind of the default device says.
    block: part of the vocabulary that gradients are computed of at a time.
  """
  kernels = Kernels(partial(losses, tokens=tokens), partial(gradients, tokens=tokens, block=block))
  return fused(kernels, loss, split, x, head, targets, weights, counted)


def losses(
  x: Float[Array, "token d_model"],
  head: LinearHead,
  targets: Int[Array, " token"],
  count: Int[Array, ""] | int,
  loss: TokenLoss,
  axis: str | None,
  *,
  tokens: int | None = None,
) -> Float[Array, " token"]:
  """See `pallas_kernels.cross_entropy.fused.Kernels`."""
  number, size = _chunks(x, head, tokens)
  x, targets = _filled(number * size, x, targets)

  def of_chunk(i, found):
    _, log_z, score, mean = _scored(_at(x, i, size), _at(targets, i, size), head, loss, axis)
    return _put(found, loss(log_z, score, mean), i)

  found = jnp.zeros(targets.shape, jnp.promote_types(x.dtype, jnp.float32))
  return jax.lax.fori_loop(0, -(-count // size), of_chunk, found)


def gradients(
  x: Float[Array, "token d_model"],
  head: LinearHead,
  targets: Int[Array, " token"],
  weights: Float[Array, " token"],
  count: Int[Array, ""] | int,
  loss: TokenLoss,
  needed: Needed,
  axis: str | None,
  *,
  tokens: int | None = None,
  block: int = BLOCK,
) -> tuple[Float[Array, " token"], Gradients]:
  """See `pallas_kernels.cross_entropy.fused.Kernels`."""
  wide = jnp.promote_types(x.dtype, jnp.float32)
  number, size = _chunks(x, head, tokens)
  all_x, all_targets, all_weights = _filled(number * size, x, targets, weights)

  def of_chunk(i, carry):
    found, sums = carry
    x, targets, weights = (_at(each, i, size) for each in (all_x, all_targets, all_weights))
    logits, log_z, score, mean = _scored(x, targets, head, loss, axis)
    here = targets - _start(head, axis)

    def of_block(carry, start, size):
      of_x, sums = carry
      weight = jax.lax.dynamic_slice_in_dim(head.weight, start, size, 0 if head.vocabulary_first else 1)
      some = jax.lax.dynamic_slice_in_dim(logits, start, size, 1)
      d = jnp.exp(some - log_z[:, None]) * (1 + 2 * loss.z_loss * log_z)[:, None]
      d = d - (1 - loss.label_smoothing) * (start + jnp.arange(size) == here[:, None])
      d = (d - loss.label_smoothing / (head.vocabulary * _ways(axis))) * weights[:, None]
      if head.soft_cap:
        d = d * (1 - jnp.square(some / head.soft_cap))
      of_bias = _plus(sums.bias, d.sum(0), start, 0) if needed.bias else None
      d = (d * head.scale).astype(x.dtype)
      product = partial(jnp.einsum, preferred_element_type=wide)
      if needed.x:
        of_x = of_x + product("tv,vd->td" if head.vocabulary_first else "tv,dv->td", d, weight)
      of_weight = None
      if needed.weight:
        more = product("tv,td->vd" if head.vocabulary_first else "tv,td->dv", d, x)
        of_weight = _plus(sums.weight, more, start, 0 if head.vocabulary_first else 1)
      return of_x, Gradients(None, of_weight, of_bias)

    nothing = jnp.zeros(x.shape, wide) if needed.x else None
    of_x, of_head = _blocks(head.vocabulary, block, of_block, (nothing, sums._replace(x=None)))
    if needed.x:
      of_x = of_x if axis is None else jax.lax.psum(of_x, axis)
      of_x = _put(sums.x, of_x.astype(x.dtype), i)
    return _put(found, loss(log_z, score, mean), i), of_head._replace(x=of_x)

  zeros = lambda there, shape, dtype=wide: jnp.zeros(shape, dtype) if there else None
  start = Gradients(
    zeros(needed.x, all_x.shape, x.dtype),
    zeros(needed.weight, head.weight.shape),
    zeros(needed.bias, (head.vocabulary,)),
  )
  found = jnp.zeros(all_targets.shape, wide)
  return jax.lax.fori_loop(0, -(-count // size), of_chunk, (found, start))


def _chunks(x: Float[Array, "token d_model"], head: LinearHead, tokens: int | None) -> tuple[int, int]:
  """(how many, of how many tokens): as few as may be, and all of them as full as may be."""
  default = {"tokens": TOKENS_ON_CPU if jax.default_backend() == "cpu" else TOKENS}
  most = tokens or tuned("cross_entropy_chunked", default, x.dtype, x.shape[1], head.vocabulary)["tokens"]
  number = -(-x.shape[0] // most)
  return number, -(-x.shape[0] // number)


def _filled(tokens: int, *arrays: Array) -> tuple[Array, ...]:
  """Arrays by token, with zeros behind."""
  return tuple(jnp.pad(each, ((0, tokens - each.shape[0]), *[(0, 0)] * (each.ndim - 1))) for each in arrays)


def _at(whole: Array, i: Int[Array, ""], size: int) -> Array:
  """Chunk i of an array by token."""
  return jax.lax.dynamic_slice_in_dim(whole, i * size, size)


def _put(whole: Array, chunk: Array, i: Int[Array, ""]) -> Array:
  """`whole` with its chunk i."""
  return jax.lax.dynamic_update_slice_in_dim(whole, chunk, i * chunk.shape[0], 0)


def _blocks(vocabulary: int, size: int, function, carry):
  """`function(carry, start, size)` over a vocabulary block by block, the last one with what is left."""
  whole, rest = divmod(vocabulary, size)
  if whole:
    carry = jax.lax.fori_loop(0, whole, lambda i, carry: function(carry, i * size, size), carry)
  return function(carry, whole * size, rest) if rest else carry


def _plus(sums: Array, more: Array, start: Int[Array, ""] | int, axis: int) -> Array:
  """`sums` with `more` added to a part of it, in place."""
  old = jax.lax.dynamic_slice_in_dim(sums, start, more.shape[axis], axis)
  return jax.lax.dynamic_update_slice_in_dim(sums, old + more, start, axis)


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
