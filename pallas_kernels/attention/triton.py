"""Attention for NVIDIA GPUs, in Pallas by way of Triton: values here, gradients in `triton_backward`.

One program takes a block of queries of a row and head through the blocks of keys that it may see (Dao 2023, arXiv
2307.08691). A bias of buckets or ALiBi is read by its diagonals or slopes, never as a matrix.

Products of float32 arrays have jax's default precision, TF32 on these GPUs unless `jax_default_matmul_precision` says
more, as XLA's have. Everything was compiled for Hopper and run in interpret mode; not run on a GPU.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from pallas_kernels.attention import triton_backward
from pallas_kernels.attention.bias import Alibi, Buckets, DenseBias
from pallas_kernels.attention.spec import FEATURES, AttentionSpec
from pallas_kernels.attention.triton_tiles import (
  AFTER,
  BEFORE,
  NARROWEST,
  NEAR,
  Added,
  Rule,
  Seen,
  Tile,
  Tiles,
  across,
  added,
  as_read,
  bounds,
  cost,
  down,
  filled,
  in_order,
  loaded,
  loaded_side,
  padded,
  places,
  reach,
  scored,
  seen,
  stored,
  stored_vector,
  taken,
  taken_all,
  visited,
)
from pallas_kernels.platforms import on
from pallas_kernels.tuning.lookup import tuned

HONOURED = FEATURES
DTYPES = ("bfloat16", "float16", "float32")
WIDEST = 256


def attention(
  q: Float[Array, "batch query heads d_kv"],
  k: Float[Array, "batch key kv_heads d_kv"],
  v: Float[Array, "batch key kv_heads d_kv"],
  spec: AttentionSpec,
  *,
  tiles: Tiles | None = None,
) -> Float[Array, "batch query heads d_kv"]:
  """See `AttentionSpec`; the softmax and all sums are in float32.

  Args:
    tiles: how the kernels are cut; None: by the tuning table, and a heuristic where it has no line.
  """
  queries, keys, shared = q.shape[1], k.shape[1], k.shape[2]
  tiles = default_tiles(q, k, spec) if tiles is None else tiles
  rule = Rule(spec.scale, spec.soft_cap, reach(spec.bias) if isinstance(spec.bias, Buckets) else None, tiles)
  grouped = q.reshape(*q.shape[:2], shared, -1, q.shape[3])
  who = seen(spec, queries, keys, tiles.whole, rule.reach)
  return _attention(grouped, k, v, _added(spec, queries, keys, shared), who, rule).reshape(q.shape)


def _added(spec: AttentionSpec, queries: int, keys: int, shared: int) -> Added:
  grouped = lambda x: x.reshape(x.shape[0], shared, -1, *x.shape[2:])
  if isinstance(spec.bias, Alibi):
    slopes = jax.lax.stop_gradient(jnp.asarray(spec.bias.slopes, jnp.float32))
    return Added(slopes=grouped(slopes[None, :, None]))
  if isinstance(spec.bias, DenseBias):
    return Added(dense=grouped(spec.dense_bias(queries, keys)))
  diagonals = spec.diagonals(queries, keys)
  return Added() if diagonals is None else Added(diagonals=grouped(diagonals.astype(jnp.float32)))


def refusal(q, k, v, spec) -> str | None:
  """Dtypes and head sizes that the kernels were not written for."""
  del spec
  if not q.dtype == k.dtype == v.dtype or q.dtype.name not in DTYPES:
    return f"it takes q, k and v of one dtype of {', '.join(DTYPES)}, not {q.dtype}, {k.dtype}, {v.dtype}"
  if q.shape[3] > WIDEST or v.shape[3] != q.shape[3]:
    return f"it takes heads of one size up to {WIDEST}, not {q.shape[3]} and {v.shape[3]}"
  return None


def default_tiles(q, k, spec: AttentionSpec) -> Tiles:
  """By the tuning table; else what fits into registers and shared memory at that head size."""
  size, length, wide = padded(q.shape[3]), max(q.shape[1], k.shape[1]), q.dtype.itemsize > 2
  features = tuple(name for name in spec.features if name in ("segments", "causal", "bias:Buckets", "bias:Alibi"))
  warps = 4 if size <= 64 else 8
  narrow = 64 if size <= 128 and not wide else 32
  low = narrow if wide else 64
  defaults = {
    "forward": Tile(64 if size <= 128 else 32, narrow, warps, 2) if wide else Tile(128, narrow, 8, 3),
    "of_queries": Tile(low, narrow, warps, 2),
    "of_keys": Tile(low, narrow, warps, 2),
    "of_bias": Tile(narrow, narrow, 4, 2),
  }
  short = lambda block, n: min(block, max(NARROWEST, pl.next_power_of_2(n)))

  def cut(name: str, tile: Tile) -> Tile:
    found = Tile(**tuned(f"attention_triton_{name}", vars(tile), q.dtype, size, length, features))
    return replace(found, block_q=short(found.block_q, q.shape[1]), block_k=short(found.block_k, k.shape[1]))

  tiles = Tiles(**{name: cut(name, tile) for name, tile in defaults.items()})
  side = min(tiles.of_bias.block_q, tiles.of_bias.block_k)
  return replace(tiles, of_bias=replace(tiles.of_bias, block_q=side, block_k=side))


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q, k, v, bias: Added, who: Seen, rule: Rule):
  return _forward(q, k, v, bias, who, rule)[0]


def _forward(q, k, v, bias: Added, who: Seen, rule: Rule):
  """Output [batch, query, kv_heads, group, d_kv] and log2-sum-exp2 [batch, kv_heads, group, query]; infinite where a
  query sees nothing."""
  tile = rule.tiles.forward
  limits = bounds(*visited(who, q.shape[1], k.shape[1], tile))
  read = as_read(bias, q.shape[1], k.shape[1], rule.tiles.whole)
  return on("cuda", partial(_call, rule), q, k, v, read, who, limits)


def _forward_kept(q, k, v, bias, who, rule):
  y, log_sums = _forward(q, k, v, bias, who, rule)
  return y, (q, k, v, bias, who, y, log_sums)


def _backward(rule, kept, dy):
  return (*triton_backward.gradients(rule, kept, dy), None)


_attention.defvjp(_forward_kept, _backward)


def _call(rule: Rule, q, k, v, bias: Added, who: Seen, limits, interpret: bool):
  batch, queries, shared, group, _ = q.shape
  tile = rule.tiles.forward
  place, row, of, member = places(group)
  log_sums = jax.ShapeDtypeStruct((batch, shared, group, queries), jnp.float32)
  return pl.pallas_call(
    partial(_kernel, rule),
    grid=(-(-queries // tile.block_q), shared * group, batch),
    in_specs=(
      taken(q, row, None, of, member),
      taken(k, row, None, of),
      taken(v, row, None, of),
      taken_all(bias, row, of, member),
      taken_all(who, row),
      taken(limits, row, place),
    ),
    out_specs=(taken(q, row, None, of, member), taken(log_sums, row, of, member)),
    out_shape=(jax.ShapeDtypeStruct(q.shape, q.dtype), log_sums),
    compiler_params=tile.parameters,
    cost_estimate=cost(2, q, k, (q, k, v, q)),
    interpret=interpret,
    name="attention_triton_forward",
  )(q, k, v, bias, who, limits)


def _kernel(rule: Rule, q_ref, k_ref, v_ref, added_refs: Added, who: Seen, limits, y_ref, log_sums_ref):
  """One block of queries."""
  block_q, block_k = rule.tiles.forward.block_q, rule.tiles.forward.block_k
  start_q, more_q = pl.program_id(0) * block_q, filled(q_ref.shape[0], rule.tiles.whole)
  q = loaded(q_ref, start_q, block_q)
  queries = down(loaded_side(who.queries, start_q, block_q))

  def step(kind, block, carry):
    highest, total, sums = carry
    start_k = block * block_k
    keys = across(loaded_side(who.keys, start_k, block_k))
    bias = added(added_refs, kind, queries[1], keys[1], more_q)
    product = pl.dot(q, loaded(k_ref, start_k, block_k), trans_b=True)
    scores, _ = scored(product, rule, queries, keys, bias)
    higher = jnp.maximum(highest, scores.max(1))
    # Where nothing was seen yet, any finite number: -inf less -inf is no number.
    shift = jnp.where(higher == -jnp.inf, 0, higher)
    weights, kept = jnp.exp2(scores - shift[:, None]), jnp.exp2(highest - shift)
    v = loaded(v_ref, start_k, block_k)
    sums = sums * kept[:, None] + pl.dot(weights.astype(v.dtype), v)
    return higher, total * kept + weights.sum(1), sums

  nothing = (
    jnp.full((block_q,), -jnp.inf, jnp.float32),
    jnp.zeros((block_q,), jnp.float32),
    jnp.zeros(q.shape, jnp.float32),
  )
  kinds = (NEAR,) if who.edges is None else (BEFORE, NEAR, AFTER)
  highest, total, sums = in_order(kinds, limits, step, nothing)
  sees = total > 0
  divisor = jnp.where(sees, total, 1)
  stored(y_ref, start_q, block_q, sums / divisor[:, None])
  stored_vector(log_sums_ref, start_q, jnp.where(sees, highest + jnp.log2(divisor), jnp.inf))
