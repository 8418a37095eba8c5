"""Backward kernel of attention on TPU: dq, dk, dv and the gradient of the bias, in one pass; see `mosaic_tpu`.

Blocks are keys by queries: what there is a value of for each query then lies along a row, and one product of five needs
an operand turned. dk and dv of all keys of a head stay on the chip until its group's queries went by, which bounds the
length (`on_chip`).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, DTypeLike, Float

from pallas_kernels.attention import mosaic_tpu_bias as toeplitz
from pallas_kernels.attention.mosaic_tpu_forward import LANES, VMEM_LIMIT, Plan, dot, given, scores
from pallas_kernels.attention.mosaic_tpu_masks import Seen, Visits, allowed, column


class Scratch(NamedTuple):
  """What stays on the chip from step to step: sums of gradients, by key those of the whole head; columns of what hides
  keys; the strips of the bias and of its gradient."""

  dq: Any
  dk: Any
  dv: Any
  firsts: Any
  segments: Any
  strip: Any
  strip_sums: Any


def backward(
  q: Float[Array, "batch heads query d_kv"],
  k: Float[Array, "batch kv_heads key d_kv"],
  v: Float[Array, "batch kv_heads key d_kv"],
  dy: Float[Array, "batch heads query d_kv"],
  log_sums: Float[Array, "batch heads 1 query"],
  inner: Float[Array, "batch heads 1 query"],
  diagonals: Float[Array, "#batch heads 1 diagonal"] | None,
  hides: Seen,
  visits: Visits,
  *,
  plan: Plan,
  interpret: Any,
) -> tuple[Float[Array, "..."], ...]:
  """(dq, dk, dv), and where there is a bias the gradient of its diagonals, summed over rows unless each has its own.

  Args:
    log_sums: as the forward kernel gives them. inner: of each query, output times its gradient.
    diagonals: from the last key's and first query's on: the reverse of what the forward kernel reads.
  """
  batch, heads, queries, d = q.shape
  shared, keys = k.shape[1:3]
  groups = heads // shared
  block_q, block_k, visited = plan.backward
  by_row = diagonals is not None and diagonals.shape[0] > 1
  head = lambda h, g: h * groups + g

  def key_block(b, i, j, visits):
    first, last = (x[b * (queries // block_q) + i] for x in visits[2:])
    return jnp.maximum(jnp.minimum(j, last), first)

  of_queries = lambda h, b, g, i, j, *visits: (b, head(h, g), i, 0)
  of_keys = lambda h, b, g, i, j, *visits: (b, h, key_block(b, i, j, visits), 0)
  all_keys = lambda h, b, g, i, j, *visits: (b, h, 0, 0)
  value_of_queries = lambda h, b, g, i, j, *visits: (b, head(h, g), 0, i)
  of_head = lambda h, b, g, i, j, *visits: (b if by_row else 0, head(h, g), 0, 0)
  row_of_queries = lambda h, b, g, i, j, *visits: (b, 0, i)
  all_of_row = lambda h, b, g, i, j, *visits: (b, 0, 0)
  all_of_one_row = lambda h, b, g, i, j, *visits: (0, 0, 0)
  for_all = hides.first is not None and hides.first.shape[0] == 1
  block_of_queries = pl.BlockSpec((1, 1, block_q, d), of_queries)
  block_of_keys = pl.BlockSpec((1, 1, block_k, d), of_keys)
  values_of_queries = pl.BlockSpec((1, 1, 1, block_q), value_of_queries)
  in_specs = (
    block_of_queries,
    block_of_keys,
    block_of_keys,
    block_of_queries,
    values_of_queries,
    values_of_queries,
    given(diagonals, (1, 1, 1, queries + keys), of_head),
    Seen(
      given(hides.first, (1, 1, keys), all_of_one_row if for_all else all_of_row),
      given(hides.query_segments, (1, 1, block_q), row_of_queries),
      given(hides.key_segments, (1, 1, keys), all_of_row),
    ),
  )
  out_specs = [block_of_queries, pl.BlockSpec((1, 1, keys, d), all_keys), pl.BlockSpec((1, 1, keys, d), all_keys)]
  out_shape = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
  # A strip that all rows share is laid out, and its gradient summed, once a head: where one head's rows come together.
  together = groups == 1 and not by_row
  strip = None
  if diagonals is not None:
    strip_rows = toeplitz.rows(block_q, block_k)
    strip = pltpu.VMEM((strip_rows, queries + keys - strip_rows), jnp.float32)
    each = lambda h, b, g, i, j, *visits: (0 if together else b, head(h, g), 0, 0)
    out_specs.append(pl.BlockSpec((1, 1, 1, queries + keys), each))
    out_shape.append(jax.ShapeDtypeStruct((1 if together else batch, heads, 1, queries + keys), jnp.float32))
  sums_by_key = pltpu.VMEM((keys, d), jnp.float32)
  column_of_keys = lambda x: None if x is None else pltpu.VMEM((keys, LANES), jnp.int32)
  scratch = Scratch(
    pltpu.VMEM((block_q, d), jnp.float32),
    sums_by_key,
    sums_by_key,
    column_of_keys(hides.first),
    column_of_keys(hides.key_segments),
    strip,
    strip,
  )
  work = batch * heads * visited * block_q * block_k
  grads = pl.pallas_call(
    partial(_kernel, plan=plan, keys=keys, together=together),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(visits),
      grid=(shared, batch, groups, queries // block_q, keys // block_k),
      in_specs=in_specs,
      out_specs=out_specs,
      scratch_shapes=[scratch],
    ),
    out_shape=out_shape,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=(
        "parallel",
        "arbitrary" if together and diagonals is not None else "parallel",
        "arbitrary",
        "arbitrary",
        "arbitrary",
      ),
      vmem_limit_bytes=VMEM_LIMIT,
    ),
    cost_estimate=pl.CostEstimate(
      flops=10 * work * d,
      transcendentals=work * (2 if plan.soft_cap else 1),
      bytes_accessed=2 * sum(x.size * x.dtype.itemsize for x in (q, k, v, dy)),
    ),
    interpret=interpret,
    name="mtx_attention_backward",
  )(*visits, q, k, v, dy, log_sums, inner, diagonals, hides)
  if diagonals is None or by_row:
    return tuple(grads)
  *others, d_diagonals = grads
  return *others, d_diagonals.sum(0, keepdims=True)


def _kernel(offset, window, first, last, *refs, plan: Plan, keys: int, together: bool):
  q, k, v, dy, log_sums, inner, diagonals, hides, dq, dk, dv, *d_diagonals, scratch = refs
  dq_sums, dk_sums, dv_sums, firsts, segments, strip, strip_sums = scratch
  b, g, i, j = (pl.program_id(axis) for axis in (1, 2, 3, 4))
  groups, query_blocks, key_blocks = (pl.num_programs(axis) for axis in (2, 3, 4))
  block_q, block_k, _ = plan.backward
  of_head_starts = (i == 0) & (j == 0)
  of_head_ends = (i == query_blocks - 1) & (j == key_blocks - 1)

  if strip is not None:

    @pl.when(of_head_starts & (b == 0) if together else of_head_starts)
    def prepare():
      toeplitz.lay_out(strip, diagonals.at[0, 0], strip.shape[0])
      toeplitz.clear(strip_sums)

  block_of_keys = lambda at: pl.ds(pl.multiple_of(at * block_k, block_k), block_k)

  @pl.when(of_head_starts & (g == 0))
  def start_keys():
    @pl.loop(0, key_blocks)  # so that the program's text does not grow with the length
    def clear(at):
      block = block_of_keys(at)
      dk_sums[block, :] = jnp.zeros((block_k, dk_sums.shape[1]), jnp.float32)
      dv_sums[block, :] = jnp.zeros((block_k, dv_sums.shape[1]), jnp.float32)
      if firsts is not None:
        firsts[block, :] = column(hides.first[0, :, block], LANES)
      if segments is not None:
        segments[block, :] = column(hides.key_segments[0, :, block], LANES)

  @pl.when(j == 0)
  def start_queries():
    dq_sums[...] = jnp.zeros_like(dq_sums)

  row = b * query_blocks + i

  @pl.when((first[row] <= j) & (j <= last[row]))
  def visit():
    block = block_of_keys(j)
    start = bias = None
    if strip is not None:
      start = i * block_q - j * block_k + keys - strip.shape[0]
      bias = toeplitz.tile(strip, start, block_k, block_q)
    first_query = offset[b] + i * block_q
    mask = allowed(
      (block_k, block_q),
      1,
      j * block_k - first_query,
      causal=plan.causal,
      window=window[0] if plan.near else None,
      first=None if firsts is None else firsts[block, :1] - first_query,
      query_segments=None if segments is None else hides.query_segments[0],
      key_segments=None if segments is None else segments[block, :1],
    )
    s, capped = scores(k[0, 0], q[0, 0], bias, mask, plan)
    weights = jnp.exp(s - log_sums[0, 0])
    dv_sums[block, :] += dot(weights.astype(dy.dtype), dy[0, 0], 1, 0)
    ds = weights * (dot(v[0, 0], dy[0, 0], 1, 1) - inner[0, 0])
    if strip_sums is not None:
      toeplitz.add_tile(strip_sums, start, ds)
    if capped is not None:
      ds = ds * (1 - capped * capped)
    ds = ds.astype(q.dtype)
    dk_sums[block, :] += dot(ds, q[0, 0], 1, 0)
    dq_sums[...] += dot(ds, k[0, 0], 0, 0)

  @pl.when(j == key_blocks - 1)
  def finish_queries():
    dq[0, 0] = (dq_sums[...] * plan.scale).astype(dq.dtype)

  if strip_sums is not None:

    @pl.when(of_head_ends & (b == pl.num_programs(1) - 1) if together else of_head_ends)
    def finish_bias():
      toeplitz.sum_diagonals(d_diagonals[0].at[0, 0], strip_sums)

  @pl.when(of_head_ends & (g == groups - 1))
  def finish_keys():
    @pl.loop(0, key_blocks)
    def write(at):
      block = block_of_keys(at)
      dk[0, 0, block, :] = (dk_sums[block, :] * plan.scale).astype(dk.dtype)
      dv[0, 0, block, :] = dv_sums[block, :].astype(dv.dtype)


def on_chip(queries: int, keys: int, d: int, dtype: DTypeLike, arrays_by_key: int, biased: bool) -> int:
  """Bytes of what stays on the chip for a whole head: its dk and dv, twice as results, columns of the mask, strips."""
  wide = -(-d // LANES) * LANES
  whole = 2 * keys * wide * (4 + 2 * jnp.dtype(dtype).itemsize)
  return whole + 4 * arrays_by_key * keys * LANES + (8 * toeplitz.ROWS * (queries + keys) if biased else 0)
