"""The routed projection in plain XLA: a dense product and two thin ones, added."""

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int


def projection(
  x: Float[Array, "batch length din"],
  kernel: Float[Array, "din dout"],
  a: Float[Array, "split skill block_in rank"],
  b: Float[Array, "split skill rank block_out"],
  w: Float[Array, "*route split skill"],
  ids: Int[Array, "batch length"] | None,
) -> Float[Array, "batch length dout"]:
  """See `pallas_kernels.lowrank.api.routed_projection`."""
  return x @ kernel + delta(x, a, b, w, ids)


def delta(
  x: Float[Array, "batch length din"],
  a: Float[Array, "split skill block_in rank"],
  b: Float[Array, "split skill rank block_out"],
  w: Float[Array, "*route split skill"],
  ids: Int[Array, "batch length"] | None = None,
) -> Float[Array, "batch length dout"]:
  """The update alone."""
  # Rounded after the look-up: gradients of a table's lines are summed unrounded.
  w = (w if ids is None else w[ids]).astype(x.dtype)
  return (_per_row if w.ndim == 3 else _per_token)(x, a, b, w)


def refusal(x, kernel, a, b, w, ids) -> None:
  """Nothing is refused."""


def _per_row(x, a, b, w):
  """One mixture a row (w [batch, split, skill]): mixes small factors first, then two thin products."""
  rows, _, din = x.shape
  mixed_a = jnp.einsum("bqs,qsdr->bqdr", w, a).reshape(rows, din, -1)
  mixed_b = jnp.einsum("bqs,qsre->brqe", w, b).reshape(rows, b.shape[2], -1)
  return checkpoint_name(x @ mixed_a, "low_rank") @ mixed_b


def _per_token(x, a, b, w):
  """One a token (w [batch, length, split, skill]): the same numbers in skill space, with no per-token factors."""
  blocks = x.reshape(*x.shape[:-1], a.shape[0], -1)
  z = jnp.einsum("blqsr,blqs->blr", jnp.einsum("blqd,qsdr->blqsr", blocks, a), w)
  mixed = jnp.einsum("blqs,blr->blqsr", w, z)
  return jnp.einsum("blqsr,qsre->blqe", mixed, b).reshape(*x.shape[:-1], -1)
