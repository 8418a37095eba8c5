"""What the forward and the backward kernels for NVIDIA GPUs share: who sees whom, which tiles are visited, and the
scores of one tile.

The mask of a spec is made of two vectors by query and one by key: a query at position p sees key k if since[k] <= p and
k > floor[query], within its segment. Causal order, both kinds of prefix, key lengths and what lies beyond the last key
are all values of `since`.

A bias of buckets has one value for all keys that are far before a query, and one for all that are far after it. Tiles
that are far read that value alone; tiles that are near read their diagonals.
"""

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.attention.bias import Buckets, relative_buckets
from pallas_kernels.attention.spec import AttentionSpec

LOG2E = math.log2(math.e)
FIRST, LAST = np.iinfo(np.int32).min, np.iinfo(np.int32).max
# Kinds of tiles: all its keys far before its queries, near, all far after, by diagonals that lie between `edges`.
BEFORE, NEAR, AFTER = range(3)
NARROWEST = 16  # side of a matrix that a tensor core takes


class Queries(NamedTuple):
  """What is known of queries, and None where nothing depends on it."""

  position: Int[Array, "#batch query"] | None
  floor: Int[Array, "#batch query"] | None
  segments: Int[Array, "batch query"] | None


class Keys(NamedTuple):
  """What is known of keys, and None where nothing depends on it."""

  since: Int[Array, "#batch key"] | None
  segments: Int[Array, "batch key"] | None


class Added(NamedTuple):
  """A bias, as kernels read it: by key index minus query index, or written out; at most one of the three."""

  diagonals: Float[Array, "#batch kv_heads group diagonal"] | None = None
  slopes: Float[Array, "1 kv_heads group 1"] | None = None
  dense: Float[Array, "#batch kv_heads group query key"] | None = None


class Seen(NamedTuple):
  """Who sees whom, and where the bias is one value: at key index minus query index at most edges[0], or at least
  edges[1]."""

  queries: Queries
  keys: Keys
  edges: Int[Array, "#batch 2"] | None


@dataclass(frozen=True)
class Tile:
  """How a kernel is cut: queries and keys of a tile, warps of a program, and stages of its loop's loads."""

  block_q: int
  block_k: int
  num_warps: int
  num_stages: int

  @property
  def parameters(self) -> plgpu.CompilerParams:
    return plgpu.CompilerParams(num_warps=self.num_warps, num_stages=self.num_stages)


@dataclass(frozen=True)
class Tiles:
  """A cut for each kernel; that of the bias into squares."""

  forward: Tile
  of_queries: Tile
  of_keys: Tile
  of_bias: Tile

  @property
  def whole(self) -> int:
    """What vectors are filled up to a multiple of, so that a tile's part of them is inside: all sizes divide it."""
    return max(size for tile in vars(self).values() for size in (tile.block_q, tile.block_k))


@dataclass(frozen=True)
class Rule:
  """What of a spec is static, and the cut: scores are cap(scale * product) + bias.

  Attributes:
    reach: relative positions up to and from which the bias has one value; None: nowhere.
  """

  scale: float
  soft_cap: float
  reach: tuple[int, int] | None
  tiles: Tiles


def filled(length: int, multiple: int) -> int:
  """`length` up to the next multiple."""
  return -(-length // multiple) * multiple


def reach(bias: Buckets) -> tuple[int, int] | None:
  """Relative positions up to and from which all share a bucket."""
  count, limit = bias.table.shape[0], bias.max_distance
  # Where exact buckets reach as far as logarithmic ones, the formula has no last bucket.
  if (count // 2 if bias.bidirectional else count) // 2 >= limit:
    return None
  around = np.arange(-limit - 1, limit + 2)
  with jax.ensure_compile_time_eval():
    bucket = np.asarray(
      relative_buckets(jnp.asarray(around), bidirectional=bias.bidirectional, buckets=count, max_distance=limit)
    )
  low, high = (around[bucket != bucket[end]] for end in (0, -1))
  return int(low.min()) - 1, int(high.max()) + 1


def seen(spec: AttentionSpec, queries: int, keys: int, whole: int, reach: tuple[int, int] | None) -> Seen:
  """Its vectors, filled up to a multiple of `whole`."""
  offset = jnp.reshape(jnp.asarray(spec.offset, jnp.int32), (-1, 1))
  more_q, more_k = filled(queries, whole), filled(keys, whole)
  position = offset + jnp.minimum(jnp.arange(more_q, dtype=jnp.int32), queries - 1)
  index = jnp.arange(more_k, dtype=jnp.int32)[None]
  by_row = lambda x: jnp.asarray(x, jnp.int32)[:, None]
  more = lambda x, length: jnp.pad(x, ((0, 0), (0, length - x.shape[1])), mode="edge")
  packed = spec.query_segments is not None
  since = index if spec.causal else jnp.full_like(index, FIRST)
  if spec.causal and spec.prefix is not None:
    since = jnp.where(more(spec.prefix, more_k), FIRST, since)
  if spec.causal and spec.prefix_lengths is not None:
    since = jnp.where(index < by_row(spec.prefix_lengths), FIRST, since)
  since = jnp.where(index >= keys, LAST, since)
  if spec.key_lengths is not None:
    since = jnp.where(index >= by_row(spec.key_lengths), LAST, since)
  hides = spec.causal or spec.key_lengths is not None or more_k != keys
  # A window may be as large as an int32: what is taken from a position must not be.
  floor = None if spec.window is None else position - jnp.minimum(jnp.asarray(spec.window, jnp.int32), LAST // 2)
  return Seen(
    Queries(position if hides else None, floor, more(spec.query_segments, more_q) if packed else None),
    Keys(since if hides else None, more(spec.key_segments, more_k) if packed else None),
    None if reach is None else offset + jnp.asarray(reach, jnp.int32),
  )


def visited(seen: Seen, queries: int, keys: int, tile: Tile) -> tuple[Bool[Array, "#batch q_block k_block"], ...]:
  """Whether some query of a tile may see some key of it; and whether all of it is far before, and far after. A flag a
  tile, of which `bounds` keeps the ends."""
  rows, columns = -(-queries // tile.block_q), -(-keys // tile.block_k)
  first_q, first_k = (jnp.arange(n, dtype=jnp.int32) * b for n, b in ((rows, tile.block_q), (columns, tile.block_k)))
  last_q, last_k = first_q + tile.block_q - 1, first_k + tile.block_k - 1
  of_rows = lambda x, most: most(x[:, : rows * tile.block_q].reshape(-1, rows, tile.block_q), -1)[:, :, None]
  of_columns = lambda x, most: most(x[:, : columns * tile.block_k].reshape(-1, columns, tile.block_k), -1)[:, None]
  there = jnp.ones((1, rows, columns), bool)
  (position, floor, q_segments), (since, k_segments), edges = seen
  if position is not None and since is not None:
    there &= of_columns(since, jnp.min) <= of_rows(position, jnp.max)
  if floor is not None:
    there &= last_k > of_rows(floor, jnp.min)
  if q_segments is not None and k_segments is not None:
    there &= of_rows(q_segments, jnp.min) <= of_columns(k_segments, jnp.max)
    there &= of_columns(k_segments, jnp.min) <= of_rows(q_segments, jnp.max)
  if edges is None:
    return there, jnp.zeros_like(there), jnp.zeros_like(there)
  before = last_k - first_q[:, None] <= edges[:, 0, None, None]
  after = first_k - last_q[:, None] >= edges[:, 1, None, None]
  return there, before, after


def extent(there: Bool[Array, "*lead block"]) -> Int[Array, "*lead 2"]:
  """The first that is True, and the one after the last; both 0 where none is."""
  end = jnp.where(there.any(-1), there.shape[-1] - jnp.argmax(there[..., ::-1], -1), 0)
  return jnp.stack([jnp.argmax(there, -1), end], -1).astype(jnp.int32)


def bounds(there, first_kind, last_kind) -> Int[Array, "*lead 4"]:
  """Where, along the last axis, the visited tiles begin; their near ones begin; end; and they all end.

  Args:
    there, first_kind, last_kind: [*lead, block]; which are visited, and which are of the kinds that come before the
      near ones, and after them.
  """
  start, stop = jnp.moveaxis(extent(there), -1, 0)
  near = jnp.clip(first_kind.sum(-1), start, stop)
  far = jnp.clip(there.shape[-1] - last_kind.sum(-1), near, stop)
  near, far = (jnp.broadcast_to(x, start.shape) for x in (near, far))
  return jnp.stack([start, near, far, stop], -1).astype(jnp.int32)


def as_read(bias: Added, queries: int, keys: int, whole: int) -> Added:
  """A bias with values by diagonal and slopes in units of log 2, and with diagonals of what is beyond the ends, up to a
  multiple of `whole`."""
  more = ((0, 0), (0, 0), (0, 0), (filled(queries, whole) - queries, filled(keys, whole) - keys))
  return Added(
    None if bias.diagonals is None else jnp.pad(bias.diagonals * LOG2E, more, mode="edge"),
    None if bias.slopes is None else bias.slopes * LOG2E,
    bias.dense,
  )


def in_order(kinds, limits, body, carry):
  """`body(kind, block, carry)` over all visited blocks of a row or column of tiles.

  Args:
    kinds: of the first, the middle and the last part; where there are no far ones, (NEAR,).
    limits: reference to four ints, see `bounds`.
  """
  ends = (0, 3) if len(kinds) == 1 else (0, 1, 2, 3)
  for kind, start, stop in zip(kinds, ends[:-1], ends[1:], strict=True):
    carry = jax.lax.fori_loop(limits[start], limits[stop], lambda i, carry, kind=kind: body(kind, i, carry), carry)
  return carry


def places(group: int) -> tuple[Callable[..., Any], ...]:
  """Functions of a program's place in a grid of (block, head, row): block, row, head of keys, member of its group."""
  block, row = lambda i, h, b: i, lambda i, h, b: b
  return block, row, lambda i, h, b: jax.lax.div(h, group), lambda i, h, b: jax.lax.rem(h, group)


def taken(x: Array | jax.ShapeDtypeStruct, *at: Callable[..., Any] | None) -> pl.BlockSpec:
  """What a program takes of an array: of each axis the element that a function of the program's place in the grid
  gives (the only one, where there is one), or, where it is None and of the axes that are left, all."""
  where = (*at, *(None,) * (x.ndim - len(at)))
  blocks = tuple(n if f is None else None for f, n in zip(where, x.shape, strict=True))
  return pl.BlockSpec(
    blocks, lambda *ids: tuple(0 if f is None or n == 1 else f(*ids) for f, n in zip(where, x.shape, strict=True))
  )


def taken_all(tree: Any, *at: Callable[..., Any] | None) -> Any:
  """The same of all arrays of a pytree."""
  return jax.tree.map(lambda x: taken(x, *at), tree)


def loaded(ref, start, count: int, *head) -> Float[Array, "count width"]:
  """Rows of a reference to [length, *head, size], zeros beyond its ends; width is a power of two."""
  length, size = ref.shape[0], ref.shape[-1]
  width = padded(size)
  part = ref.at[(pl.ds(start, count), *head, pl.ds(0, width))]
  inside = []
  if length % count:
    inside.append((start + jnp.arange(count) < length)[:, None])
  if width != size:
    inside.append((jnp.arange(width) < size)[None, :])
  if not inside:
    return plgpu.load(part)
  mask = jnp.broadcast_to(inside[0] if len(inside) == 1 else inside[0] & inside[1], (count, width))
  return plgpu.load(part, mask=mask, other=0.0)


def stored(ref, start, count: int, values: Float[Array, "count width"]) -> None:
  """Rows of a reference to [length, size], without what is beyond its ends."""
  length, size = ref.shape[0], ref.shape[-1]
  part = ref.at[pl.ds(start, count), pl.ds(0, values.shape[1])]
  mask = (start + jnp.arange(count) < length)[:, None] & (jnp.arange(values.shape[1]) < size)[None, :]
  everything = length % count == 0 and values.shape[1] == size
  plgpu.store(part, values.astype(ref.dtype), mask=None if everything else mask)


def loaded_vector(ref, start, count: int, beyond: float, *head) -> Float[Array, " count"]:
  """Elements of a reference to [*head, length], and `beyond` after its end."""
  part = ref.at[(*head, pl.ds(start, count))]
  if ref.shape[-1] % count == 0:
    return plgpu.load(part)
  return plgpu.load(part, mask=start + jnp.arange(count) < ref.shape[-1], other=beyond)


def stored_vector(ref, start, values: Float[Array, " count"]) -> None:
  """What `loaded_vector` reads, written."""
  count = values.shape[0]
  mask = start + jnp.arange(count) < ref.shape[-1] if ref.shape[-1] % count else None
  plgpu.store(ref.at[pl.ds(start, count)], values, mask=mask)


def padded(size: int) -> int:
  """Width of a head in a kernel."""
  return max(NARROWEST, pl.next_power_of_2(size))


def loaded_side(refs, start, count: int):
  """The vectors of `Queries` or `Keys` from references to one row's, and the indices: those of one tile."""
  index = start + jnp.arange(count, dtype=jnp.int32)
  return jax.tree.map(lambda ref: ref[pl.ds(start, count)], refs), index


def down(tree):
  """Vectors along the rows of a tile."""
  return jax.tree.map(lambda x: x[:, None], tree)


def across(tree):
  """Vectors along the columns of a tile."""
  return jax.tree.map(lambda x: x[None, :], tree)


def scored(product, rule: Rule, queries, keys, bias):
  """(scores in units of log 2, hidden ones -inf; derivative of the cap, None where there is none) of a tile.

  Args:
    product: of queries and keys, a tile in float32, either way round.
    queries, keys: (vectors, indices) of `loaded_side`, `down` or `across` as the tile lies.
    bias: what is added, in units of log 2; or None.
  """
  slope = None
  if rule.soft_cap:
    bent = jnp.tanh(product * (rule.scale / rule.soft_cap))
    slope = 1 - bent * bent
    scores = bent * (rule.soft_cap * LOG2E)
  else:
    scores = product * (rule.scale * LOG2E)
  if bias is not None:
    scores = scores + bias
  mask = visible(queries[0], keys[0], keys[1])
  return scores if mask is None else jnp.where(mask, scores, -jnp.inf), slope


def visible(queries: Queries, keys: Keys, index: Int[Array, "#row #column"]) -> Bool[Array, "row column"] | None:
  """The mask of a tile."""
  parts: list[Any] = []
  if queries.position is not None and keys.since is not None:
    parts.append(keys.since <= queries.position)
  if queries.floor is not None:
    parts.append(index > queries.floor)
  if queries.segments is not None:
    parts.append(queries.segments == keys.segments)
  return functools.reduce(operator.and_, parts) if parts else None


def added(bias: Any, kind: int, query_index, key_index, queries: int, *head):
  """What a tile's scores get, in units of log 2: a value, a tile of values, or None.

  A line by key index minus query index does without the offset of queries: it adds the same to all scores of a query.

  Args:
    bias: `Added` of references to [*head, diagonal], [*head, 1] and [*head, query, key], see `as_read`.
    queries: how many there are, filled up.
  """
  if bias.slopes is not None:
    return bias.slopes[(*head, 0)] * (key_index - query_index).astype(jnp.float32)
  if bias.dense is not None:
    return LOG2E * _dense_tile(bias.dense, query_index, key_index, *head)
  if bias.diagonals is None:
    return None
  if kind == BEFORE:
    return bias.diagonals[(*head, 0)]
  if kind == AFTER:
    return bias.diagonals[(*head, bias.diagonals.shape[-1] - 1)]
  return plgpu.load(bias.diagonals.at[(*head, key_index - query_index + (queries - 1))])


def _dense_tile(ref, query_index, key_index, *head) -> Float[Array, "row column"]:
  """A tile of a written out bias, either way round, zeros beyond its ends."""
  query, key = jnp.broadcast_arrays(query_index, key_index)
  part = ref.at[(*head, query, key)]
  queries, keys = ref.shape[-2:]
  if queries % query_index.size == 0 and keys % key_index.size == 0:
    return plgpu.load(part).astype(jnp.float32)
  return plgpu.load(part, mask=(query < queries) & (key < keys), other=0.0).astype(jnp.float32)


def cost(products: int, q, k, arrays: Any) -> pl.CostEstimate:
  """Of a kernel that makes so many products a pair of a query and a key; hidden tiles count as if visited.

  Args:
    q, k: [batch, query, kv_heads, group, d_kv] and [batch, key, kv_heads, d_kv].
    arrays: pytree of what it reads and writes.
  """
  pairs = q.size // q.shape[-1] * k.shape[1]
  moved = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))
  return pl.CostEstimate(flops=2 * products * pairs * q.shape[-1], transcendentals=pairs, bytes_accessed=moved)
