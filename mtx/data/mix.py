"""Streams of single tasks to one stream at the asked rates. Endless, in an order that a seed decides."""

import functools
import hashlib
import sys
from collections.abc import Callable, Sequence

import grain
import numpy as np
from jaxtyping import Int

from mtx.data.cache import CachedSplit, Example
from mtx.data.convert import Arrays

# One background thread works behind the whole feed; Grain's own read-ahead threads, one pool a stream, would
# only fight with it over records that take microseconds to read.
READ = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


class Shuffled:
  """Examples of a split without end: every epoch holds each of `indices` once, in an order of its own.

  A random access source, as Grain calls it. Grain's own shuffle (`index_shuffle`) walks a cycle of 2^16 until
  it meets an index in range: a millisecond an example for a task of 40, ten for one of 5.

  Args:
    split: of a task.
    indices: the examples of it that are drawn.
    seed: 32 bits.
  """

  def __init__(self, split: CachedSplit, indices: Int[np.ndarray, " kept"], seed: int):
    self.split = split
    self.indices = indices
    self.seed = seed
    self._order = functools.lru_cache(maxsize=2)(self._permuted)  # streams run forward: this epoch and the next

  def _permuted(self, epoch: int) -> Int[np.ndarray, " kept"]:
    # RandomState's streams are frozen: a run can be resumed under another version of NumPy.
    generator = np.random.RandomState(task_seed(self.seed, str(epoch)))
    return self.indices[generator.permutation(len(self.indices))]

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, position: int) -> Example:
    epoch, place = divmod(position, len(self.indices))
    return self.split[int(self._order(epoch)[place])]

  def __repr__(self) -> str:
    return f"Shuffled({self.split.folder.name}, {len(self.indices)})"


def task_stream(
  split: CachedSplit,
  indices: Int[np.ndarray, " kept"],
  name: str,
  seed: int,
  to_element: Callable[[Example], Arrays],
) -> grain.MapDataset[Arrays]:
  """One task's elements, repeated for ever and shuffled anew in every epoch.

  The order depends on `seed` and the task's name: another task in the mixture leaves it as it was.
  """
  return grain.MapDataset.source(Shuffled(split, indices, task_seed(seed, name))).map(to_element)


def task_seed(seed: int, name: str) -> int:
  """32 bits that have nothing to do with those of another seed or name."""
  return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=4).digest(), "little")


def mixed_examples(streams: Sequence[grain.MapDataset], rates: Sequence[float]) -> grain.IterDataset:
  """Examples of all tasks interleaved at `rates`; its state is one number."""
  return grain.MapDataset.mix(list(streams), list(rates)).to_iter_dataset(READ)


def mixed_rows(
  streams: Sequence[grain.IterDataset], rates: Sequence[float], examples_per_row: Sequence[float]
) -> grain.IterDataset:
  """Rows of single tasks interleaved so that *examples* come at `rates`: long examples need more rows."""
  row_rates = [rate / count for rate, count in zip(rates, examples_per_row, strict=True)]
  return grain.IterDataset.mix(list(streams), row_rates)
