"""Forward kernel of attention on TPU; see `mosaic_tpu`."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Num

from pallas_kernels.attention import mosaic_tpu_bias as toeplitz
from pallas_kernels.attention.mosaic_tpu_masks import Seen, Visits, allowed, column

LANES = 128
# What is hidden lies so far below the lowest maximum that its weight is 0, in rows that see
# nothing too.
LOWEST = -1e30
HIDDEN = -2e30
# Of the smallest memory on the chips compiled for (v5p: 64 MB), what a kernel may take.
VMEM_LIMIT = 60 * 2**20


class Blocks(NamedTuple):
  """Sizes of a kernel's blocks, and how many of them a row and head visits by what is known without data."""

  q: int
  k: int
  visited: int


class Plan(NamedTuple):
  """What is static."""

  causal: bool
  near: bool  # there is a window
  scale: float
  soft_cap: float
  forward: Blocks
  backward: Blocks


class Scratch(NamedTuple):
  """What stays on the chip from step to step: of each query the highest score, the sum of weighted values, the sum of
  weights where no spare lane holds it, and the segment; and the strip of the bias."""

  highest: Any
  sums: Any
  total: Any
  segments: Any
  strip: Any


def scores(q, k, bias, mask, plan: Plan):
  """(scores with bias, hidden ones low; tanh of the capped score or None) of one block, in float32.

  Args:
    q, k: the operand whose rows are the block's rows comes first.
  """
  products = dot(q, k, 1, 1)
  capped = None
  if plan.soft_cap:
    capped = jnp.tanh(products * (plan.scale / plan.soft_cap))
    products = capped * plan.soft_cap
  elif plan.scale != 1.0:
    products = products * plan.scale
  if bias is not None:
    products = products + bias
  return (products if mask is None else jnp.where(mask, products, HIDDEN)), capped


def dot(a, b, of_a: int, of_b: int):
  """Contraction of an axis of each, summed in float32; products of float32 are such."""
  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  dims = (((of_a,), (of_b,)), ((), ()))
  return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32, precision=precision)


def given(operand: Any, shape: tuple[int, ...], at: Callable[..., tuple[Any, ...]]) -> Any:
  """The blocks of an operand, if there is one."""
  return None if operand is None else pl.BlockSpec(shape, at)


def forward(
  q: Float[Array, "batch heads query d_kv"],
  k: Float[Array, "batch kv_heads key d_kv"],
  v: Float[Array, "batch kv_heads key d_kv"],
  diagonals: Float[Array, "#batch heads 1 diagonal"] | None,
  hides: Seen,
  visits: Visits,
  *,
  plan: Plan,
  interpret: Any,
) -> tuple[Float[Array, "batch heads query d_kv"], Float[Array, "batch heads 1 query"]]:
  """Output, and the log of each query's sum of exponentials; lengths are of whole blocks.

  Args:
    diagonals: query + key of them; the last one is not read.
  """
  batch, heads, queries, d = q.shape
  keys, groups = k.shape[2], heads // k.shape[1]
  block_q, block_k, visited = plan.forward
  # The lanes that values leave idle hold ones in the product: what comes out there are the sums of the weights.
  spare = -d % LANES
  by_row = diagonals is not None and diagonals.shape[0] > 1

  def key_block(b, i, j, visits):
    first, last = (x[b * (queries // block_q) + i] for x in visits[2:])
    return jnp.maximum(jnp.minimum(j, last), first)

  of_queries = lambda h, b, i, j, *visits: (b, h, i, 0)
  of_keys = lambda h, b, i, j, *visits: (b, jax.lax.div(h, groups), key_block(b, i, j, visits), 0)
  of_head = lambda h, b, i, j, *visits: (b if by_row else 0, h, 0, 0)
  row_of_queries = lambda h, b, i, j, *visits: (b, 0, i)
  row_of_keys = lambda h, b, i, j, *visits: (b, 0, key_block(b, i, j, visits))
  one_row_of_keys = lambda h, b, i, j, *visits: (0, 0, key_block(b, i, j, visits))
  for_all = hides.first is not None and hides.first.shape[0] == 1
  in_specs = (
    pl.BlockSpec((1, 1, block_q, d), of_queries),
    pl.BlockSpec((1, 1, block_k, d), of_keys),
    pl.BlockSpec((1, 1, block_k, d), of_keys),
    given(diagonals, (1, 1, 1, queries + keys), of_head),
    Seen(
      given(hides.first, (1, 1, block_k), one_row_of_keys if for_all else row_of_keys),
      given(hides.query_segments, (1, 1, block_q), row_of_queries),
      given(hides.key_segments, (1, 1, block_k), row_of_keys),
    ),
  )
  lanes = min(LANES, block_k)
  strip_rows = toeplitz.rows(block_q, block_k)
  scratch = Scratch(
    pltpu.VMEM((block_q, lanes), jnp.float32),
    pltpu.VMEM((block_q, d + spare), jnp.float32),
    None if spare else pltpu.VMEM((block_q, lanes), jnp.float32),
    None if hides.query_segments is None else pltpu.VMEM((block_q, lanes), jnp.int32),
    None if diagonals is None else pltpu.VMEM((strip_rows, queries + keys - strip_rows), jnp.float32),
  )
  work = batch * heads * visited * block_q * block_k
  return pl.pallas_call(
    partial(_kernel, plan=plan, queries=queries, by_row=by_row),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(visits),
      grid=(heads, batch, queries // block_q, keys // block_k),
      in_specs=in_specs,
      out_specs=[
        pl.BlockSpec((1, 1, block_q, d), of_queries),
        pl.BlockSpec((1, 1, 1, block_q), lambda h, b, i, j, *visits: (b, h, 0, i)),
      ],
      scratch_shapes=[scratch],
    ),
    out_shape=[
      jax.ShapeDtypeStruct(q.shape, q.dtype),
      jax.ShapeDtypeStruct((batch, heads, 1, queries), jnp.float32),
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "parallel" if diagonals is None else "arbitrary", "arbitrary", "arbitrary"),
      vmem_limit_bytes=VMEM_LIMIT,
    ),
    cost_estimate=pl.CostEstimate(
      flops=4 * work * d,
      transcendentals=work * (2 if plan.soft_cap else 1),
      bytes_accessed=sum(x.size * x.dtype.itemsize for x in (q, q, k, v)),
    ),
    interpret=interpret,
    name="mtx_attention_forward",
  )(*visits, q, k, v, diagonals, hides)


def _kernel(offset, window, first, last, *refs, plan: Plan, queries: int, by_row: bool):
  q, k, v, diagonals, hides, y, log_sums, scratch = refs
  b, i, j = (pl.program_id(axis) for axis in (1, 2, 3))
  highest, sums, total, segments, strip = scratch
  block_q, block_k, _ = plan.forward
  d = q.shape[3]

  if strip is not None:

    @pl.when((i == 0) & (j == 0) & (by_row | (b == 0)))
    def prepare():
      toeplitz.lay_out(strip, diagonals.at[0, 0], strip.shape[0])

  @pl.when(j == 0)
  def start():
    highest[...] = jnp.full_like(highest, LOWEST)
    sums[...] = jnp.zeros_like(sums)
    if total is not None:
      total[...] = jnp.zeros_like(total)
    if segments is not None:
      segments[...] = column(hides.query_segments[0], segments.shape[1])

  row = b * pl.num_programs(2) + i

  @pl.when((first[row] <= j) & (j <= last[row]))
  def visit():
    bias = None
    if strip is not None:
      bias = toeplitz.tile(strip, j * block_k - i * block_q + queries - strip.shape[0], block_q, block_k)
    first_query = offset[b] + i * block_q
    mask = allowed(
      (block_q, block_k),
      0,
      j * block_k - first_query,
      causal=plan.causal,
      window=window[0] if plan.near else None,
      first=None if hides.first is None else hides.first[0] - first_query,
      query_segments=None if segments is None else _wide(segments[...], block_k),
      key_segments=None if segments is None else hides.key_segments[0],
    )
    s, _ = scores(q[0, 0], k[0, 0], bias, mask, plan)
    before = highest[...]
    higher = jnp.maximum(before, s.max(1, keepdims=True))
    weights = jnp.exp(s - _wide(higher, block_k))
    kept = jnp.exp(before - higher)
    highest[...] = higher
    if total is not None:
      total[...] = total[...] * kept + weights.sum(1, keepdims=True)
    values = v[0, 0]
    if total is None:
      values = jnp.concatenate([values, jnp.ones((block_k, sums.shape[1] - d), v.dtype)], axis=1)
    part = dot(weights.astype(v.dtype), values, 1, 0)
    sums[...] = sums[...] * _wide(kept, sums.shape[1]) + part

  @pl.when(j == pl.num_programs(3) - 1)
  def finish():
    added = sums[...]
    weight = added[:, d : d + 1] if total is None else total[:, :1]
    weight = jnp.where(weight > 0, weight, 1)
    y[0, 0] = (added[:, :d] / weight).astype(y.dtype)
    log_sums[0, 0] = jnp.transpose(highest[...] + jnp.log(weight))[:1]


def _wide(x: Num[Array, "n lanes"], width: int) -> Num[Array, "n width"]:
  """As many equal columns as `width`."""
  if width % x.shape[1]:
    return jnp.broadcast_to(x[:, :1], (x.shape[0], width))
  return jnp.tile(x, (1, width // x.shape[1]))
