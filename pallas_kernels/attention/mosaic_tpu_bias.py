"""A Toeplitz bias inside a TPU kernel, and the sums of its gradient's diagonals.

A tile of the bias is a slice of its diagonals, one place further on in each row. Rows are 128 in number here and
starts of blocks are multiples of 128, so all tiles of a head are aligned slices of one strip, element (i, y) of which
is diagonal y + 127 - i. It is laid out once a head, by rolling each row of a copy by its number, and stays on the chip;
a block then costs one load and one addition a score. The gradient goes the same way back: blocks add to a strip, and
its diagonals are summed once a head.
"""

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

ROWS = 128


def rows(block_q: int, block_k: int) -> int:
  """Rows of a strip: a power of two that divides both sizes of a block, which are multiples of 128 on the chip."""
  return min(ROWS, block_q & -block_q, block_k & -block_k)


def lay_out(strip, diagonals, rows: int) -> None:
  """Writes strip[i, y] = diagonals[y + rows - 1 - i].

  Args:
    strip: reference, [rows, n]. diagonals: reference to [1, n + rows] values.
  """

  @pl.loop(0, strip.shape[1] // rows)
  def chunk(c):
    start = pl.multiple_of(c * rows, rows)
    copies = jnp.broadcast_to(diagonals[:, pl.ds(start, 2 * rows)], (rows, 2 * rows))
    strip[:, pl.ds(start, rows)] = pltpu.roll(copies, rows + 1, axis=1, stride=1, stride_axis=0)[:, :rows]


def clear(strip) -> None:
  """Zeros."""
  rows = strip.shape[0]

  @pl.loop(0, strip.shape[1] // rows)
  def chunk(c):
    strip[:, pl.ds(pl.multiple_of(c * rows, rows), rows)] = jnp.zeros((rows, rows), strip.dtype)


def tile(strip, start, lines: int, width: int) -> Float[Array, "lines width"]:
  """A tile of the bias.

  Args:
    start: of the slice that is the tile's first rows; each further `rows` rows lie `rows` places before.
  """
  rows = strip.shape[0]
  slices = [strip[:, pl.ds(pl.multiple_of(start - i, rows), width)] for i in range(0, lines, rows)]
  return slices[0] if len(slices) == 1 else jnp.concatenate(slices, axis=0)


def add_tile(strip, start, values: Float[Array, "lines width"]) -> None:
  """Adds to what `tile` reads."""
  rows = strip.shape[0]
  lines, width = values.shape
  for i in range(0, lines, rows):
    where = pl.ds(pl.multiple_of(start - i, rows), width)
    strip[:, where] = strip[:, where] + values[i : i + rows]


def sum_diagonals(sums, strip) -> None:
  """Writes the transpose of `lay_out`: each row moves to its place and all are added up, half of them at a time.

  Args:
    sums: reference, [1, n + rows]. strip: reference, [rows, n].
  """
  rows, count = strip.shape
  sums[...] = jnp.zeros_like(sums)

  @pl.loop(0, count // rows)
  def chunk(c):
    start = pl.multiple_of(c * rows, rows)
    here = strip[:, pl.ds(start, rows)]
    folded = jnp.concatenate([here, jnp.zeros_like(here)], axis=1)
    half = rows // 2
    while half:
      folded = pltpu.roll(folded[:half], half, axis=1) + folded[half:]
      half //= 2
    where = pl.ds(start, 2 * rows)
    sums[:, where] = sums[:, where] + folded
