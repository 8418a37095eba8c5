"""Decode attention on GPU (Pallas Triton): the keys of a row in splits, each by a program of its own.

One query gives a row and head of keys too little work to fill a GPU, so the blocks of keys that it sees are dealt out
to several programs. Each leaves its sums, its largest score and its total of weights, and XLA puts them together
(flash-decoding: Dao et al. 2023, pytorch.org/blog/flash-decoding). Blocks that no query of a row sees are not read.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.attention import decode_rows
from pallas_kernels.attention.decode import Cached, without_cache
from pallas_kernels.attention.decode_rows import HIDDEN, Rows, forward_only, joined, precision, rows
from pallas_kernels.attention.spec import FEATURES, AttentionSpec
from pallas_kernels.platforms import on
from pallas_kernels.tuning.lookup import tuned

HONOURED = FEATURES
NAME = "decode_attention_triton"
# Programs that are to run at a time: two for each of an H200's multiprocessors.
PROGRAMS = 2 * 132
# The least that Triton multiplies a matrix by.
SMALLEST = 16
# Of a block of keys, of which three and as many of values are in flight; and of the rows that stay beside them.
BLOCK_BYTES, ROW_BYTES = 2**14, 2**16


def in_cache(
  q: Float[Array, "batch query heads d_kv"],
  cached: Cached,
  spec: AttentionSpec,
  *,
  block_k: int | None = None,
  splits: int | None = None,
) -> Float[Array, "batch query heads d_kv"]:
  """Attention on one layer of a cache, see `AttentionSpec`; the softmax and all sums are in float32.

  Args:
    block_k: keys of a block, a power of two from 16; None: as tuned.
    splits: programs of one row and head of keys; None: as many as fill the device.

  Raises:
    Unsupported: a gradient is asked for.
  """
  _, batch, shared, keys, d_kv = cached.k.shape
  if block_k is None:
    default = max(BLOCK_BYTES // (pl.next_power_of_2(d_kv) * q.dtype.itemsize), SMALLEST)
    block_k = tuned(NAME, {"block_k": default}, q.dtype, d_kv, keys)["block_k"]
  block = max(min(block_k, pl.next_power_of_2(keys)), SMALLEST)
  if splits is None:
    splits = max(1, PROGRAMS // (batch * shared))
  splits = min(splits, pl.cdiv(keys, block))
  given = rows(q, keys, shared, block, spec)
  call = partial(_call, block=block, splits=splits, scale=spec.scale, soft_cap=spec.soft_cap)
  run = forward_only("decode_triton", partial(on, "cuda", call))
  y = run(given, cached.k, cached.v, jnp.reshape(jnp.asarray(cached.layer, jnp.int32), (1,)))
  return joined(y, q.shape[1])


attention = without_cache(in_cache)


def _call(
  given: Rows,
  k: Float[Array, "layer batch kv_heads key d_kv"],
  v: Float[Array, "layer batch kv_heads key d_kv"],
  layer: Int[Array, "1"],
  *,
  block: int,
  splits: int,
  scale: float,
  soft_cap: float,
  interpret: bool,
) -> Float[Array, "batch kv_heads row d_kv"]:
  batch, shared, row, d_kv = given.q.shape
  keys = k.shape[3]
  lead = (batch, shared, splits)
  numbers = lambda *shape: jax.ShapeDtypeStruct((*lead, *shape), jnp.float32)
  scores = batch * shared * row * keys
  small = (x.nbytes for x in (given.q, given.mask, given.bias) if x is not None)
  partial_sums = pl.pallas_call(
    partial(_kernel, block=block, splits=splits, keys=keys, scale=scale, soft_cap=soft_cap),
    grid=lead,
    out_shape=[numbers(row, d_kv), numbers(row), numbers(row)],
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
    cost_estimate=pl.CostEstimate(
      flops=4 * scores * d_kv,
      transcendentals=scores,
      bytes_accessed=2 * k.nbytes // k.shape[0] + sum(small) + 4 * batch * shared * splits * row * (d_kv + 2),
    ),
    interpret=interpret,
    name=NAME,
  )(layer, given.first, given.last, given.q, k, v, given.mask, given.bias)
  return _joined(*partial_sums).astype(given.q.dtype)


def _joined(
  sums: Float[Array, "batch kv_heads split row d_kv"],
  highest: Float[Array, "batch kv_heads split row"],
  total: Float[Array, "batch kv_heads split row"],
) -> Float[Array, "batch kv_heads row d_kv"]:
  """The result of all splits."""
  share = jnp.exp(highest - highest.max(2, keepdims=True))
  total = (total * share).sum(2)
  return (sums * share[..., None]).sum(2) / jnp.where(total > 0, total, 1)[..., None]


def _kernel(
  layer_ref, first_ref, last_ref, q_ref, k_ref, v_ref, mask_ref, bias_ref, sums_ref, highest_ref, total_ref,
  *, block: int, splits: int, keys: int, scale: float, soft_cap: float
):  # fmt: skip
  """All blocks of one split. Every array is there whole."""
  b, h, split = (pl.program_id(axis) for axis in range(3))
  _, _, rows, d_kv = q_ref.shape
  # Powers of two, as Triton has it: what is over repeats the last row, and reads zeros of a head.
  row = jnp.arange(max(pl.next_power_of_2(rows), SMALLEST))
  at_row, at_dim = jnp.minimum(row, rows - 1), jnp.arange(pl.next_power_of_2(d_kv))
  of_head = at_dim < d_kv
  layer, first, last = layer_ref[0], first_ref[b], last_ref[b]
  each = pl.cdiv(last - first, splits)
  begin = first + split * each
  row_of = lambda ref: b if ref.shape[0] > 1 else 0
  q = plgpu.load(q_ref.at[b, h, at_row[:, None], at_dim[None, :]], mask=of_head[None, :], other=0)
  dot = partial(jax.lax.dot, precision=precision(q.dtype), preferred_element_type=jnp.float32)

  def of_block(j, carry):
    highest, total, sums = carry
    key = j * block + jnp.arange(block)
    there = key < keys
    of_keys = lambda ref: plgpu.load(
      ref.at[layer, b, h, key[:, None], at_dim[None, :]], mask=there[:, None] & of_head[None, :], other=0
    )
    seen = plgpu.load(mask_ref.at[row_of(mask_ref), at_row[:, None], key[None, :]]).astype(jnp.int32)
    scores = dot(q, of_keys(k_ref).T) * scale
    if soft_cap:
      scores = jnp.tanh(scores / soft_cap) * soft_cap
    if bias_ref is not None:
      bias = bias_ref.at[row_of(bias_ref), h, at_row[:, None], key[None, :]]
      scores = scores + plgpu.load(bias, mask=there[None, :], other=0)
    scores = jnp.where(seen > 0, scores, HIDDEN)
    higher = jnp.maximum(highest, scores.max(1))
    weights = jnp.where(seen > 0, jnp.exp(scores - higher[:, None]), 0.0)
    kept = jnp.exp(highest - higher)
    # A weight of 0 does not hide a NaN.
    values = jnp.where((seen.max(0) > 0)[:, None], of_keys(v_ref), 0)
    part = dot(weights.astype(values.dtype), values)
    return higher, total * kept + weights.sum(1), sums * kept[:, None] + part

  numbers = lambda fill, *shape: jnp.full(shape, fill, jnp.float32)
  nothing = numbers(HIDDEN, row.size), numbers(0, row.size), numbers(0, row.size, at_dim.size)
  highest, total, sums = jax.lax.fori_loop(begin, jnp.minimum(begin + each, last), of_block, nothing)
  mine = row < rows
  plgpu.store(sums_ref.at[b, h, split, row[:, None], at_dim[None, :]], sums, mask=mine[:, None] & of_head[None, :])
  plgpu.store(highest_ref.at[b, h, split, row], highest, mask=mine)
  plgpu.store(total_ref.at[b, h, split, row], total, mask=mine)


def refusal(q, k, v, spec) -> str | None:
  """Sizes and dtypes."""
  row = pl.next_power_of_2(q.shape[1] * q.shape[2] // k.shape[2])
  size = row * pl.next_power_of_2(q.shape[3]) * q.dtype.itemsize
  if size > ROW_BYTES:
    return f"queries of all heads that share keys take {size} bytes, and only {ROW_BYTES} fit beside the keys"
  return decode_rows.refusal(q, k, v)
