"""Attention on TPU, written in Pallas: T5's bias inside the kernel, its gradient down to the table, packed rows.

Scores of one block of queries and one of keys are there at a time (Dao et al. 2022, arXiv 2205.14135). Of the bias, a
value for each diagonal is read; see `mosaic_tpu_bias`. Blocks that no query of theirs sees anything of are not visited,
whatever hides them: causal order, a window, lengths, or other segments of packed rows; see `mosaic_tpu_masks`.

Compiled for v5e, v5p and v6e; run only in interpret mode, never on a chip.
"""

from functools import partial
from math import lcm

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.attention import mosaic_tpu_masks as masks
from pallas_kernels.attention.mosaic_tpu_backward import backward, on_chip
from pallas_kernels.attention.mosaic_tpu_forward import Blocks, Plan, forward
from pallas_kernels.attention.spec import FEATURES, AttentionSpec
from pallas_kernels.platforms import on
from pallas_kernels.tuning.lookup import tuned

# A dense bias is read, and its gradient written, for every query and key.
HONOURED = tuple(name for name in FEATURES if name != "bias:DenseBias")
LANES = 128
# Of the 60 MB that a kernel may take, what is left beside blocks and scores.
ON_CHIP = 40 * 2**20
# Of 1 MB of scalar memory, half, for two numbers a block.
SCALARS = 2**16


def attention(
  q: Float[Array, "batch query heads d_kv"],
  k: Float[Array, "batch key kv_heads d_kv"],
  v: Float[Array, "batch key kv_heads d_kv"],
  spec: AttentionSpec,
  *,
  blocks: tuple[int, int] | None = None,
  backward_blocks: tuple[int, int] | None = None,
) -> Float[Array, "batch query heads d_kv"]:
  """See `AttentionSpec`; the softmax and all sums are in float32, as are the products of float32 operands.

  Args:
    blocks, backward_blocks: queries and keys of a block; None: from the tuning table. Lengths need not be multiples.
  """
  batch, queries = q.shape[:2]
  keys = k.shape[1]
  ahead = blocks or _sizes("attention_tpu_forward", q, k, spec)
  back = backward_blocks or _sizes("attention_tpu_backward", q, k, spec)
  more_q, more_k = -queries % lcm(ahead[0], back[0]), -keys % lcm(ahead[1], back[1])
  whole_q, whole_k = queries + more_q, keys + more_k
  hides = masks.seen(spec, keys, more_q, more_k)
  of_blocks = lambda sizes: Blocks(sizes[0], sizes[1], masks.visited(spec, whole_q, whole_k, *sizes))
  visits = [masks.visits(spec, hides, batch, whole_q, whole_k, *sizes) for sizes in (ahead, back)]
  near = spec.window is not None
  plan = Plan(spec.causal, near, spec.scale, spec.soft_cap, of_blocks(ahead), of_blocks(back))
  diagonals = spec.diagonals(queries, keys)
  if diagonals is not None:
    diagonals = jnp.pad(diagonals.astype(jnp.float32), ((0, 0), (0, 0), (more_q, more_k + 1)))[:, :, None]
  whole = lambda x, more: jnp.pad(jnp.moveaxis(x, 1, 2), ((0, 0), (0, 0), (0, more), (0, 0)))
  y = _attend(whole(q, more_q), whole(k, more_k), whole(v, more_k), diagonals, hides, *visits, plan)
  return jnp.moveaxis(y, 1, 2)[:, :queries]


def _sizes(kernel: str, q, k, spec: AttentionSpec) -> tuple[int, int]:
  """Of the blocks of queries and of keys: as even as multiples of 128 can be, none over the tuned size."""
  most = tuned(kernel, {"q": 512, "k": 512}, q.dtype, q.shape[3], max(q.shape[1], k.shape[1]), spec.features)

  def even(length: int, most: int) -> int:
    count = -(-length // most)
    return -(-length // (count * LANES)) * LANES

  return even(q.shape[1], most["q"]), even(k.shape[1], most["k"])


@partial(jax.custom_vjp, nondiff_argnums=(7,))
def _attend(q, k, v, diagonals, hides, visits, backward_visits, plan: Plan):
  return _kept(q, k, v, diagonals, hides, visits, backward_visits, plan)[0]


def _kept(q, k, v, diagonals, hides, visits, backward_visits, plan: Plan):
  y, log_sums = on("tpu", partial(forward, plan=plan), q, k, v, diagonals, hides, visits)
  return y, (q, k, v, diagonals, hides, backward_visits, y, log_sums)


def _gradients(plan: Plan, kept, dy):
  q, k, v, diagonals, hides, visits, y, log_sums = kept
  inner = jnp.einsum("bhqd,bhqd->bhq", y, dy, preferred_element_type=jnp.float32)[:, :, None]
  # Of whole blocks' queries + keys places the forward kernel leaves the last one, and so does this one.
  turned = lambda x: jnp.pad(x[..., -2::-1], ((0, 0), (0, 0), (0, 0), (0, 1)))
  operands = (q, k, v, dy, log_sums, inner, None if diagonals is None else turned(diagonals), hides, visits)
  dq, dk, dv, *rest = on("tpu", partial(backward, plan=plan), *operands)
  return dq, dk, dv, turned(rest[0]) if rest else None, None, None, None


_attend.defvjp(_kept, _gradients)


def refusal(q, k, v, spec: AttentionSpec) -> str | None:
  """Sizes and dtypes that the kernels do not take; the length is bounded by what stays on the chip."""
  d, queries, keys = q.shape[3], q.shape[1], k.shape[1]
  if d % 8 or d > 256:
    return f"heads of size {d}, where it takes multiples of 8 up to 256"
  if q.dtype not in (jnp.bfloat16, jnp.float32) or k.dtype != q.dtype or v.dtype != q.dtype:
    return f"q, k, v of {q.dtype}, {k.dtype}, {v.dtype}, where it takes bfloat16 or float32, the same of all"
  blocks = q.shape[0] * -(-queries // _sizes("attention_tpu_forward", q, k, spec)[0])
  if blocks > SCALARS:
    return f"{blocks} blocks of queries in all rows, where scalar memory has room for {SCALARS}"
  columns = (spec.query_segments is not None) + 1
  needed = on_chip(queries, keys, d, q.dtype, columns, spec.bias is not None)
  if needed > ON_CHIP:
    return f"{queries} queries and {keys} keys, which take {needed >> 20} MB on the chip of {ON_CHIP >> 20} MB"
  return None
