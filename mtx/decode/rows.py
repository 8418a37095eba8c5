"""Several rows a prompt, prompts first: [batch * n, ...]. No function here moves data between shards of the batch."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from mtx.models.cache import Cache


def _mapped(cache: Cache, one) -> Cache:
  """`one(array, axis of rows)` of everything in a cache that has rows."""
  rest = {name: one(each, 0) if each.ndim else each for name, each in cache.items() if name != "layers"}
  return {**rest, "layers": jax.tree.map(lambda each: one(each, 1), cache["layers"])}


def repeated(cache: Cache, n: int) -> Cache:
  """Every row n times: `mtx.models.cache.take` of 0, 0, ..., 1, 1, ..., which stays within the shards."""
  return cache if n == 1 else _mapped(cache, lambda each, axis: jnp.repeat(each, n, axis))


def pick(each: Array, parents: Int[Array, "batch n"], axis: int = 0) -> Array:
  """Row `parents[b, i]` of prompt b as its row i; rows [batch * n] lie on `axis`."""
  batch, n = parents.shape
  shape = each.shape
  grouped = each.reshape(*shape[:axis], batch, shape[axis] // batch, *shape[axis + 1 :])
  moved = jax.vmap(lambda rows, by: jnp.take(rows, by, axis=axis), in_axes=(axis, 0), out_axes=axis)(grouped, parents)
  return moved.reshape(*shape[:axis], batch * n, *shape[axis + 1 :])


def reordered(cache: Cache, parents: Int[Array, "batch n"]) -> Cache:
  """The cache of row `parents[b, i]` of prompt b as its row i. What all rows of a prompt share stays where it is."""
  moved = _mapped(cache, lambda each, axis: pick(each, parents, axis))
  if "cross" in cache["layers"]:
    moved["layers"]["cross"] = cache["layers"]["cross"]
  return moved


def tree_reordered(tree: Any, parents: Int[Array, "batch n"]) -> Any:
  """Any tree of arrays whose first axis is rows."""
  return jax.tree.map(lambda each: pick(each, parents), tree)
