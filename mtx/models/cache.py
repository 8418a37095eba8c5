"""What decoding does to a model's cache as a whole: pick rows, let rows differ in length, take tokens back.

A cache is a dict: "layers" holds arrays [layer, batch, ...], everything else is [batch, ...] or, like "index", one
number for all rows.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

Cache = dict[str, Any]


def take(cache: Cache, rows: Int[Array, " m"]) -> Cache:
  """The cache of `rows`, in that order; a row may be taken several times (beams, samples, options of a prompt)."""
  moved = {name: each[rows] if each.ndim else each for name, each in cache.items() if name != "layers"}
  return {**moved, "layers": jax.tree.map(lambda each: each[:, rows], cache["layers"])}


def per_row(cache: Cache) -> Cache:
  """The same cache with an index of its own for every row, so that rows may differ."""
  return {**cache, "index": jnp.broadcast_to(cache["index"], cache["task_ids"].shape[:1])}


def rewind(cache: Cache, tokens: Int[Array, " batch"] | int) -> Cache:
  """Takes back the last `tokens` of every row; they are overwritten next. Rows that differ need `per_row` first."""
  back = {"index": cache["index"] - tokens}
  if "positions" in cache:
    back["positions"] = cache["positions"] - tokens
  return {**cache, **back}
