"""Weighted mean of what experts learned on top of a base. Ilharco et al. 2023, arXiv 2212.04089 (task arithmetic)."""

from collections.abc import Sequence

import gin
import jax.numpy as jnp
from jaxtyping import Array

from mtx.errors import UserError

Tree = dict[str, Array]


@gin.configurable(denylist=["base", "experts"])
def average(base: Tree, experts: Sequence[Tree], *, scale: float = 1.0) -> Tree:
  """base + scale * mean_t (expert_t - base); scale 1 is the plain mean of the experts.

  Args:
    base: parameters, path -> array.
    experts: trees of the same paths and shapes; adapters, skill inventories or whole models.
    scale: lambda of task arithmetic over the mean task vector.

  Raises:
    UserError: no experts; or names the first parameter that an expert lacks or has in another shape.
  """
  if not experts:
    raise UserError("nothing to average: there are no experts.")
  for i, expert in enumerate(experts):
    for path in sorted(base.keys() | expert.keys()):
      ours, theirs = base.get(path), expert.get(path)
      if ours is None or theirs is None or ours.shape != theirs.shape:
        shape = lambda x: "absent" if x is None else x.shape
        raise UserError(f"expert {i}: parameter {path} is {shape(theirs)}, in the base {shape(ours)}.")
  # The mean of differences, not the difference of means: experts that are the base give it back bitwise.
  return {p: b + scale * jnp.mean(jnp.stack([e[p] - b for e in experts]), 0) for p, b in base.items()}
