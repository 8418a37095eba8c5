"""The routed projection for GPUs, by Triton: factors are mixed first, and a block of tokens multiplies by its own.

With few distinct mixtures (rows, or a table of tasks) XLA mixes the small factors, [route, din, rank]. The kernel then
computes x W and z = x A_t in one pass over x, and adds z B_t. Rank 16 is a sixteenth of a block of 256 columns; all
skills' ranks side by side would be half of it. A block of tokens with several routes goes over x once for each.

The gradient to x is the same kernel on the output's gradient, with W, A and B transposed and A and B exchanged. Those
to the mixed factors are sums over the tokens of a route; a second kernel visits only blocks from a route's first token
to its last. W's gradient is left to XLA, which drops it where W is frozen, and so are those of skills and weights.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from pallas_kernels.platforms import on
from pallas_kernels.tuning.lookup import tuned

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
NARROWEST = 16  # operands of Triton's products


def projection(
  x: Float[Array, "batch length din"],
  kernel: Float[Array, "din dout"],
  a: Float[Array, "split skill block_in rank"],
  b: Float[Array, "split skill rank block_out"],
  w: Float[Array, "*route split skill"],
  ids: Int[Array, "batch length"] | None,
) -> Float[Array, "batch length dout"]:
  """See `pallas_kernels.lowrank.api.routed_projection`."""
  batch, length, din = x.shape
  if ids is None:
    ids = jnp.broadcast_to(jnp.arange(batch)[:, None], (batch, length))
  w = w.astype(x.dtype)
  mixed_a = jnp.einsum("tqs,qsdr->tqdr", w, a).reshape(len(w), din, -1)
  mixed_b = jnp.einsum("tqs,qsre->trqe", w, b).reshape(len(w), a.shape[3], -1)
  rank = max(NARROWEST, _power(a.shape[3]))
  mixed_a, mixed_b = _padded(mixed_a, 1, 1, rank), _padded(mixed_b, 1, rank, 1)
  y = _projected(x.reshape(-1, din), kernel, mixed_a, mixed_b, ids.reshape(-1).astype(jnp.int32))
  return y.reshape(batch, length, -1)


def refusal(x, kernel, a, b, w, ids) -> str | None:
  if x.dtype not in DTYPES:
    return f"it computes in float32, bfloat16 and float16, not in {x.dtype}"
  if w.ndim == 4:
    return "it mixes factors of rows or of a table's lines, not of every token"
  if a.shape[3] > 128:
    return f"it holds a rank of at most 128, not {a.shape[3]}"
  (din, dout), mixed = kernel.shape, w.shape[0] * a.shape[3]
  if mixed * (din + dout) > 4 * din * dout:
    return f"mixed factors of {w.shape[0]} routes would take more than 4 times the memory of the kernel"
  return None


def _power(n: int) -> int:
  """The smallest power of two that is not below n."""
  return 1 << max(n - 1, 0).bit_length()


@jax.custom_vjp
def _projected(x, kernel, a, b, ids):
  """x W + x A_t B_t with factors of each token's route; a [route, din, rank], b [route, rank, dout]."""
  return _forward(x, kernel, a, b, ids)[0]


def _forward(x, kernel, a, b, ids):
  y, z = on("cuda", partial(_project, transposed=False), x, kernel, a, b, ids)
  z = checkpoint_name(z, "low_rank")
  return y, (x, kernel, a, b, ids, z)


def _backward(saved, dy):
  x, kernel, a, b, ids, z = saved
  swapped = partial(jnp.swapaxes, axis1=1, axis2=2)
  dx, dz = on("cuda", partial(_project, transposed=True), dy, kernel, swapped(b), swapped(a), ids)
  sums = partial(_sums, routes=len(a))
  da = on("cuda", sums, x, dz, ids).astype(a.dtype)
  db = swapped(on("cuda", sums, dy, z, ids)).astype(b.dtype)
  dkernel = _dot(x.T, dy, False).astype(kernel.dtype)
  return dx, dkernel, da, db, None


_projected.defvjp(_forward, _backward)


def _project(x, kernel, a, b, ids, *, transposed, interpret):
  """y and z = x A_t.

  Args:
    kernel: [din, dout], or [dout, din] if `transposed`.
  """
  (tokens, din), (_, rank, dout) = x.shape, b.shape
  default = {"block_m": 128, "block_n": 256, "block_k": 64, "warps": 8, "stages": 3}
  if x.dtype == jnp.float32:
    default |= {"block_m": 64, "block_n": 128, "block_k": 32}
  block = tuned("lowrank_triton", default, x.dtype, din, tokens, (f"dout{dout}", f"rank{rank}"))
  m, n, k = (
    min(block[name], max(NARROWEST, _power(size)))
    for name, size in (("block_m", tokens), ("block_n", dout), ("block_k", din))
  )
  x, ids = _padded(x, m, k), _padded(ids, m)
  kernel = _padded(kernel, n, k) if transposed else _padded(kernel, k, n)
  a, b = _padded(a, 1, k, 1), _padded(b, 1, 1, n)
  rows, columns = x.shape[0] // m, b.shape[2] // n
  moved = columns * x.size + rows * kernel.size + rows * columns * x.shape[1] * rank + x.shape[0] * (b.shape[2] + rank)
  y, z = pl.pallas_call(
    partial(_project_kernel, m=m, n=n, k=k, steps=x.shape[1] // k, transposed=transposed, interpret=interpret),
    grid=(rows, columns),
    out_shape=[
      jax.ShapeDtypeStruct((x.shape[0], b.shape[2]), x.dtype),
      jax.ShapeDtypeStruct((x.shape[0], rank), x.dtype),
    ],
    compiler_params=plgpu.CompilerParams(num_warps=block["warps"], num_stages=block["stages"]),
    cost_estimate=pl.CostEstimate(
      flops=flops(tokens, din, dout, rank, columns), transcendentals=0, bytes_accessed=moved * x.dtype.itemsize
    ),
    interpret=interpret,
    name="lowrank_triton",
  )(x, kernel, a, b, ids, _runs(ids, m))
  return y[:tokens, :dout], z[:tokens]


def flops(tokens: int, din: int, dout: int, rank: int, columns: int) -> int:
  """Of one call, with one route a block of tokens; z is computed for each of the blocks of columns."""
  return 2 * tokens * (din * dout + rank * (columns * din + dout))


def _runs(ids: Int[Array, " token"], m: int) -> Int[Array, " token"]:
  """Counts, from 0 in each block of m tokens, how often the route has changed."""
  blocks = ids.reshape(-1, m)
  changes = jnp.pad(blocks[:, 1:] != blocks[:, :-1], ((0, 0), (1, 0)))
  return jnp.cumsum(changes, axis=1, dtype=jnp.int32).reshape(-1)


def _project_kernel(
  x_ref, kernel_ref, a_ref, b_ref, ids_ref, runs_ref, y_ref, z_ref, *, m, n, k, steps, transposed, interpret
):
  tile, column = pl.program_id(0), pl.program_id(1)
  rows, columns = pl.ds(tile * m, m), pl.ds(column * n, n)
  ids, runs = ids_ref[rows], runs_ref[rows]
  dot = partial(_dot, interpret=interpret)

  def route(run):
    return jnp.max(jnp.where(runs == run, ids, 0))

  # z is computed turned, [rank, token]: as x A it would be a second wgmma in the loop, and ptxas serializes both.
  def thin(x, here, inner):
    return dot(a_ref[here, inner, :].T, x.T)

  def add(y, z, run, here):
    """y with one run's update, and its z in place."""
    z = jnp.where((runs == run)[:, None], z.T, 0.0).astype(z_ref.dtype)
    return y + dot(z, b_ref[here, :, columns]), z

  def both(step, sums):
    y, z = sums
    inner = pl.ds(step * k, k)
    x = x_ref[rows, inner]
    w = kernel_ref[columns, inner].T if transposed else kernel_ref[inner, columns]
    return y + dot(x, w), z + thin(x, first, inner)

  def another(run, sums):
    y, z_all = sums
    here = route(run)
    one = lambda step, z: z + thin(x_ref[rows, pl.ds(step * k, k)], here, pl.ds(step * k, k))
    y, z = add(y, jax.lax.fori_loop(0, steps, one, zeros), run, here)
    return y, z_all + z

  first, zeros = route(0), jnp.zeros((a_ref.shape[2], m), jnp.float32)
  y, z = jax.lax.fori_loop(0, steps, both, (jnp.zeros((m, n), jnp.float32), zeros))
  y, z_all = add(y, z, 0, first)
  y, z_all = jax.lax.fori_loop(1, jnp.max(runs) + 1, another, (y, z_all))
  y_ref[rows, columns] = y.astype(y_ref.dtype)

  @pl.when(column == 0)
  def keep():
    z_ref[rows, :] = z_all


def _sums(x, z, ids, *, routes, interpret):
  """sum over the tokens of each route of x^T z: [route, din, rank], float32."""
  (tokens, din), (_, rank) = x.shape, z.shape
  default = {"block_m": 64, "block_k": 64, "warps": 4, "stages": 3}
  block = tuned("lowrank_triton_sums", default, x.dtype, din, tokens, (f"rank{rank}",))
  m, k = (min(block[name], max(NARROWEST, _power(size))) for name, size in (("block_m", tokens), ("block_k", din)))
  # Tokens that fill up the last block have no route.
  x, z, ids = _padded(x, m, k), _padded(z, m, 1), _padded(ids, m, value=-1)
  there = (ids.reshape(-1, 1, m) == jnp.arange(routes)[:, None]).any(-1)
  first = jnp.argmax(there, axis=0).astype(jnp.int32)
  after = (len(there) - jnp.argmax(there[::-1], axis=0)).astype(jnp.int32)
  after = jnp.where(there.any(0), after, first)
  found = pl.pallas_call(
    partial(_sums_kernel, m=m, k=k, interpret=interpret),
    grid=(routes, x.shape[1] // k),
    out_shape=jax.ShapeDtypeStruct((routes, x.shape[1], rank), jnp.float32),
    compiler_params=plgpu.CompilerParams(num_warps=block["warps"], num_stages=block["stages"]),
    cost_estimate=pl.CostEstimate(
      flops=2 * tokens * din * rank,
      transcendentals=0,
      bytes_accessed=x.dtype.itemsize * tokens * (din + rank * x.shape[1] // k) + 4 * routes * din * rank,
    ),
    interpret=interpret,
    name="lowrank_triton_sums",
  )(x, z, ids, first, after)
  return found[:, :din]


def _sums_kernel(x_ref, z_ref, ids_ref, first_ref, after_ref, sums_ref, *, m, k, interpret):
  route, columns = pl.program_id(0), pl.ds(pl.program_id(1) * k, k)

  def block(tile, total):
    rows = pl.ds(tile * m, m)
    z = z_ref[rows, :]
    z = jnp.where((ids_ref[rows] == route)[:, None], z, jnp.zeros_like(z))
    return total + _dot(x_ref[rows, columns].T, z, interpret)

  zeros = jnp.zeros((k, z_ref.shape[1]), jnp.float32)
  sums_ref[route, columns, :] = jax.lax.fori_loop(first_ref[route], after_ref[route], block, zeros)


def _dot(x, y, interpret):
  """Summed in float32; float32 operands are not rounded to TF32."""
  if interpret:  # XLA does not know every product of bf16 on CPUs, and this one is the same
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
  precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  return jnp.dot(x, y, precision=precision, preferred_element_type=jnp.float32)


def _padded(x, *blocks: int, value: int = 0):
  """Filled up to whole blocks."""
  more = [(0, -size % block) for size, block in zip(x.shape, blocks, strict=True)]
  return jnp.pad(x, more, constant_values=value) if any(after for _, after in more) else x
