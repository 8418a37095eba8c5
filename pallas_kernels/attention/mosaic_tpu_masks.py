"""Masks of the TPU kernels: what they read of a spec, and which blocks are worth a visit.

Causal order, prefixes and key lengths all say from which query on a key is seen: one array by key, whatever it came
from, that a kernel compares with its queries' indices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from pallas_kernels.attention.spec import AttentionSpec

# Beyond every index, and far enough from an int32's end that differences of two are there.
FAR = 2**29


class Seen(NamedTuple):
  """What hides keys by data; None: nothing of that kind.

  Attributes:
    first: index of the first query that sees a key; of a batch of 1 for all rows. None: causal order says it, if any.
    query_segments, key_segments: ids that must be equal.
  """

  first: Int[Array, "#batch 1 key"] | None
  query_segments: Int[Array, "batch 1 query"] | None
  key_segments: Int[Array, "batch 1 key"] | None


class Visits(NamedTuple):
  """What a kernel reads from scalar memory.

  Attributes:
    offset: index of each row's first query.
    window: how far back a query sees; not read where nothing limits it.
    first, last: blocks of keys between which all lie that a row's block of queries sees something of; (0, -1): none.
      In one dimension, which scalar memory does not pad.
  """

  offset: Int[Array, " batch"]
  window: Int[Array, "1"]
  first: Int[Array, " batch*query_block"]
  last: Int[Array, " batch*query_block"]


def seen(spec: AttentionSpec, keys: int, more_q: int, more_k: int) -> Seen:
  """What a spec hides of its keys, and that no query sees the `more_k` keys that fill up."""
  first = None
  if spec.key_lengths is not None or more_k or spec.prefix is not None or spec.prefix_lengths is not None:
    key = jnp.arange(keys, dtype=jnp.int32)[None]
    first = key if spec.causal else jnp.full_like(key, -FAR)
    if spec.causal and spec.prefix is not None:
      first = jnp.where(spec.prefix, -FAR, first)
    if spec.causal and spec.prefix_lengths is not None:
      first = jnp.where(key < spec.prefix_lengths[:, None], -FAR, first)
    if spec.key_lengths is not None:
      first = jnp.where(key < spec.key_lengths[:, None], first, FAR)
    first = jnp.pad(first, ((0, 0), (0, more_k)), constant_values=FAR).astype(jnp.int32)[:, None]
  # Repeated ids, so that what fills up makes no block visible.
  row = lambda x, more: None if x is None else jnp.pad(x.astype(jnp.int32), ((0, 0), (0, more)), mode="edge")[:, None]
  return Seen(first, row(spec.query_segments, more_q), row(spec.key_segments, more_k))


def visits(spec: AttentionSpec, hides: Seen, batch: int, queries: int, keys: int, block_q: int, block_k: int) -> Visits:
  """Blocks of keys that each block of queries has to visit; lengths are of whole blocks."""
  offset = jnp.broadcast_to(jnp.asarray(spec.offset, jnp.int32), (batch,))
  window = jnp.clip(jnp.asarray(FAR if spec.window is None else spec.window, jnp.int32), -FAR, FAR)
  count = keys // block_k
  start_k = jnp.arange(0, keys, block_k, dtype=jnp.int32)
  lowest = (offset[:, None] + jnp.arange(0, queries, block_q, dtype=jnp.int32))[:, :, None]
  of_keys = lambda x, reduce: reduce(x.reshape(x.shape[0], 1, count, block_k), axis=-1)
  of_queries = lambda x, reduce: reduce(x.reshape(x.shape[0], -1, 1, block_q), axis=-1)
  worth = jnp.ones((batch, queries // block_q, count), bool)
  if hides.first is not None or spec.causal:
    worth &= (start_k if hides.first is None else of_keys(hides.first, jnp.min)) < lowest + block_q
  if spec.window is not None:
    worth &= start_k + (block_k - 1) > lowest - window
  if hides.query_segments is not None and hides.key_segments is not None:
    # Padding is 0 and comes last: in this order, a block's ids lie close together.
    of_query, of_key = (x.astype(jnp.uint32) - 1 for x in (hides.query_segments, hides.key_segments))
    worth &= of_queries(of_query, jnp.min) <= of_keys(of_key, jnp.max)
    worth &= of_queries(of_query, jnp.max) >= of_keys(of_key, jnp.min)
  any_worth = worth.any(-1)
  first = jnp.where(any_worth, jnp.argmax(worth, axis=-1), 0)
  last = jnp.where(any_worth, count - 1 - jnp.argmax(worth[..., ::-1], axis=-1), -1)
  flat = lambda x: x.astype(jnp.int32).reshape(-1)
  return Visits(offset, window[None], flat(first), flat(last))


def allowed(
  shape: tuple[int, int],
  queries_axis: int,
  difference: Int[Array, ""],
  *,
  causal: bool,
  window: Int[Array, ""] | None,
  first: Int[Array, "..."] | None,
  query_segments: Int[Array, "..."] | None,
  key_segments: Int[Array, "..."] | None,
) -> Bool[Array, "_ _"] | None:
  """The mask of one block, inside a kernel; None: all is seen.

  Args:
    queries_axis: 0: queries by keys; 1: keys by queries.
    difference: index of the block's first key minus that of its first query.
    first: index of the first query of the block that sees a key.
    first, query_segments, key_segments: rows or columns, as their axis lies.
  """
  parts = []
  query = jax.lax.broadcasted_iota(jnp.int32, shape, queries_axis)
  line = (1, shape[1]) if queries_axis == 0 else (shape[0], 1)
  key = jax.lax.broadcasted_iota(jnp.int32, line, 1 - queries_axis) + difference
  if first is not None or causal:
    parts.append(query >= (key if first is None else first))
  if window is not None:
    parts.append(query < key + window)
  if query_segments is not None and key_segments is not None:
    parts.append(query_segments == key_segments)
  mask = None
  for part in parts:
    mask = part if mask is None else mask & part
  return mask


def column(row: Int[Array, "1 n"], lanes: int) -> Int[Array, "n lanes"]:
  """A row on end, `lanes` times side by side."""
  turned = jnp.transpose(jnp.broadcast_to(row, (8, row.shape[1])))  # the hardware turns 8 rows at a time
  return jnp.broadcast_to(turned[:, :1], (row.shape[1], lanes))


def visited(spec: AttentionSpec, queries: int, keys: int, block_q: int, block_k: int) -> int:
  """Blocks of one row and head that are visited as far as the spec's static part tells: what a cost estimate counts."""
  offset, window = spec.offset, spec.window
  ordered = spec.causal and spec.prefix is None and spec.prefix_lengths is None
  total = 0
  for start_q in range(0, queries, block_q):
    first, last = 0, keys // block_k
    if isinstance(offset, int):
      low = start_q + offset
      last = min((low + block_q - 1) // block_k + 1, last) if ordered else last
      first = max(low - window + 1, 0) // block_k if isinstance(window, int) else first
    total += max(last - first, 0)
  return total
