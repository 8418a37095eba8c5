"""A cached mixture to batches: seeded, mixed, packed, prefetched, and able to go on where it was.

    feed(mixture, architecture="encdec", split="train", seed=0)   endless, for training
    validation_batches(mixture, ...)                              finite, in a fixed order, for a loss curve

Grain does the work; its state is small and plain JSON, and goes into the checkpoint.
"""

import functools
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gin
import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset

from mtx.data import convert
from mtx.data import pack as packing
from mtx.data.cache import CachedMixture, CachedSplit, CachedTask, Example, digest
from mtx.data.convert import Arrays
from mtx.data.mix import READ, mixed_examples, mixed_rows, task_seed, task_stream
from mtx.errors import UserError, did_you_mean

ROWS = ("mixed", "task")
OVERLONG = ("truncate", "drop", "error")
PREFETCH = 4  # batches


class FeedIterator:
  """Endless batches. `get_state()` is JSON-able; `set_state` makes the next batch the one that followed."""

  def __init__(self, batches: grain.DatasetIterator, fingerprint: str):
    self._open = [batches]
    self._fingerprint = fingerprint
    # Grain's iterator must be gone before the interpreter takes its modules apart, or it complains on stderr.
    self.close = weakref.finalize(self, _close, self._open)

  def __iter__(self) -> "FeedIterator":
    return self

  def __next__(self) -> Arrays:
    return next(self._open[0])

  def get_state(self) -> dict[str, Any]:
    """Position after the last batch that was *handed out*, whatever is prefetched behind it."""
    return {"feed": self._fingerprint, "position": self._open[0].get_state()}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Raises UserError when the state is of a feed over other data, or with other settings."""
    if state["feed"] != self._fingerprint:
      raise UserError(
        "the data position in the checkpoint belongs to another feed: "
        "the cache, the mixture's rates, the seed or a `feed` setting has changed since",
        hint="restore those settings, or start a fresh run that loads only the parameters",
      )
    self._open[0].set_state(state["position"])


def _close(batches: list[grain.DatasetIterator]) -> None:
  """Stops the background thread and lets go of the iterator."""
  while batches:
    batches.pop().close()


@dataclass(frozen=True)
class Feed:
  """What `feed` returns; iterate it for batches.

  Attributes:
    spec: feature name -> (shape, dtype name) of a batch.
    overlong: task name -> number of its examples that were over a length, and truncated or dropped.
    fingerprint: of data and settings; two feeds with one fingerprint give the same batches.
  """

  spec: Mapping[str, tuple[tuple[int, ...], str]]
  overlong: Mapping[str, int]
  fingerprint: str
  dataset: grain.IterDataset

  def __iter__(self) -> FeedIterator:
    return FeedIterator(iter(self.dataset), self.fingerprint)


@gin.configurable(allowlist=["batch", "pack", "rows", "overlong"])
def feed(
  mixture: CachedMixture,
  *,
  architecture: str,
  split: str = "train",
  seed: int = 0,
  batch: int = 32,
  inputs_length: int = 128,
  targets_length: int = 32,
  pack: bool = True,
  rows: str = "mixed",
  overlong: str = "truncate",
) -> Feed:
  """Endless training batches of a mixture.

  Args:
    mixture: from `mtx.data.cache.open_mixture` or `mtx.data.build.build_mixture`.
    architecture: "encdec", or "causal" and "prefix" with rows of inputs_length + targets_length.
    split: of every task with a rate above 0.
    seed: of shuffling and of the order of packed rows.
    batch: rows in a batch.
    inputs_length, targets_length: most tokens of one example, EOS included, and so of a row.
    pack: several examples a row; False gives one a row.
    rows: "mixed": a row holds examples of several tasks. "task": of one, and batches have `task_ids`
      int32[batch].
    overlong: what happens to longer examples: "truncate" keeps EOS, "drop", or "error".

  Raises:
    UserError: a name that is none of these choices, a length below 1, a split that a task lacks, an over-long
      example under "error" (task, id and lengths named), a task of which nothing is left.
  """
  convert.check_architecture(architecture)
  _check("rows", rows, ROWS)
  _check("overlong", overlong, OVERLONG)
  for name, value in (("batch", batch), ("inputs_length", inputs_length), ("targets_length", targets_length)):
    if value < 1:
      raise UserError(f"{name} of the feed is {value}", hint="it must be 1 or more")
  limits = np.array([inputs_length, targets_length])
  make = functools.partial(
    convert.element,
    architecture=architecture,
    inputs_length=inputs_length,
    targets_length=targets_length,
    eos_id=mixture.vocabulary.eos_id,
  )
  streams, rates, sizes, counts = [], [], [], {}
  for index, (task, rate) in enumerate(zip(mixture.tasks, mixture.rates, strict=True)):
    if rate > 0:
      examples = _split(task, split)
      kept, counts[task.name] = _within(task, examples, limits, overlong)
      streams.append(task_stream(examples, kept, task.name, seed, functools.partial(make, task=index)))
      rates.append(rate)
      sizes.append(_sizes(examples.lengths[kept], architecture, limits))

  lengths = convert.row_lengths(architecture, inputs_length, targets_length)
  bins = packing.open_rows(lengths, *((1, max(256, batch)) if rows == "mixed" else (len(streams), 16)))
  to_rows = functools.partial(packing.pack, lengths=lengths, bins=bins, seed=task_seed(seed, "rows"), single=not pack)
  if rows == "mixed":
    packed = to_rows(mixed_examples(streams, rates))
  else:
    capacity = limits if architecture == "encdec" else limits.sum(keepdims=True)
    per_row = [packing.examples_per_row(each, capacity, bins=bins, seed=seed) if pack else 1.0 for each in sizes]
    packed = mixed_rows([to_rows(stream.to_iter_dataset(READ)) for stream in streams], rates, per_row)

  to_features = _ToFeatures(architecture, rows == "task")
  batches = packed.batch(batch, drop_remainder=True).map(to_features)
  spec = {
    name: (values.shape, values.dtype.name)
    for name, values in to_features(convert.stacked([convert.row({}, lengths)] * batch)).items()
  }
  settings = [architecture, split, seed, batch, inputs_length, targets_length, pack, rows, overlong, bins]
  return Feed(
    spec=spec,
    overlong={name: count for name, count in counts.items() if count},
    fingerprint=digest([mixture.fingerprint, settings]),
    dataset=ThreadPrefetchIterDataset(batches, prefetch_buffer_size=PREFETCH),
  )


def validation_batches(
  mixture: CachedMixture,
  *,
  architecture: str,
  split: str = "validation",
  batch: int,
  inputs_length: int,
  targets_length: int,
  limit: int | None = None,
) -> Iterator[Arrays]:
  """The first `limit` examples of every task that has `split`, one a row, truncated, in the cache's order.

  The last batch is filled up with empty rows: segment ids and loss weights 0. Batches have `task_ids`
  int32[batch].

  Raises:
    UserError: no task of the mixture has that split.
  """
  convert.check_architecture(architecture)
  with_split = [(index, task) for index, task in enumerate(mixture.tasks) if len(task.splits.get(split, ()))]
  if not with_split:
    raise UserError(
      f"no task of {mixture.name!r} has examples in split {split!r}",
      hint=did_you_mean(split, (name for task in mixture.tasks for name in task.splits)),
    )
  eos_id = mixture.vocabulary.eos_id
  make = functools.partial(convert.padded, rows=batch, eos_id=eos_id)
  examples: list[Example] = []
  tasks: list[int] = []
  for index, task in with_split:
    available = task.splits[split]
    for position in range(len(available) if limit is None else min(limit, len(available))):
      examples.append(available[position])
      tasks.append(index)
      if len(examples) == batch:
        yield make(examples, architecture, inputs_length, targets_length, tasks)
        examples, tasks = [], []
  if examples:
    yield make(examples, architecture, inputs_length, targets_length, tasks)


@dataclass(frozen=True)
class _ToFeatures:
  architecture: str
  one_task_a_row: bool

  def __call__(self, rows: Arrays) -> Arrays:
    made = convert.features(rows, self.architecture)
    return made | {"task_ids": rows["task"][:, 0]} if self.one_task_a_row else made


def _check(setting: str, value: str, choices: Sequence[str]) -> None:
  if value not in choices:
    raise UserError(f"feed.{setting} is {value!r}", hint=did_you_mean(value, choices))


def _split(task: CachedTask, split: str) -> CachedSplit:
  examples = task.splits.get(split)
  if examples is None or not len(examples):
    raise UserError(
      f"task {task.name!r} has no examples in split {split!r}",
      hint=f"its splits: {', '.join(f'{name} ({len(each)})' for name, each in task.splits.items())}",
    )
  return examples


def _within(task: CachedTask, examples: CachedSplit, limits: np.ndarray, overlong: str) -> tuple[np.ndarray, int]:
  """Indices of the examples that will be drawn, and how many of the task's are over `limits`."""
  over = (examples.lengths > limits).any(axis=1)
  count = int(over.sum())
  indices = np.arange(len(examples))
  if count and overlong == "error":
    first = int(over.argmax())
    found = examples.lengths[first]
    raise UserError(
      f"task {task.name!r}, example {examples[first]['id']!r}: {found[0]} input and {found[1]} target tokens "
      f"are over {limits[0]} and {limits[1]} ({count} of {len(examples)} examples are over)",
      hint='raise train.inputs_length or train.targets_length, or set feed.overlong = "truncate" or "drop"',
    )
  if overlong == "drop":
    indices = indices[~over]
    if not len(indices):
      raise UserError(
        f"task {task.name!r}: all {count} examples are over {limits[0]} input or {limits[1]} target tokens",
        hint='raise train.inputs_length or train.targets_length, or set feed.overlong = "truncate"',
      )
  return indices, count


def _sizes(lengths: np.ndarray, architecture: str, limits: np.ndarray) -> np.ndarray:
  """Tokens that each example takes of a row, for every array that fills up."""
  sizes = np.minimum(lengths, limits)
  return sizes if architecture == "encdec" else sizes.sum(axis=1, keepdims=True)
