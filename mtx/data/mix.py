"""Streams of single tasks to one stream at the asked rates. Endless, in an order that a seed decides."""

import hashlib
from collections.abc import Callable, Sequence

import grain
import numpy as np
from jaxtyping import Int

from mtx.data.cache import CachedSplit
from mtx.data.convert import Arrays

# One background thread works behind the whole feed; Grain's own read-ahead threads, one pool a stream, would
# only fight with it over records that take microseconds to read.
READ = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)


class Selection:
  """Examples of a split by position in `indices`: what Grain calls a random access source."""

  def __init__(self, split: CachedSplit, indices: Int[np.ndarray, " kept"]):
    self.split = split
    self.indices = indices

  def __len__(self) -> int:
    return len(self.indices)

  def __getitem__(self, position: int):
    return self.split[int(self.indices[position])]

  def __repr__(self) -> str:
    return f"Selection({self.split.folder.name}, {len(self)})"


def task_stream(
  selection: Selection, name: str, seed: int, to_element: Callable[[dict], Arrays]
) -> grain.MapDataset[Arrays]:
  """One task's elements, repeated for ever and shuffled anew in every epoch.

  The order depends on `seed` and the task's name: adding a task to a mixture leaves the others' order as it
  was.
  """
  shuffled = grain.MapDataset.source(selection).shuffle(seed=task_seed(seed, name))
  return shuffled.repeat().map(to_element)


def task_seed(seed: int, name: str) -> int:
  """32 bits, far apart for neighbouring seeds: Grain adds the epoch to a seed, so seed + 1 is only late."""
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
