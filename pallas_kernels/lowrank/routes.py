"""The three ways to say which weights mix the skills of a token."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def by_token(
  w: Float[Array, "*route split skill"], ids: Int[Array, "batch length"] | None, length: int
) -> Float[Array, "batch length split skill"]:
  """Weights of every token.

  Args:
    w: of every row, or of every token; with `ids`, a table.
    ids: the table's line for each token; tokens of a packed row's segment share one.
  """
  if ids is not None:
    return w[ids]
  return w if w.ndim == 4 else jnp.broadcast_to(w[:, None], (w.shape[0], length, *w.shape[1:]))
