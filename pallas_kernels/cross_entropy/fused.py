"""The sum of weighted token losses with gradients that are computed beside the losses, while the logits are there.

The sum's cotangent is one number, so hidden states' and head's gradients are known up to it as soon as a token's
logits are: three products as with logits in memory, where computing logits again takes four (Hsu et al. 2024, arXiv
2410.10989). The token losses have exact gradients as well, by computing logits again.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.cross_entropy.head import LinearHead
from pallas_kernels.cross_entropy.loss import TokenLoss, weighted
from pallas_kernels.cross_entropy.split import Split


class Gradients(NamedTuple):
  """Of the weighted sum; None: nobody asks for it."""

  x: Array | None
  weight: Array | None
  bias: Array | None


class Needed(NamedTuple):
  """What has a gradient: a frozen head costs none."""

  x: bool
  weight: bool
  bias: bool


class Kernels(NamedTuple):
  """A backend on one device, tokens in one axis. The head may be one part of the vocabulary that the mesh axis `axis`
  splits; targets and losses are of all of it.

  The first `count` tokens count; others have states 0, and targets that nobody reads.

  Attributes:
    losses: (x, head, targets, count, loss, axis) -> token losses, NaN where a target is not in the vocabulary.
    gradients: (x, head, targets, weights, count, loss, needed, axis) -> token losses, and gradients of the sum of
      weights * losses: x's from all of the vocabulary and in its dtype, the head's in float32 or wider. Tokens that do
      not count have weight 0.
    Both may give more tokens than there are.
  """

  losses: Callable[..., Float[Array, " token"]]
  gradients: Callable[..., tuple[Float[Array, " token"], Gradients]]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def fused(
  kernels: Kernels,
  loss: TokenLoss,
  split: Split,
  x: Float[Array, "batch length d_model"],
  head: LinearHead,
  targets: Int[Array, "batch length"],
  weights: Float[Array, "batch length"],
  counted: Bool[Array, "batch length"] | None,
) -> tuple[Float[Array, ""], Float[Array, "batch length"]]:
  """(sum of weights * losses, losses)."""
  losses = _losses(kernels, loss, split, x, head, targets, counted)
  return weighted(losses, weights).sum(), losses


def _forward(kernels, loss, split, *primals):
  needed = jax.tree.map(lambda each: each.perturbed, primals)
  x, head, targets, weights, counted = jax.tree.map(lambda each: each.value, primals)
  needed = Needed(needed[0], needed[1].weight, bool(needed[1].bias))
  if any(needed):
    losses, gradients = _gradients(kernels, loss, split, needed, x, head, targets, weights, counted)
  else:
    losses, gradients = _losses(kernels, loss, split, x, head, targets, counted), Gradients(None, None, None)
  return (weighted(losses, weights).sum(), losses), (gradients, losses, x, head, targets, weights, counted)


def _backward(kernels, loss, split, kept, cotangents):
  gradients, losses, x, head, targets, weights, counted = kept
  of_sum, of_losses = cotangents
  of_sum = jnp.zeros(()) if isinstance(of_sum, SymbolicZero) else of_sum
  if isinstance(of_losses, SymbolicZero):
    gradients = jax.tree.map(lambda each: of_sum * each, gradients)
  else:
    needed = Needed(*(each is not None for each in gradients))
    factors = of_sum * weights + of_losses
    _, gradients = _gradients(kernels, loss, split, needed, x, head, targets, factors, counted)
  as_primal = lambda gradient, primal: None if gradient is None else gradient.astype(primal.dtype)
  of_weight, of_bias = as_primal(gradients.weight, head.weight), as_primal(gradients.bias, head.bias)
  of_head = replace(head, weight=of_weight, bias=of_bias)  # type: ignore[arg-type]
  of_weights = (of_sum * jnp.where(weights != 0, losses, 0)).astype(weights.dtype)
  return as_primal(gradients.x, x), of_head, None, of_weights, None


fused.defvjp(_forward, _backward, symbolic_zeros=True)


def _losses(kernels, loss, split, x, head, targets, counted) -> Float[Array, "batch length"]:
  """Token losses, on every device those of its rows."""
  split, head = split.fitted(x, head), _cast(head, x)

  def local(x, head, targets, counted):
    count, (of_x, of_targets), back = _compacted(counted, x, targets)
    return back(kernels.losses(of_x, head, of_targets, count, loss, split.vocabulary))

  if split == Split():
    return local(x, head, targets, counted)
  rows = P(split.rows or None)
  given = (rows, split.of_head(head), rows, None if counted is None else rows)
  return jax.shard_map(local, in_specs=given, out_specs=rows, check_vma=False)(x, head, targets, counted)


def _gradients(kernels, loss, split, needed, x, head, targets, weights, counted):
  """Token losses and gradients; the head's are summed over devices once, and not once a chunk."""
  split, head = split.fitted(x, head), _cast(head, x)

  def local(x, head, targets, weights, counted):
    weights = weights if counted is None else jnp.where(counted, weights, 0)
    count, (of_x, *by_token), back = _compacted(counted, x, targets, weights)
    losses, found = kernels.gradients(of_x, head, *by_token, count, loss, needed, split.vocabulary)
    of_head = found.weight, found.bias
    weight, bias = jax.lax.psum(of_head, split.rows) if split.rows else of_head
    return back(losses), Gradients(None if found.x is None else back(found.x), weight, bias)

  if split == Split():
    return local(x, head, targets, weights, counted)
  rows, of_head = P(split.rows or None), split.of_head(head)
  given = (rows, of_head, rows, rows, None if counted is None else rows)
  specs = zip((rows, of_head.weight, of_head.bias), needed, strict=True)
  out = rows, Gradients(*(spec if there else None for spec, there in specs))
  return jax.shard_map(local, in_specs=given, out_specs=out, check_vma=False)(x, head, targets, weights, counted)


def _compacted(counted: Bool[Array, "batch length"] | None, x: Array, *by_token: Array):
  """(how many tokens count, arrays by token in one axis with those first, the way back to batch and length, where all
  others get 0)."""
  flat = lambda each: each.reshape(-1, *each.shape[2:])
  arrays, shape = [flat(each) for each in (x, *by_token)], x.shape[:2]
  if counted is None:
    tokens = shape[0] * shape[1]
    return tokens, arrays, lambda each: each[:tokens].reshape(*shape, *each.shape[1:])
  arrays[0] = jnp.where(flat(counted)[:, None], arrays[0], 0)
  order = jnp.argsort(~flat(counted), stable=True)

  def back(each: Array) -> Array:
    placed = each[jnp.argsort(order)].reshape(*shape, *each.shape[1:])
    return jnp.where(jnp.expand_dims(counted, range(2, placed.ndim)), placed, 0)

  return counted.sum(dtype=jnp.int32), [jnp.asarray(each)[order] for each in arrays], back


def _cast(head: LinearHead, x: Array) -> LinearHead:
  """The weight in the dtype of products, before devices exchange it."""
  return replace(head, weight=head.weight.astype(x.dtype))
