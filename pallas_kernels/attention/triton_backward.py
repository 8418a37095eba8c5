"""Gradients of attention for NVIDIA GPUs: scores of each tile again, from the logarithm of the softmax's sums (Dao et
al. 2022, arXiv 2205.14135, algorithm 4).

One kernel goes along the keys of a block of queries, for dq; one along the queries of a block of keys, for dk and dv;
nothing is added up in memory by several programs, so that results do not depend on the order they run in.

The gradient of a bias by diagonals is the sum of dS along each. A third kernel goes along bands of tiles, where all of
a band have the same diagonals: it adds up whole tiles, and what it writes does not grow with the square of the length.
Where the bias is one value, far before a query and far after it, the first kernel sums dS, and only bands near the
diagonal are left. A bias that is written out gets a gradient of its own size, tile by tile.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.attention.bias import toeplitz
from pallas_kernels.attention.triton_tiles import (
  AFTER,
  BEFORE,
  NEAR,
  Added,
  Rule,
  Seen,
  across,
  added,
  as_read,
  bounds,
  cost,
  down,
  extent,
  filled,
  in_order,
  loaded,
  loaded_side,
  loaded_vector,
  places,
  scored,
  stored,
  taken,
  taken_all,
  visited,
)
from pallas_kernels.platforms import on

BAND = 16  # tiles of a band that one program adds up


def gradients(rule: Rule, kept, dy):
  """Those of q, k, v and the bias; slopes get none.

  Args:
    kept: (q, k, v, bias, who, y, log_sums) of the forward kernel. q and y are [batch, query, kv_heads, group, d_kv], k
      and v [batch, key, kv_heads, d_kv], log_sums [batch, kv_heads, group, query].
    dy: as y.
  """
  q, k, v, bias, who, y, log_sums = kept
  queries, keys = q.shape[1], k.shape[1]
  inner = jnp.einsum("bqgrd,bqgrd->bgrq", dy, y, preferred_element_type=jnp.float32)
  given = (q, k, v, dy, log_sums, inner, as_read(bias, queries, keys, rule.tiles.whole), who)
  by_rows = bounds(*visited(who, queries, keys, rule.tiles.of_queries))
  there, before, after = (jnp.swapaxes(x, 1, 2) for x in visited(who, queries, keys, rule.tiles.of_keys))
  dq, far = on("cuda", partial(_of_queries, rule), *given, by_rows)
  dk, dv = on("cuda", partial(_of_keys, rule), *given, bounds(there, after, before))
  of_bias = Added(
    diagonals=None if bias.diagonals is None else _of_diagonals(rule, bias.diagonals, far, *given),
    slopes=None if bias.slopes is None else jnp.zeros_like(bias.slopes),
    dense=None if bias.dense is None else _of_dense(rule, bias.dense, *given),
  )
  return dq, dk, dv, of_bias


def _of_queries(rule: Rule, q, k, v, dy, log_sums, inner, bias: Added, who: Seen, limits, interpret: bool):
  """dq; and where the bias has far values, the gradients of both by block of queries."""
  batch, queries, shared, group, _ = q.shape
  tile = rule.tiles.of_queries
  blocks = -(-queries // tile.block_q)
  place, row, of, member = places(group)
  far = None if who.edges is None else jax.ShapeDtypeStruct((batch, shared, group, blocks, 2), jnp.float32)
  shapes = (jax.ShapeDtypeStruct(q.shape, q.dtype), far)
  return pl.pallas_call(
    partial(_of_queries_kernel, rule),
    grid=(blocks, shared * group, batch),
    in_specs=(
      taken(q, row, None, of, member),
      taken(k, row, None, of),
      taken(v, row, None, of),
      taken(dy, row, None, of, member),
      taken(log_sums, row, of, member),
      taken(inner, row, of, member),
      taken_all(bias, row, of, member),
      taken_all(who, row),
      taken(limits, row, place),
    ),
    out_specs=(taken(q, row, None, of, member), taken_all(far, row, of, member, place)),
    out_shape=shapes,
    compiler_params=tile.parameters,
    cost_estimate=cost(3, q, k, (q, k, v, dy, log_sums, inner, bias, who, shapes)),
    interpret=interpret,
    name="attention_triton_of_queries",
  )(q, k, v, dy, log_sums, inner, bias, who, limits)


def _of_queries_kernel(
  rule: Rule, q_ref, k_ref, v_ref, dy_ref, log_sums, inner, added_refs: Added, who: Seen, limits, dq_ref, far_ref
):
  """One block of queries."""
  block_q, block_k = rule.tiles.of_queries.block_q, rule.tiles.of_queries.block_k
  start_q, more_q = pl.program_id(0) * block_q, filled(q_ref.shape[0], rule.tiles.whole)
  q, dy = loaded(q_ref, start_q, block_q), loaded(dy_ref, start_q, block_q)
  queries = down(loaded_side(who.queries, start_q, block_q))
  log_sum = loaded_vector(log_sums, start_q, block_q, jnp.inf)[:, None]
  inner_block = loaded_vector(inner, start_q, block_q, 0.0)[:, None]

  def step(kind, block, carry):
    dq, far = carry
    start_k = block * block_k
    k, v = loaded(k_ref, start_k, block_k), loaded(v_ref, start_k, block_k)
    keys = across(loaded_side(who.keys, start_k, block_k))
    bias = added(added_refs, kind, queries[1], keys[1], more_q)
    scores, slope = scored(pl.dot(q, k, trans_b=True), rule, queries, keys, bias)
    ds = jnp.exp2(scores - log_sum) * (pl.dot(dy, v, trans_b=True) - inner_block)
    if who.edges is not None:
      far = _with_far(far, kind, ds, keys[1] - queries[1], who.edges)
    ds = ds if slope is None else ds * slope
    return dq + pl.dot(ds.astype(k.dtype), k), far

  zero = jnp.zeros((block_q,), jnp.float32)
  kinds, far = ((NEAR,), ()) if who.edges is None else ((BEFORE, NEAR, AFTER), (zero, zero))
  dq, far = in_order(kinds, limits, step, (jnp.zeros(q.shape, jnp.float32), far))
  stored(dq_ref, start_q, block_q, dq * rule.scale)
  for side, sums in enumerate(far):
    far_ref[side] = sums.sum()


def _with_far(far, kind: int, ds, relative, edges):
  """Sums by query of dS where the bias is the value far before, and far after, with those of one more tile."""
  before, after = far
  if kind == BEFORE:
    return before + ds.sum(1), after
  if kind == AFTER:
    return before, after + ds.sum(1)
  return before + jnp.where(relative <= edges[0], ds, 0).sum(1), after + jnp.where(relative >= edges[1], ds, 0).sum(1)


def _of_keys(rule: Rule, q, k, v, dy, log_sums, inner, bias: Added, who: Seen, limits, interpret: bool):
  """dk and dv."""
  tile = rule.tiles.of_keys
  place, row, of, _ = places(1)
  shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v))
  return pl.pallas_call(
    partial(_of_keys_kernel, rule),
    grid=(-(-k.shape[1] // tile.block_k), k.shape[2], k.shape[0]),
    in_specs=(
      taken(q, row, None, of),
      taken(k, row, None, of),
      taken(v, row, None, of),
      taken(dy, row, None, of),
      taken(log_sums, row, of),
      taken(inner, row, of),
      taken_all(bias, row, of),
      taken_all(who, row),
      taken(limits, row, place),
    ),
    out_specs=tuple(taken(x, row, None, of) for x in shapes),
    out_shape=shapes,
    compiler_params=tile.parameters,
    cost_estimate=cost(4, q, k, (q, k, v, dy, log_sums, inner, bias, who, shapes)),
    interpret=interpret,
    name="attention_triton_of_keys",
  )(q, k, v, dy, log_sums, inner, bias, who, limits)


def _of_keys_kernel(
  rule: Rule, q_ref, k_ref, v_ref, dy_ref, log_sums, inner, added_refs: Added, who: Seen, limits, dk_ref, dv_ref
):
  """One block of keys; tiles lie with keys down, so that weights are the left operand as they are."""
  block_q, block_k = rule.tiles.of_keys.block_q, rule.tiles.of_keys.block_k
  start_k, more_q = pl.program_id(0) * block_k, filled(q_ref.shape[0], rule.tiles.whole)
  k, v = loaded(k_ref, start_k, block_k), loaded(v_ref, start_k, block_k)
  keys = down(loaded_side(who.keys, start_k, block_k))

  def of_member(member, carry):
    def step(kind, block, carry):
      dk, dv = carry
      start_q = block * block_q
      q, dy = loaded(q_ref, start_q, block_q, member), loaded(dy_ref, start_q, block_q, member)
      queries = across(loaded_side(who.queries, start_q, block_q))
      log_sum = loaded_vector(log_sums, start_q, block_q, jnp.inf, member)[None]
      inner_block = loaded_vector(inner, start_q, block_q, 0.0, member)[None]
      bias = added(added_refs, kind, queries[1], keys[1], more_q, member)
      scores, slope = scored(pl.dot(k, q, trans_b=True), rule, queries, keys, bias)
      weights = jnp.exp2(scores - log_sum)
      dv = dv + pl.dot(weights.astype(dy.dtype), dy)
      ds = weights * (pl.dot(v, dy, trans_b=True) - inner_block)
      ds = ds if slope is None else ds * slope
      return dk + pl.dot(ds.astype(q.dtype), q), dv

    return in_order((NEAR,) if who.edges is None else (AFTER, NEAR, BEFORE), limits, step, carry)

  nothing = jnp.zeros(k.shape, jnp.float32)
  dk, dv = jax.lax.fori_loop(0, q_ref.shape[1], of_member, (nothing, nothing))
  stored(dk_ref, start_k, block_k, dk * rule.scale)
  stored(dv_ref, start_k, block_k, dv)


def _of_diagonals(rule: Rule, wanted, far, q, k, v, dy, log_sums, inner, bias: Added, who: Seen):
  """Gradient of `wanted`, the diagonals as they came."""
  queries, block = q.shape[1], rule.tiles.of_bias.block_q
  limits = _bands(rule, who, queries, k.shape[1])
  tiles = on("cuda", partial(_of_bands, rule), q, k, v, dy, log_sums, inner, bias, who, limits)
  lead = (0, 1) if wanted.shape[0] == 1 else (1,)
  tiles = tiles.sum(lead, keepdims=True)[:, 0]  # [#batch, kv_heads, group, band, block, block]
  like = jax.ShapeDtypeStruct((*tiles.shape[:-2], 2 * block - 1), tiles.dtype)
  (sums,) = jax.linear_transpose(partial(toeplitz, queries=block), like)(tiles)
  # Bands differ from row to row only where offsets do, and then diagonals are by row too.
  relative = limits[: wanted.shape[0], :, 2:] * block + jnp.arange(1 - block, block)  # [#batch, band, 2 block - 1]
  index = relative + queries - 1
  mine = (index >= 0) & (index < wanted.shape[3])
  if who.edges is not None:
    mine &= (relative > who.edges[:, :1, None]) & (relative < who.edges[:, 1:, None])
  put = lambda zero, at, x: zero.at[:, :, at].add(x, mode="drop")
  index = jnp.broadcast_to(jnp.where(mine, index, wanted.shape[3]), (wanted.shape[0], *index.shape[1:]))
  grads = jax.vmap(put)(jnp.zeros_like(wanted), index, sums)
  if far is None:
    return grads
  far = far.sum((0, 3) if wanted.shape[0] == 1 else 3, keepdims=True)[:, :, :, 0]
  return grads.at[..., 0].add(far[..., 0]).at[..., -1].add(far[..., 1])


def _bands(rule: Rule, who: Seen, queries: int, keys: int) -> Int[Array, "#batch band 3"]:
  """Of each band of tiles (i, i + t): the first i that is visited, the one after the last, and t.

  All bands, or those that have a diagonal between the edges.
  """
  block = rule.tiles.of_bias.block_q
  rows, columns = -(-queries // block), -(-keys // block)
  first, count = jnp.full((1, 1), 1 - rows), rows + columns - 1
  if who.edges is not None and rule.reach is not None:
    near = -(-(rule.reach[1] - rule.reach[0] + 2 * block - 2) // block)
    if near < count:
      first, count = (who.edges[:, :1] - block + 1) // block + 1, near
  apart = first + jnp.arange(count)  # [#batch, band]
  row = jnp.arange(rows)
  column = row + apart[..., None]
  there, _, _ = visited(who, queries, keys, rule.tiles.of_bias)
  most = max(there.shape[0], column.shape[0])
  there = jnp.broadcast_to(there, (most, rows, columns))
  inside = (column >= 0) & (column < columns)
  there = there[jnp.arange(most)[:, None, None], row, jnp.clip(column, 0, columns - 1)] & inside
  apart = jnp.broadcast_to(apart, (most, count))
  return jnp.concatenate([extent(there), apart[..., None]], -1).astype(jnp.int32)


def _of_bands(
  rule: Rule, q, k, v, dy, log_sums, inner, bias: Added, who: Seen, limits, interpret: bool
) -> Float[Array, "batch part kv_heads group band block block"]:
  """dS of bands of tiles, summed over up to `BAND` tiles of each."""
  batch, queries, shared, group, _ = q.shape
  tile = rule.tiles.of_bias
  parts = -(-queries // (tile.block_q * BAND))
  bands = limits.shape[1]
  band, _, of, member = places(group)
  row, part = lambda i, h, b: jax.lax.div(b, parts), lambda i, h, b: jax.lax.rem(b, parts)
  sums = jax.ShapeDtypeStruct((batch, parts, shared, group, bands, tile.block_q, tile.block_k), jnp.float32)
  return pl.pallas_call(
    partial(_of_bands_kernel, rule, parts),
    grid=(bands, shared * group, batch * parts),
    in_specs=(
      taken(q, row, None, of, member),
      taken(k, row, None, of),
      taken(v, row, None, of),
      taken(dy, row, None, of, member),
      taken(log_sums, row, of, member),
      taken(inner, row, of, member),
      taken_all(bias, row, of, member),
      taken_all(who, row),
      taken(limits, row, band),
    ),
    out_specs=taken(sums, row, part, of, member, band),
    out_shape=sums,
    compiler_params=tile.parameters,
    cost_estimate=cost(2, q, k, (q, k, v, dy, log_sums, inner, bias, who, sums)),
    interpret=interpret,
    name="attention_triton_of_bias",
  )(q, k, v, dy, log_sums, inner, bias, who, limits)


def _of_bands_kernel(
  rule: Rule, parts: int, q_ref, k_ref, v_ref, dy_ref, log_sums, inner, added_refs: Added, who: Seen, limits, sums_ref
):
  """A part of one band."""
  block, part = rule.tiles.of_bias.block_q, jax.lax.rem(pl.program_id(2), parts)
  refs = (q_ref, k_ref, v_ref, dy_ref, log_sums, inner, added_refs, who)
  step = lambda row, sums: sums + _of_scores(rule, refs, row * block, (row + limits[2]) * block)
  start, stop = jnp.maximum(limits[0], part * BAND), jnp.minimum(limits[1], (part + 1) * BAND)
  sums_ref[...] = jax.lax.fori_loop(start, stop, step, jnp.zeros((block, block), jnp.float32))


def _of_scores(rule: Rule, refs, start_q, start_k) -> Float[Array, "block block"]:
  """dS of one tile, before the cap's derivative: what the bias gets."""
  q_ref, k_ref, v_ref, dy_ref, log_sums, inner, added_refs, who = refs
  block, more_q = rule.tiles.of_bias.block_q, filled(q_ref.shape[0], rule.tiles.whole)
  queries = down(loaded_side(who.queries, start_q, block))
  keys = across(loaded_side(who.keys, start_k, block))
  product = pl.dot(loaded(q_ref, start_q, block), loaded(k_ref, start_k, block), trans_b=True)
  scores, _ = scored(product, rule, queries, keys, added(added_refs, NEAR, queries[1], keys[1], more_q))
  weights = jnp.exp2(scores - loaded_vector(log_sums, start_q, block, jnp.inf)[:, None])
  dw = pl.dot(loaded(dy_ref, start_q, block), loaded(v_ref, start_k, block), trans_b=True)
  return weights * (dw - loaded_vector(inner, start_q, block, 0.0)[:, None])


def _of_dense(rule: Rule, wanted, q, k, v, dy, log_sums, inner, bias: Added, who: Seen):
  """Gradient of `wanted`, a bias that is written out. Where rows share it they are gone through one by one: the program
  holds two gradients in float32 at a time, not one a row."""
  there, _, _ = visited(who, q.shape[1], k.shape[1], rule.tiles.of_bias)
  there = there.reshape(there.shape[0], -1, 1).astype(jnp.int32)
  arrays = (q, k, v, dy, log_sums, inner, bias, who, there)
  if wanted.shape[0] == q.shape[0]:
    return on("cuda", partial(_of_tiles, rule, wanted.dtype), *arrays)

  def of_row(sums, row):
    one = lambda x: x if x.shape[0] == 1 else jax.lax.dynamic_slice_in_dim(x, row, 1)
    return sums + on("cuda", partial(_of_tiles, rule, jnp.float32), *jax.tree.map(one, arrays)), None

  sums, _ = jax.lax.scan(of_row, jnp.zeros(wanted.shape, jnp.float32), jnp.arange(q.shape[0]))
  return sums.astype(wanted.dtype)


def _of_tiles(
  rule: Rule, dtype, q, k, v, dy, log_sums, inner, bias: Added, who: Seen, there, interpret: bool
) -> Float[Array, "batch kv_heads group query key"]:
  """dS, written out."""
  batch, queries, shared, group, _ = q.shape
  tile = rule.tiles.of_bias
  place, row, of, member = places(group)
  ds = jax.ShapeDtypeStruct((batch, shared, group, queries, k.shape[1]), dtype)
  return pl.pallas_call(
    partial(_of_tiles_kernel, rule),
    grid=(there.shape[1], shared * group, batch),
    in_specs=(
      taken(q, row, None, of, member),
      taken(k, row, None, of),
      taken(v, row, None, of),
      taken(dy, row, None, of, member),
      taken(log_sums, row, of, member),
      taken(inner, row, of, member),
      taken_all(bias, row, of, member),
      taken_all(who, row),
      taken(there, row, place),
    ),
    out_specs=taken(ds, row, of, member),
    out_shape=ds,
    compiler_params=tile.parameters,
    cost_estimate=cost(2, q, k, (q, k, v, dy, log_sums, inner, bias, who, ds)),
    interpret=interpret,
    name="attention_triton_of_dense",
  )(q, k, v, dy, log_sums, inner, bias, who, there)


def _of_tiles_kernel(
  rule: Rule, q_ref, k_ref, v_ref, dy_ref, log_sums, inner, added_refs: Added, who: Seen, there, ds_ref
):
  """One tile, zeros where it is not visited."""
  block, (queries, keys) = rule.tiles.of_bias.block_q, ds_ref.shape
  columns = -(-keys // block)
  start_q = jax.lax.div(pl.program_id(0), columns) * block
  start_k = jax.lax.rem(pl.program_id(0), columns) * block
  refs = (q_ref, k_ref, v_ref, dy_ref, log_sums, inner, added_refs, who)
  step = lambda _, sums: sums + _of_scores(rule, refs, start_q, start_k)
  ds = jax.lax.fori_loop(0, there[0], step, jnp.zeros((block, block), jnp.float32))
  inside = (start_q + jnp.arange(block) < queries)[:, None] & (start_k + jnp.arange(block) < keys)[None, :]
  part = ds_ref.at[pl.ds(start_q, block), pl.ds(start_k, block)]
  plgpu.store(part, ds.astype(ds_ref.dtype), mask=None if queries % block == keys % block == 0 else inside)
