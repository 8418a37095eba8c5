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
from jaxtyping import Array, Float, Int

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

  Attributes:
    losses: (x, head, targets, loss, axis) -> token losses, NaN where a target is not in the vocabulary.
    gradients: (x, head, targets, weights, loss, needed, axis) -> token losses, and gradients of the sum of
      weights * losses: x's from all of the vocabulary and in its dtype, the head's in float32 or wider.
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
) -> tuple[Float[Array, ""], Float[Array, "batch length"]]:
  """(sum of weights * losses, losses)."""
  losses = _losses(kernels, loss, split, x, head, targets)
  return weighted(losses, weights).sum(), losses


def _forward(kernels, loss, split, *primals):
  needed = jax.tree.map(lambda each: each.perturbed, primals)
  x, head, targets, weights = jax.tree.map(lambda each: each.value, primals)
  needed = Needed(needed[0], needed[1].weight, bool(needed[1].bias))
  if any(needed):
    losses, gradients = _gradients(kernels, loss, split, needed, x, head, targets, weights)
  else:
    losses, gradients = _losses(kernels, loss, split, x, head, targets), Gradients(None, None, None)
  return (weighted(losses, weights).sum(), losses), (gradients, losses, x, head, targets, weights)


def _backward(kernels, loss, split, kept, cotangents):
  gradients, losses, x, head, targets, weights = kept
  of_sum, of_losses = cotangents
  of_sum = jnp.zeros(()) if isinstance(of_sum, SymbolicZero) else of_sum
  if isinstance(of_losses, SymbolicZero):
    gradients = jax.tree.map(lambda each: of_sum * each, gradients)
  else:
    needed = Needed(*(each is not None for each in gradients))
    factors = of_sum * weights + of_losses
    _, gradients = _gradients(kernels, loss, split, needed, x, head, targets, factors)
  as_primal = lambda gradient, primal: None if gradient is None else gradient.astype(primal.dtype)
  of_weight, of_bias = as_primal(gradients.weight, head.weight), as_primal(gradients.bias, head.bias)
  of_head = replace(head, weight=of_weight, bias=of_bias)  # type: ignore[arg-type]
  of_weights = (of_sum * jnp.where(weights != 0, losses, 0)).astype(weights.dtype)
  return as_primal(gradients.x, x), of_head, None, of_weights


fused.defvjp(_forward, _backward, symbolic_zeros=True)


def _losses(kernels, loss, split, x, head, targets) -> Float[Array, "batch length"]:
  """Token losses, on every device those of its rows."""
  split, head = split.fitted(x, head), _cast(head, x)

  def local(x, head, targets):
    flat = x.reshape(-1, x.shape[-1])
    return kernels.losses(flat, head, targets.reshape(-1), loss, split.vocabulary).reshape(targets.shape)

  if split == Split():
    return local(x, head, targets)
  rows = P(split.rows or None)
  given = (rows, split.of_head(head), rows)
  return jax.shard_map(local, in_specs=given, out_specs=rows, check_vma=False)(x, head, targets)


def _gradients(kernels, loss, split, needed, x, head, targets, weights):
  """Token losses and gradients; the head's are summed over devices once, and not once a chunk."""
  split, head = split.fitted(x, head), _cast(head, x)

  def local(x, head, targets, weights):
    flat = x.reshape(-1, x.shape[-1])
    losses, found = kernels.gradients(
      flat, head, targets.reshape(-1), weights.reshape(-1), loss, needed, split.vocabulary
    )
    of_head = found.weight, found.bias
    weight, bias = jax.lax.psum(of_head, split.rows) if split.rows else of_head
    of_x = None if found.x is None else found.x.reshape(x.shape)
    return losses.reshape(targets.shape), Gradients(of_x, weight, bias)

  if split == Split():
    return local(x, head, targets, weights)
  rows, of_head = P(split.rows or None), split.of_head(head)
  given = (rows, of_head, rows, rows)
  out = Gradients(
    *(s if there else None for s, there in zip((rows, of_head.weight, of_head.bias), needed, strict=True))
  )
  return jax.shard_map(local, in_specs=given, out_specs=(rows, out), check_vma=False)(x, head, targets, weights)


def _cast(head: LinearHead, x: Array) -> LinearHead:
  """The weight in the dtype of products, before devices exchange it."""
  return replace(head, weight=head.weight.astype(x.dtype))
