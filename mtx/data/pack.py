"""Several examples a row: Grain's first-fit packing, and what it will do to the number of examples in a row.

No example is split over two rows. Every token keeps its segment id and position (Grain adds them); values of
a whole segment, such as its task, ride along as arrays of length 1 and are spread over the tokens in
`mtx.data.convert`.
"""

from collections.abc import Mapping

import grain
import numpy as np
from grain.experimental import FirstFitPackIterDataset
from jaxtyping import Int

from mtx.data.convert import PER_SEGMENT

BUFFER_BYTES = 64 * 2**20  # of open rows, over all the streams of a feed


def pack(
  elements: grain.IterDataset, lengths: Mapping[str, int], *, bins: int, seed: int, single: bool = False
) -> grain.IterDataset:
  """Elements to rows.

  Args:
    elements: dictionaries of int32 arrays.
    lengths: capacity of a row for each of them.
    bins: rows that are open at once: more bins, less padding. They are emitted in an order drawn from `seed`.
    single: one element a row.
  """
  return FirstFitPackIterDataset(
    elements,
    length_struct=dict(lengths),
    num_packing_bins=bins,
    seed=seed,
    meta_features=[name for name in lengths if name in PER_SEGMENT],
    max_sequences_per_bin=1 if single else None,
  )


def open_rows(lengths: Mapping[str, int], streams: int, wanted: int) -> int:
  """Rows that a stream keeps open: `wanted`, or fewer where many streams share the memory; 4 at least."""
  row_bytes = 3 * 4 * sum(lengths.values())  # values, segment ids and positions
  return int(np.clip(BUFFER_BYTES // (streams * row_bytes), 4, wanted))


def examples_per_row(
  sizes: Int[np.ndarray, "examples arrays"], capacity: Int[np.ndarray, " arrays"], *, bins: int, seed: int
) -> float:
  """Mean number of examples in a row when a stream of these sizes is packed by first fit into `bins` open
  rows.

  Found by packing the sizes alone, as Grain would the arrays: until the bins were emitted 8 times, or for
  20 000 examples.
  """
  rng = np.random.default_rng(seed)
  free = np.tile(capacity, (bins, 1))
  packed = open_now = emissions = taken = 0
  while emissions < 8 and taken < 20_000:
    for size in sizes[rng.permutation(len(sizes))]:
      fits = (free >= size).all(axis=1)
      index = int(fits.argmax())
      if not fits[index]:
        packed, open_now, emissions = packed + open_now, 0, emissions + 1
        free[:] = capacity
        index = 0
      free[index] -= size
      open_now += 1
      taken += 1
  return packed / (bins * emissions) if emissions else open_now / bins
