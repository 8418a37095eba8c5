"""Decode attention on TPU (Mosaic): one pass over the keys that are seen, all heads that share them at once.

A TPU lays an array out in tiles of 128 lanes along its last axis, so that heads of 64 would fill half of each: keys and
values enter as [.., d_kv, key] unless d_kv is a multiple of 128. XLA lays the cache out in the same order, and
transposes nothing (the tests look at what it compiles).

A block that no query of its row sees is not fetched: its index is that of the nearest one that is seen, and Mosaic
fetches a block when its index changes. The softmax goes on from block to block (Milakov and Gimelshein 2018, arXiv
1805.02867).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels.attention import decode_rows
from pallas_kernels.attention.decode import Cached, without_cache
from pallas_kernels.attention.decode_rows import HIDDEN, Rows, forward_only, joined, precision, rows
from pallas_kernels.attention.spec import FEATURES, AttentionSpec
from pallas_kernels.platforms import on
from pallas_kernels.tuning.lookup import tuned

HONOURED = FEATURES
NAME = "decode_attention_tpu"
# Of one block of keys: large enough to hide what a step of the grid costs, and four of them fit into VMEM.
BLOCK_BYTES = 2**20
BLOCKS = (512, 2048)
# Lanes of a tile; rows of a tile of 2-byte numbers.
LANES, SUBLANES = 128, 16


def in_cache(
  q: Float[Array, "batch query heads d_kv"], cached: Cached, spec: AttentionSpec, *, block_k: int | None = None
) -> Float[Array, "batch query heads d_kv"]:
  """Attention on one layer of a cache, see `AttentionSpec`; the softmax and all sums are in float32.

  Args:
    block_k: keys of a block, a multiple of 128; None: as tuned.

  Raises:
    Unsupported: a gradient is asked for.
  """
  _, _, shared, keys, d_kv = cached.k.shape
  if block_k is None:
    default = {"block_k": _block(shared * d_kv * cached.k.dtype.itemsize)}
    block_k = tuned(NAME, default, q.dtype, d_kv, keys)["block_k"]
  block = min(block_k, keys)
  given = rows(q, keys, shared, block, spec)
  call = partial(_call, block=block, scale=spec.scale, soft_cap=spec.soft_cap)
  run = forward_only("decode_tpu", partial(on, "tpu", call))
  y = run(given, cached.k, cached.v, jnp.reshape(jnp.asarray(cached.layer, jnp.int32), (1,)))
  return joined(y, q.shape[1])


attention = without_cache(in_cache)


def _block(of_key: int) -> int:
  """Keys of a block, where all heads of a key take `of_key` bytes."""
  low, high = BLOCKS
  return min(max(1 << (BLOCK_BYTES // of_key).bit_length() - 1, low), high)


def _heads(shared: int, of_head: int) -> int:
  """How many heads one step takes, where a block of one takes `of_head` bytes."""
  return max(n for n in range(1, shared + 1) if shared % n == 0 and (n == 1 or n * of_head <= BLOCK_BYTES))


def _call(
  given: Rows,
  k: Float[Array, "layer batch kv_heads key d_kv"],
  v: Float[Array, "layer batch kv_heads key d_kv"],
  layer: Int[Array, "1"],
  *,
  block: int,
  scale: float,
  soft_cap: float,
  interpret: bool,
) -> Float[Array, "batch kv_heads row d_kv"]:
  batch, shared, row, d_kv = given.q.shape
  # Keys of a block, or float32 scores of them.
  heads = _heads(shared, block * max(d_kv * k.dtype.itemsize, 4 * row))
  keys = k.shape[3]

  def by_row(shape, index):
    """A block of one row of the batch; arrays that are the same for all have one."""

    def at(b, h, j, layer, first, last):
      seen = jnp.clip(j, first[b], jnp.maximum(last[b] - 1, 0))
      return index(b, h, seen, layer[0])

    return pl.BlockSpec(shape, at)

  row_of = lambda x, b: b if x.shape[0] > 1 else 0
  by_dim = d_kv % LANES > 0
  if by_dim:
    k, v = jnp.swapaxes(k, 3, 4), jnp.swapaxes(v, 3, 4)
    kept = by_row((None, None, heads, d_kv, block), lambda b, h, j, layer: (layer, b, h, 0, j))
  else:
    kept = by_row((None, None, heads, block, d_kv), lambda b, h, j, layer: (layer, b, h, j, 0))
  of_rows = by_row((None, heads, row, d_kv), lambda b, h, j, layer: (b, h, 0, 0))
  of_mask = by_row((None, row, block), lambda b, h, j, layer: (row_of(given.mask, b), 0, j))
  of_bias = None
  if given.bias is not None:
    of_bias = by_row((None, heads, row, block), lambda b, h, j, layer: (row_of(given.bias, b), h, 0, j))
  numbers = lambda *shape: pltpu.VMEM(shape, jnp.float32)
  scores = batch * shared * row * keys
  small = (x.nbytes for x in (given.q, given.q, given.mask, given.bias) if x is not None)
  return pl.pallas_call(
    partial(_kernel, by_dim=by_dim, scale=scale, soft_cap=soft_cap),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=3,
      grid=(batch, shared // heads, pl.cdiv(keys, block)),
      in_specs=[of_rows, kept, kept, of_mask, of_bias],
      out_specs=of_rows,
      scratch_shapes=[numbers(heads, row, 1), numbers(heads, row, 1), numbers(heads, row, d_kv)],
    ),
    out_shape=jax.ShapeDtypeStruct(given.q.shape, given.q.dtype),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
    cost_estimate=pl.CostEstimate(
      flops=4 * scores * d_kv, transcendentals=scores, bytes_accessed=2 * k.nbytes // k.shape[0] + sum(small)
    ),
    interpret=interpret,
    name=NAME,
  )(layer, given.first, given.last, given.q, k, v, given.mask, given.bias)


def _kernel(
  layer, first, last, q, k, v, mask, bias, y, highest, total, sums, *, by_dim: bool, scale: float, soft_cap: float
):
  """One block of keys. q, y, sums: [heads, row, d_kv]; k, v: [heads, d_kv, key] if `by_dim`, else [heads, key, d_kv];
  mask: [row, key]; bias: [heads, row, key] or None; highest, total: [heads, row, 1]."""
  b, j = pl.program_id(0), pl.program_id(2)
  of_dim, of_key = (1, 2) if by_dim else (2, 1)

  def dot(x, y, axis: int):
    """Sums over the last axis of x and `axis` of y, head by head."""
    over = (((2,), (axis,)), ((0,), (0,)))
    return jax.lax.dot_general(x, y, over, precision=precision(y.dtype), preferred_element_type=jnp.float32)

  @pl.when(j == 0)
  def start():
    highest[...] = jnp.full(highest.shape, HIDDEN, jnp.float32)
    total[...] = jnp.zeros(total.shape, jnp.float32)
    sums[...] = jnp.zeros(sums.shape, jnp.float32)

  @pl.when((j >= first[b]) & (j < last[b]))
  def visit():
    seen = mask[...].astype(jnp.int32) > 0
    scores = dot(q[...], k[...], of_dim) * scale
    if soft_cap:
      scores = jnp.tanh(scores / soft_cap) * soft_cap
    if bias is not None:
      scores = scores + bias[...]
    scores = jnp.where(seen, scores, HIDDEN)
    higher = jnp.maximum(highest[...], scores.max(-1, keepdims=True))
    weights = jnp.where(seen, jnp.exp(scores - higher), 0.0)
    kept = jnp.exp(highest[...] - higher)
    # A weight of 0 does not hide a NaN.
    of_some = seen.astype(jnp.float32).max(0, keepdims=True)
    of_some = of_some if by_dim else jnp.broadcast_to(of_some, (v.shape[2], v.shape[1])).T
    values = jnp.where(of_some > 0, v[...], jnp.zeros(v.shape, v.dtype))
    part = dot(weights.astype(v.dtype), values, of_key)
    highest[...] = higher
    total[...] = total[...] * kept + weights.sum(-1, keepdims=True)
    sums[...] = sums[...] * kept + part

  @pl.when(j == pl.num_programs(2) - 1)
  def finish():
    y[...] = (sums[...] / jnp.where(total[...] > 0, total[...], 1)).astype(y.dtype)


def refusal(q, k, v, spec) -> str | None:
  """Sizes and dtypes."""
  if q.shape[3] % SUBLANES:
    return f"it takes heads of a multiple of {SUBLANES}, not {q.shape[3]}"
  return decode_rows.refusal(q, k, v)
