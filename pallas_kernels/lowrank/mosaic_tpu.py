"""The routed projection for TPUs: all skills' ranks side by side, which fill the matrix unit's columns.

Of split q, with u_q = x_q A_q [token, skill * rank] and o_q the weights of the split, each repeated over its rank:

  z = sum over splits and skills of o_q u_q, repeated for every skill
  y_q = x W_q + (o_q z) B_q

8 skills of rank 16 are 128 columns, as wide as the unit. Factors mixed beforehand would be 16 wide, take as long, and
tokens of several tasks would take that several times. Weights come one line a token: 2 splits * skills bytes in bf16
beside 2 din of x, so a table of tasks in the kernel would save nothing that counts.

The gradient to x is the same function of the output's gradient, with W, A and B transposed and A and B exchanged: its z
is the gradient to this one's. Gradients to factors and weights follow from x, u, and the other side's z; those to B
come out of the same pass as the gradient to x. W's is left to XLA, which drops it where W is frozen.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from pallas_kernels.lowrank.routes import by_token
from pallas_kernels.platforms import on
from pallas_kernels.tuning.lookup import tuned

LANES = 128
# What blocks may take of a core's vector memory, and what the compiler may with its temporaries.
BLOCK_BYTES, VMEM_BYTES = 28 * 2**20, 56 * 2**20
DTYPES = (jnp.float32, jnp.bfloat16)


def projection(
  x: Float[Array, "batch length din"],
  kernel: Float[Array, "din dout"],
  a: Float[Array, "split skill block_in rank"],
  b: Float[Array, "split skill rank block_out"],
  w: Float[Array, "*route split skill"],
  ids: Int[Array, "batch length"] | None,
) -> Float[Array, "batch length dout"]:
  """See `pallas_kernels.lowrank.api.routed_projection`."""
  splits, skills, _, rank = a.shape
  # Rounded later: gradients of many tokens are summed unrounded.
  weights = by_token(w.astype(jnp.float32), ids, x.shape[1]).reshape(-1, splits * skills)
  # [din, skill * rank] and [skill * rank, dout].
  a = jnp.moveaxis(a, 1, 2).reshape(x.shape[2], -1)
  b = jnp.moveaxis(b, 0, 2).reshape(-1, kernel.shape[1])
  y = _projected(splits, rank, x.reshape(-1, x.shape[2]), kernel, a, b, weights)
  return y.reshape(*x.shape[:2], -1)


def refusal(x, kernel, a, b, w, ids) -> str | None:
  if x.dtype not in DTYPES:
    return f"it computes in float32 and bfloat16, not in {x.dtype}"
  splits, skills, _, rank = a.shape
  tokens, (din, dout) = math.prod(x.shape[:2]), kernel.shape
  for one, other in ((din, dout), (dout, din)):
    if not _fitting(Sizes(tokens, one, other, splits, skills, rank, jnp.dtype(x.dtype).itemsize, True)):
      return f"no block of a projection of {din} x {dout} with {skills} skills of rank {rank} fits its memory"
  return None


@dataclass(frozen=True)
class Sizes:
  """Of one call of a kernel; all static.

  Attributes:
    gradients: whether it also gives those to a and to the weights.
    block_m, block_n: tokens and output columns of a step.
    resident: W stays in the core's memory as a whole, and is read once.
  """

  tokens: int
  din: int
  dout: int
  splits: int
  skills: int
  rank: int
  itemsize: int
  gradients: bool
  block_m: int = 0
  block_n: int = 0
  resident: bool = False

  @property
  def wide(self) -> int:
    return self.skills * self.rank

  @property
  def tiles(self) -> int:
    return pl.cdiv(self.tokens, self.block_m)

  @property
  def chunks(self) -> int:
    """Halves of the tokens, for chips with two cores that work as one."""
    return 1 if self.tiles % 2 else 2

  @property
  def width(self) -> int:
    """Columns that are computed together: one output split of several in a block, where it is whole tiles of lanes."""
    block = self.dout // self.splits
    return block if self.block_n % block == 0 and block % LANES == 0 else self.block_n

  @property
  def covered(self) -> int:
    """Output splits that these columns may touch."""
    block = self.dout // self.splits
    if block % self.width == 0:
      return 1
    return self.width // block if self.width % block == 0 else min(self.splits, (self.width - 1) // block + 2)

  @property
  def bytes_held(self) -> int:
    """Of blocks, twice each, for the next step's are on their way; and of what lies between."""
    m, n, wide = self.block_m, self.block_n, self.wide
    columns = self.dout if self.resident else n
    blocks = m * self.din + self.din * columns + self.din * wide + wide * columns + m * n + 2 * m * wide
    scratch = m * wide * (self.splits + 2) * self.itemsize + 4 * m * n
    return 2 * blocks * self.itemsize + scratch + (8 * wide * self.din if self.gradients else 0)

  @property
  def bytes_moved(self) -> int:
    """Between the core and the chip's memory."""
    weights = self.din * self.dout + self.wide * self.dout
    once = self.tokens * (self.din + self.dout + self.splits * self.skills + self.wide) + self.din * self.wide
    moved = self.itemsize * (once + weights * (1 if self.resident else self.tiles))
    if not self.gradients:
      return moved
    summed = self.chunks * self.wide * self.din + self.tokens * self.splits * self.skills
    return moved + self.itemsize * self.tokens * self.wide + 4 * summed

  @property
  def flops(self) -> int:
    """Two thin products beside the dense one, three with gradients; the rest, on [token, skill * rank], is small."""
    thin = self.din * (2 if self.gradients else 1) + self.covered * self.dout
    return 2 * self.tokens * (self.din * self.dout + self.wide * thin + _between(self))


def _between(sizes: Sizes) -> int:
  """Products of a token that widen weights, add skills up, and narrow gradients of weights."""
  routes = sizes.splits * sizes.skills
  return sizes.wide * (sizes.wide + (2 if sizes.gradients else 1) * sizes.splits * routes)


def _rows(tokens: int) -> list[int]:
  """What a block may have of tokens."""
  return [tokens] if tokens <= LANES else [m for m in (1024, 512, 256, 128) if m <= tokens]


def _fitting(sizes: Sizes) -> list[Sizes]:
  """Blocks that fit the memory of a core."""
  blocks = (sizes.dout // sizes.splits, 512, 384, 256, 128)
  columns = [n for n in blocks if n % LANES == 0 and sizes.dout % n == 0] or [sizes.dout]
  made = [
    replace(sizes, block_m=m, block_n=n, resident=whole)
    for m in _rows(sizes.tokens)
    for n in columns
    for whole in (True, False)
  ]
  return [each for each in made if each.bytes_held <= BLOCK_BYTES]


def blocked(sizes: Sizes, dtype) -> Sizes:
  """With the blocks that compute the least, and then move the fewest bytes, or those of the tuning table."""
  least = min(_fitting(sizes), key=lambda s: (s.covered, s.bytes_moved, -s.block_m * s.block_n))
  default = {"block_m": least.block_m, "block_n": least.block_n, "resident": int(least.resident)}
  name = "lowrank_tpu_gradients" if sizes.gradients else "lowrank_tpu"
  found = tuned(name, default, dtype, sizes.din, sizes.tokens, (f"dout{sizes.dout}", f"wide{sizes.wide}"))
  return replace(sizes, block_m=found["block_m"], block_n=found["block_n"], resident=bool(found["resident"]))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _projected(splits, rank, x, kernel, a, b, weights):
  return _forward(splits, rank, x, kernel, a, b, weights)[0]


def _forward(splits, rank, x, kernel, a, b, weights):
  weights = weights.astype(x.dtype)
  call = partial(_project, splits=splits, rank=rank, transposed=False)
  y, z = on("tpu", call, x, kernel, a, b, weights, None)
  z = checkpoint_name(z, "low_rank")
  return y, (x, kernel, a, b, weights, z)


def _backward(splits, rank, saved, dy):
  x, kernel, a, b, weights, z = saved
  call = partial(_project, splits=splits, rank=rank, transposed=True)
  dx, dz, db, dw_out = on("tpu", call, dy, kernel, b.T, a.T, weights, z)
  da, dw_in = on("tpu", partial(_factors, splits=splits, rank=rank), x, a, weights, dz)
  dkernel = _dot(x, dy, 0, 0).astype(kernel.dtype)
  return dx, dkernel, da.T.astype(a.dtype), db.astype(b.dtype), dw_in + dw_out


_projected.defvjp(_forward, _backward)


def _project(x, kernel, a, b, weights, other, *, splits, rank, transposed, interpret):
  """y and z; with the other side's z, also the gradients to a (transposed) and to the weights.

  Args:
    kernel: [din, dout], or [dout, din] if `transposed`.
  """
  tokens, din = x.shape
  dout = b.shape[1]
  gradients = other is not None
  s = Sizes(tokens, din, dout, splits, weights.shape[1] // splits, rank, x.dtype.itemsize, gradients)
  s = blocked(s, x.dtype)
  half, m, n, wide = s.tiles // s.chunks, s.block_m, s.block_n, s.wide
  by_row = lambda width: pl.BlockSpec((m, width), lambda c, i, j: (c * half + i, 0))
  whole = lambda *shape: pl.BlockSpec(shape, lambda c, i, j: (0, 0))
  columns = lambda c, i, j: (0, j)
  if s.resident:
    kernel_spec, b_spec = whole(*kernel.shape), whole(wide, dout)
  else:
    kernel_spec = pl.BlockSpec((n, din), lambda c, i, j: (j, 0)) if transposed else pl.BlockSpec((din, n), columns)
    b_spec = pl.BlockSpec((wide, n), columns)
  in_specs = [by_row(din), kernel_spec, whole(din, wide), b_spec, by_row(weights.shape[1])]
  out_specs = [pl.BlockSpec((m, n), lambda c, i, j: (c * half + i, j)), by_row(wide)]
  shaped = jax.ShapeDtypeStruct
  out_shape = [shaped((tokens, dout), x.dtype), shaped((tokens, wide), x.dtype)]
  if gradients:
    in_specs.append(by_row(wide))
    out_specs += [pl.BlockSpec((None, wide, din), lambda c, i, j: (c, 0, 0)), by_row(weights.shape[1])]
    out_shape += [shaped((s.chunks, wide, din), jnp.float32), shaped(weights.shape, jnp.float32)]
  found = pl.pallas_call(
    partial(_project_kernel, s=s, transposed=transposed),
    grid=(s.chunks, half, dout // n),
    in_specs=in_specs,
    out_specs=out_specs,
    out_shape=out_shape,
    scratch_shapes=[pltpu.VMEM((splits, m, wide), x.dtype), pltpu.VMEM((m, wide), x.dtype)],
    compiler_params=_parameters("parallel", "arbitrary", "arbitrary"),
    cost_estimate=pl.CostEstimate(flops=s.flops, transcendentals=0, bytes_accessed=s.bytes_moved),
    interpret=interpret,
    name="lowrank_tpu_gradients" if gradients else "lowrank_tpu",
  )(x, kernel, a, b, weights, *([other] if gradients else []))
  return (*found[:2], found[2].sum(0), found[3]) if gradients else found


def _project_kernel(x_ref, kernel_ref, a_ref, b_ref, weights_ref, *rest, s: Sizes, transposed: bool):
  if s.gradients:
    other_ref, y_ref, z_ref, da_ref, dw_ref, mix_ref, own_ref = rest
  else:
    y_ref, z_ref, mix_ref, own_ref = rest
  i, j = pl.program_id(1), pl.program_id(2)
  # Asked for here, as the interpreter knows no place in a grid inside of a condition.
  valid = _valid(s)
  if s.gradients:
    _start(da_ref, (i == 0) & (j == 0))

  @pl.when(j == 0)
  def thin():
    x, weights = valid(x_ref), valid(weights_ref)
    total = jnp.zeros((s.block_m, s.wide), jnp.float32)
    dw = jnp.zeros(weights.shape, jnp.float32)
    for q in range(s.splits):
      mix, u = _split(x, a_ref, weights, q, s)
      mix_ref[q] = mix
      total += mix * u
      if s.gradients:
        dw += _gradients(x, mix, u, valid(other_ref), da_ref, q, s)
    if s.gradients:
      dw_ref[...] = dw
    of_rank = lambda axis: jax.lax.rem(jax.lax.broadcasted_iota(jnp.int32, (s.wide,) * 2, axis), jnp.int32(s.rank))
    own = _dot(total.astype(x.dtype), (of_rank(0) == of_rank(1)).astype(x.dtype), 1, 0)
    own_ref[...] = z_ref[...] = own.astype(x.dtype)

  n, width, block = s.block_n, s.width, s.dout // s.splits
  for start in range(0, n, width):
    column = j * n + start
    here = pl.ds(pl.multiple_of(column, width), width) if s.resident else slice(start, start + width)
    y = _dot(x_ref[...], kernel_ref[here, :] if transposed else kernel_ref[:, here], 1, 1 if transposed else 0)
    b = b_ref[:, here]
    first = _over(column, block)
    split = _over(column + jax.lax.broadcasted_iota(jnp.int32, b.shape, 1), block)
    for more in range(s.covered):
      mix = mix_ref[jnp.minimum(first + more, s.splits - 1)]
      y += _dot(mix * own_ref[...], b if s.covered == 1 else jnp.where(split == first + more, b, 0), 1, 0)
    y_ref[:, start : start + width] = y.astype(y_ref.dtype)


def _factors(x, a, weights, other, *, splits, rank, interpret):
  """Gradients to a (transposed) and to the weights, from x and the gradient to its z."""
  (tokens, din), (_, wide), (_, routes) = x.shape, a.shape, weights.shape
  s = Sizes(tokens, din, 0, splits, routes // splits, rank, x.dtype.itemsize, True)
  s = next(each for each in (replace(s, block_m=m) for m in _rows(tokens)) if each.bytes_held <= BLOCK_BYTES)
  half = s.tiles // s.chunks
  by_row = lambda width: pl.BlockSpec((s.block_m, width), lambda c, i: (c * half + i, 0))
  moved = s.itemsize * (tokens * (din + wide + routes) + din * wide) + 4 * (s.chunks * wide * din + tokens * routes)
  da, dw = pl.pallas_call(
    partial(_factors_kernel, s=s),
    grid=(s.chunks, half),
    in_specs=[by_row(din), pl.BlockSpec((din, wide), lambda c, i: (0, 0)), by_row(routes), by_row(wide)],
    out_specs=[pl.BlockSpec((None, wide, din), lambda c, i: (c, 0, 0)), by_row(routes)],
    out_shape=[
      jax.ShapeDtypeStruct((s.chunks, wide, din), jnp.float32),
      jax.ShapeDtypeStruct(weights.shape, jnp.float32),
    ],
    compiler_params=_parameters("parallel", "arbitrary"),
    cost_estimate=pl.CostEstimate(
      flops=4 * tokens * wide * (din + splits * routes), transcendentals=0, bytes_accessed=moved
    ),
    interpret=interpret,
    name="lowrank_tpu_factors",
  )(x, a, weights, other)
  return da.sum(0), dw


def _factors_kernel(x_ref, a_ref, weights_ref, other_ref, da_ref, dw_ref, *, s: Sizes):
  _start(da_ref, pl.program_id(1) == 0)
  valid = _valid(s)
  x, weights, other = valid(x_ref), valid(weights_ref), valid(other_ref)
  dw = jnp.zeros(weights.shape, jnp.float32)
  for q in range(s.splits):
    mix, u = _split(x, a_ref, weights, q, s)
    dw += _gradients(x, mix, u, other, da_ref, q, s)
  dw_ref[...] = dw


def _start(ref, first) -> None:
  """Zeros what sums up over the steps of the grid."""

  @pl.when(first)
  def zero():
    ref[...] = jnp.zeros_like(ref)


def _valid(s: Sizes):
  """Reads a block, with zeros for what the last one has beyond the tokens: its bits may be those of NaN."""
  if s.tokens % s.block_m == 0:
    return lambda ref: ref[...]
  first = (pl.program_id(0) * (s.tiles // s.chunks) + pl.program_id(1)) * s.block_m
  there = lambda shape: first + jax.lax.broadcasted_iota(jnp.int32, shape, 0) < s.tokens
  return lambda ref: jnp.where(there(ref.shape), ref[...], jnp.zeros_like(ref))


def _over(x, n: int):
  """x // n of what is not negative: `//` asks the chip at hand how it takes signs."""
  return jax.lax.div(x, jnp.int32(n))


def _window(q: int, s: Sizes) -> tuple[slice, int]:
  """Columns of x that hold split q, whole tiles of lanes, and the first one."""
  block = s.din // s.splits
  low = q * block // LANES * LANES
  return slice(low, min(s.din, pl.cdiv((q + 1) * block, LANES) * LANES)), low


def _inside(shape, axis: int, low: int, q: int, s: Sizes):
  """Where in a window of split q an element is the split's."""
  return _over(low + jax.lax.broadcasted_iota(jnp.int32, shape, axis), s.din // s.splits) == q


def _weight_columns(q: int, s: Sizes, dtype):
  """0/1 [split * skill, skill * rank]: to the columns of each skill its weight in split q."""
  shape = (s.splits * s.skills, s.wide)
  iota = partial(jax.lax.broadcasted_iota, jnp.int32, shape)
  return (iota(0) == q * s.skills + _over(iota(1), s.rank)).astype(dtype)


def _split(x, a_ref, weights, q: int, s: Sizes):
  """The weights of split q, repeated over ranks, and u_q; [token, skill * rank]."""
  mix = _dot(weights, _weight_columns(q, s, weights.dtype), 1, 0).astype(x.dtype)  # exact: one term each
  window, low = _window(q, s)
  a = a_ref[window, :]
  return mix, _dot(x[:, window], jnp.where(_inside(a.shape, 0, low, q, s), a, jnp.zeros_like(a)), 1, 0)


def _gradients(x, mix, u, other, da_ref, q: int, s: Sizes):
  """Adds split q's gradient to a; gives that to the weights [token, split * skill], zero in other splits."""
  window, low = _window(q, s)
  da = _dot(mix * other, x[:, window], 0, 0)
  da_ref[:, window] += jnp.where(_inside(da.shape, 1, low, q, s), da, 0.0)
  return _dot((u * other).astype(x.dtype), _weight_columns(q, s, x.dtype), 1, 1)


def _dot(x, y, of_x: int, of_y: int):
  """Product over an axis of each, summed in float32; float32 operands are not rounded to bfloat16."""
  precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
  dimensions = (((of_x,), (of_y,)), ((), ()))
  return jax.lax.dot_general(x, y, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _parameters(*semantics: Literal["parallel", "arbitrary"]) -> pltpu.CompilerParams:
  return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=VMEM_BYTES)
