"""Host memory between a mapped file and devices: blocks, copied at the speed of memory whatever their strides."""

import mmap
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

LINE = 64  # bytes of a cache line, and what XLA asks of a host buffer that it takes over
RUN = 1024  # elements that are read one after the other of a transposed matrix
PAGE = mmap.PAGESIZE

Index = tuple[slice, ...]
Host = Shaped[np.ndarray, "..."]


def buffer(shape: tuple[int, ...], dtype: np.dtype) -> Host:
  """Uninitialised memory at a cache line: `jax.device_put` to the CPU takes it over without a copy."""
  size = int(np.prod(shape)) * dtype.itemsize
  raw = np.empty(size + LINE, np.uint8)
  start = -raw.ctypes.data % LINE
  return raw[start : start + size].view(dtype).reshape(shape)


def fill(out: Host, value: Host) -> None:
  """out[...] = value. Transposed matrices are copied in tiles as wide as a cache line: several times numpy's speed."""
  if out.ndim < 2 or out.size <= RUN * LINE:
    out[...] = value
    return
  if abs(out.strides[-2]) < abs(out.strides[-1]):
    out, value = out.swapaxes(-1, -2), value.swapaxes(-1, -2)
  rows, columns = out.shape[-2:]
  if abs(value.strides[-2]) >= abs(value.strides[-1]):
    out[...] = value
    return
  wide = LINE // out.itemsize
  for lead in np.ndindex(out.shape[:-2]):
    to, of = out[lead], value[lead]
    for row in range(0, rows, RUN):
      for column in range(0, columns, wide):
        tile = np.s_[row : row + RUN, column : column + wide]
        to[tile] = of[tile]


def ahead(view: Host) -> None:
  """Asks the system to read what a view of a mapped file covers, while something else is done."""
  root = view
  while isinstance(root.base, np.ndarray):
    root = root.base
  mapped = root.base.obj if isinstance(root.base, memoryview) else root.base
  if not isinstance(mapped, mmap.mmap) or not hasattr(mmap, "MADV_WILLNEED") or not view.size:
    return
  low, high = np.lib.array_utils.byte_bounds(view)
  start = (low - root.ctypes.data) // PAGE * PAGE
  mapped.madvise(mmap.MADV_WILLNEED, start, high - root.ctypes.data - start)


def cut(index: Index, itemsize: int, most: int) -> Iterator[Index]:
  """Parts of an index of at most `most` bytes each, cut along the first axes."""
  for axis, piece in enumerate(index):
    rest = itemsize * int(np.prod([s.stop - s.start for s in index[axis + 1 :]], dtype=object))
    if rest <= most:
      step = max(1, most // max(rest, 1))
      for start in range(piece.start, piece.stop, step):
        part = (*index[:axis], slice(start, min(start + step, piece.stop)), *index[axis + 1 :])
        yield part
      return
    if piece.stop - piece.start > 1:
      for start in range(piece.start, piece.stop):
        yield from cut((*index[:axis], slice(start, start + 1), *index[axis + 1 :]), itemsize, most)
      return
  yield index


def _update(whole: Array, part: Array, start: tuple[Array, ...]) -> Array:
  return jax.lax.dynamic_update_slice(whole, part, start)


update = jax.jit(_update, donate_argnums=0)


def zeros(shape: tuple[int, ...], dtype: np.dtype, device: jax.Device) -> Array:
  return jnp.zeros(shape, dtype, device=device)
