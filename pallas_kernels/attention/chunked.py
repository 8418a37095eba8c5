"""Attention block by block in XLA, on any device, with memory linear in the length in both directions.

Scores of one block of queries and one of keys are there at a time; the softmax goes on from block to block (Milakov and
Gimelshein 2018, arXiv 1805.02867), and the backward pass computes them again from the log of the softmax's sums (Dao et
al. 2022, arXiv 2205.14135). Blocks that causal order or the window hide from all rows are not visited.
"""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.attention import xla
from pallas_kernels.attention.bias import DenseBias, toeplitz
from pallas_kernels.attention.spec import FEATURES, AttentionSpec
from pallas_kernels.tuning.lookup import tuned

HIDDEN = -1e30
BLOCKS = {"block_q": 512, "block_k": 512}
HONOURED = FEATURES


class Added(NamedTuple):
  """The bias as blocks read it: by diagonals, or written out; at most one."""

  diagonals: Float[Array, "#batch kv_heads group diagonal"] | None
  dense: Float[Array, "#batch kv_heads group query key"] | None


def attention(
  q: Float[Array, "batch query heads d_kv"],
  k: Float[Array, "batch key kv_heads d_kv"],
  v: Float[Array, "batch key kv_heads d_kv"],
  spec: AttentionSpec,
  *,
  block_q: int | None = None,
  block_k: int | None = None,
) -> Float[Array, "batch query heads d_kv"]:
  """See `AttentionSpec`; the softmax and all sums are in float32.

  Args:
    block_q, block_k: queries and keys of a block; lengths need not be multiples. None: the tuning table's.
  """
  queries, keys, shared = q.shape[1], k.shape[1], k.shape[2]
  blocks = tuned("attention_xla_chunked", BLOCKS, q.dtype, q.shape[3], max(queries, keys), spec.features)
  block_q, block_k = min(block_q or blocks["block_q"], queries), min(block_k or blocks["block_k"], keys)
  if block_q == queries and block_k == keys:
    return xla.attention(q, k, v, spec)  # one block is all there is: nothing to go on from
  more_q, more_k = -queries % block_q, -keys % block_k
  if more_k:  # what fills the last block is no key
    lengths = jnp.full((q.shape[0],), keys) if spec.key_lengths is None else jnp.minimum(spec.key_lengths, keys)
    spec = replace(spec, key_lengths=lengths)
  spec = _filled(spec, more_q, more_k)
  fill = lambda x, more: jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) if more else x
  heads_first = lambda x: jnp.moveaxis(x, 1, 2)
  q, k, v = (heads_first(fill(x, more)) for x, more in ((q, more_q), (k, more_k), (v, more_k)))
  q = q.reshape(q.shape[0], shared, -1, *q.shape[2:])
  grouped = lambda x, axis: None if x is None else x.reshape(*x.shape[:axis], shared, -1, *x.shape[axis + 1 :])
  diagonals = spec.diagonals(queries + more_q, keys + more_k)
  dense = spec.dense_bias(queries + more_q, keys + more_k) if isinstance(spec.bias, DenseBias) else None
  added = Added(grouped(diagonals, 1), grouped(dense, 1))
  y = _blocks(q, k, v, added, replace(spec, bias=None), block_q, block_k)
  return heads_first(y.reshape(y.shape[0], -1, *y.shape[3:]))[:, :queries]


def _filled(spec: AttentionSpec, more_q: int, more_k: int) -> AttentionSpec:
  """Arrays by query and by key as long as whole blocks are."""
  longer = lambda x, more: x if x is None or not more else jnp.pad(x, ((0, 0), (0, more)))
  bias = spec.bias
  if isinstance(bias, DenseBias):
    lead = ((0, 0),) * (bias.values.ndim - 2)
    bias = DenseBias(jnp.pad(bias.values, (*lead, (0, more_q), (0, more_k))))
  return replace(
    spec,
    query_segments=longer(spec.query_segments, more_q),
    key_segments=longer(spec.key_segments, more_k),
    prefix=longer(spec.prefix, more_k),
    bias=bias,
  )


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _blocks(q, k, v, added: Added, spec: AttentionSpec, block_q: int, block_k: int):
  return _forward(q, k, v, added, spec, block_q, block_k)[0]


def _forward(q, k, v, added, spec, block_q, block_k):
  """Output and log-sum-exp of every query, [batch, kv_heads, group, query, d_kv or nothing]."""
  keys = k.shape[2]
  lead = q.shape[:3]

  def of_queries(_, i):
    start_q = i * block_q
    q_block = jax.lax.dynamic_slice_in_dim(q, start_q, block_q, 3)

    def of_keys(j, carry):
      highest, total, sums = carry
      start_k = j * block_k
      k_block, v_block = (jax.lax.dynamic_slice_in_dim(x, start_k, block_k, 2) for x in (k, v))
      scores, _, allowed = _scores(q_block, k_block, added, spec, start_q, start_k, q.shape[3])
      scores = scores if allowed is None else jnp.where(allowed, scores, HIDDEN)
      higher = jnp.maximum(highest, scores.max(-1))
      weights = jnp.exp(scores - higher[..., None])
      weights = weights if allowed is None else jnp.where(allowed, weights, 0)
      kept = jnp.exp(highest - higher)
      part = jnp.einsum("bgrqk,bgkd->bgrqd", weights.astype(v.dtype), v_block, preferred_element_type=jnp.float32)
      return higher, total * kept + weights.sum(-1), sums * kept[..., None] + part

    nothing = (
      jnp.full((*lead, block_q), HIDDEN, jnp.float32),
      jnp.zeros((*lead, block_q), jnp.float32),
      jnp.zeros((*lead, block_q, v.shape[3]), jnp.float32),
    )
    first, last = _visited(spec, start_q, block_q, keys, block_k)
    highest, total, sums = jax.lax.fori_loop(first, last, of_keys, nothing)
    divisor = jnp.where(total > 0, total, 1)
    return None, ((sums / divisor[..., None]).astype(q.dtype), highest + jnp.log(divisor))

  _, (y, log_sums) = jax.lax.scan(of_queries, None, jnp.arange(q.shape[3] // block_q, dtype=jnp.int32))
  return _joined(y), _joined(log_sums)


def _joined(blocks: Float[Array, "block batch kv_heads group query *rest"]):
  """Blocks of queries side by side."""
  moved = jnp.moveaxis(blocks, 0, 3)
  return moved.reshape(*moved.shape[:3], -1, *moved.shape[5:])


def _scores(q, k, added: Added, spec: AttentionSpec, start_q, start_k, queries: int):
  """(scores with bias, what the cap made of them before the bias, mask or None) of one block, in float32."""
  scores = jnp.einsum("bgrqd,bgkd->bgrqk", q, k, preferred_element_type=jnp.float32) * spec.scale
  if spec.soft_cap:
    scores = jnp.tanh(scores / spec.soft_cap) * spec.soft_cap
  capped = scores
  if added.diagonals is not None:
    diagonals = _diagonals(added.diagonals, q.shape[3], k.shape[2], start_q, start_k, queries)
    scores = scores + toeplitz(diagonals, q.shape[3])
  if added.dense is not None:
    dense = jax.lax.dynamic_slice_in_dim(added.dense, start_q, q.shape[3], 3)
    scores = scores + jax.lax.dynamic_slice_in_dim(dense, start_k, k.shape[2], 4)
  allowed = spec.block(start_q, q.shape[3], start_k, k.shape[2]).allowed(q.shape[3], k.shape[2])
  return scores, capped, None if allowed is None else allowed[:, :, None]


def _first_diagonal(block_q: int, start_q, start_k, queries: int):
  return start_k - start_q + queries - block_q


def _diagonals(diagonals, block_q: int, block_k: int, start_q, start_k, queries: int):
  """Those of one block."""
  first = _first_diagonal(block_q, start_q, start_k, queries)
  return jax.lax.dynamic_slice_in_dim(diagonals, first, block_q + block_k - 1, 3).astype(jnp.float32)


def _visited(
  spec: AttentionSpec, start_q, block_q: int, keys: int, block_k: int
) -> tuple[Int[Array, ""], Int[Array, ""]]:
  """The first block of keys that some query of a block may see, and the one after the last.

  Causal order and windows hide whole blocks where one offset is all rows'; a prefix shows keys in any order.
  """
  first, last = jnp.int32(0), jnp.int32(keys // block_k)
  if jnp.ndim(spec.offset):
    return first, last
  lowest = start_q + spec.offset
  if spec.causal and spec.prefix is None and spec.prefix_lengths is None:
    last = jnp.clip((lowest + block_q - 1) // block_k + 1, 0, last)
  if spec.window is not None:
    # In two steps: a window may be as large as an int32.
    over = jnp.maximum(lowest - spec.window + 1, 0)
    first = jnp.minimum(over // block_k, last)
  return jnp.int32(first), jnp.int32(last)


def _forward_kept(q, k, v, added, spec, block_q, block_k):
  y, log_sums = _forward(q, k, v, added, spec, block_q, block_k)
  return y, (q, k, v, added, spec, y, log_sums)


def _backward(block_q, block_k, kept, dy):
  q, k, v, added, spec, y, log_sums = kept
  queries, keys = q.shape[3], k.shape[2]
  inner = jnp.einsum("bgrqd,bgrqd->bgrq", dy, y, preferred_element_type=jnp.float32)
  at = jax.lax.dynamic_slice_in_dim

  def plus(whole, part, start, axis):
    return jax.lax.dynamic_update_slice_in_dim(whole, at(whole, start, part.shape[axis], axis) + part, start, axis)

  def of_queries(carry, i):
    start_q = i * block_q
    q_block, dy_block = at(q, start_q, block_q, 3), at(dy, start_q, block_q, 3)
    log_block, inner_block = at(log_sums, start_q, block_q, 3), at(inner, start_q, block_q, 3)

    def of_keys(j, carry):
      dq_block, dk, dv, added_grads = carry
      start_k = j * block_k
      k_block, v_block = at(k, start_k, block_k, 2), at(v, start_k, block_k, 2)
      scores, capped, allowed = _scores(q_block, k_block, added, spec, start_q, start_k, queries)
      weights = jnp.exp((scores if allowed is None else jnp.where(allowed, scores, HIDDEN)) - log_block[..., None])
      weights = weights if allowed is None else jnp.where(allowed, weights, 0)
      to = weights.astype(dy.dtype)
      dv = plus(dv, jnp.einsum("bgrqk,bgrqd->bgkd", to, dy_block, preferred_element_type=jnp.float32), start_k, 2)
      dw = jnp.einsum("bgrqd,bgkd->bgrqk", dy_block, v_block, preferred_element_type=jnp.float32)
      ds = weights * (dw - inner_block[..., None])
      added_grads = _add_bias_gradient(added_grads, ds, start_q, start_k, queries)
      if spec.soft_cap:
        ds = ds * (1 - jnp.square(capped / spec.soft_cap))
      ds = (ds * spec.scale).astype(q.dtype)
      dq_block = dq_block + jnp.einsum("bgrqk,bgkd->bgrqd", ds, k_block, preferred_element_type=jnp.float32)
      dk = plus(dk, jnp.einsum("bgrqk,bgrqd->bgkd", ds, q_block, preferred_element_type=jnp.float32), start_k, 2)
      return dq_block, dk, dv, added_grads

    first, last = _visited(spec, start_q, block_q, keys, block_k)
    nothing = jnp.zeros(q_block.shape, jnp.float32)
    dq_block, *carry = jax.lax.fori_loop(first, last, of_keys, (nothing, *carry))
    return tuple(carry), dq_block.astype(q.dtype)

  empty = lambda x: jnp.zeros(x.shape, jnp.float32)
  start = (empty(k), empty(v), jax.tree.map(empty, added))
  (dk, dv, added_grads), dq = jax.lax.scan(of_queries, start, jnp.arange(queries // block_q, dtype=jnp.int32))
  as_they_are = jax.tree.map(lambda grad, x: grad.astype(x.dtype), added_grads, added)
  return _joined(dq), dk.astype(k.dtype), dv.astype(v.dtype), as_they_are, None


def _add_bias_gradient(grads: Added, ds, start_q, start_k, queries: int) -> Added:
  """`grads` with what a block's scores get, where there is a bias."""
  block_q, block_k = ds.shape[3:]
  if grads.diagonals is not None:
    mine = ds.sum(0, keepdims=True) if grads.diagonals.shape[0] == 1 else ds
    like = jax.ShapeDtypeStruct((*mine.shape[:3], block_q + block_k - 1), mine.dtype)
    (sums,) = jax.linear_transpose(partial(toeplitz, queries=block_q), like)(mine)
    first = _first_diagonal(block_q, start_q, start_k, queries)
    old = jax.lax.dynamic_slice_in_dim(grads.diagonals, first, sums.shape[3], 3)
    return grads._replace(diagonals=jax.lax.dynamic_update_slice_in_dim(grads.diagonals, old + sums, first, 3))
  if grads.dense is not None:
    mine = ds.sum(0, keepdims=True) if grads.dense.shape[0] == 1 else ds
    zero = jnp.zeros_like(start_q)
    where = (zero, zero, zero, start_q, start_k)
    old = jax.lax.dynamic_slice(grads.dense, where, mine.shape)
    return grads._replace(dense=jax.lax.dynamic_update_slice(grads.dense, old + mine, where))
  return grads


_blocks.defvjp(_forward_kept, _backward)


def refusal(q, k, v, spec) -> None:
  """Nothing is refused."""
