"""A cached mixture to batches: seeded, mixed, packed, prefetched, and able to go on where it was.

    feed(mixture, architecture="encdec", split="train", seed=0)   endless, for training
    validation_batches(mixture, ...)                              finite, in a fixed order, for a loss curve

The state is small and plain JSON, and goes into the checkpoint. Grain's thread makes batches in advance; rates that
change do so at a batch that does not depend on how far it is.
"""

import functools
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gin
import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset
from jaxtyping import Float

from mtx.data import convert
from mtx.data.cache import CachedMixture, CachedSplit, CachedTask, Example, digest
from mtx.data.convert import Arrays, Element
from mtx.data.mix import BLOCK, BLOCK_OF_TASK, MixedRows, Packing, Row, Rows, Stream, TaskRows
from mtx.errors import UserError, did_you_mean

ROWS: dict[str, Callable[..., Rows]] = {"mixed": MixedRows, "task": TaskRows}
OVERLONG = ("truncate", "drop", "error")
# Batch, counted from 0, -> the rates that hold from it on. The loop's thread writes it, the feed's reads it.
Changes = dict[int, Float[np.ndarray, " tasks"]]
PREFETCH = 4  # batches
ORDER = (2, BLOCK, BLOCK_OF_TASK)  # a position is of one order of examples: change it with the code that makes it


@dataclass(frozen=True)
class Share:
  """What a task was to have of the examples handed out, and what it had; both sum to 1 over the tasks."""

  task: str
  category: str
  asked: float
  realised: float
  examples: int


class FeedIterator:
  """Endless batches. `get_state()` is JSON-able; `set_state` makes the next batch the one that followed."""

  def __init__(self, recipe: "_Recipe", fingerprint: str):
    self._recipe, self._fingerprint = recipe, fingerprint
    self._changes: Changes = {}
    batches = iter(ThreadPrefetchIterDataset(_Batches(recipe, self._changes), prefetch_buffer_size=PREFETCH))
    self._open = [batches]
    self._before = batches.get_state()
    # Grain's iterator must be gone before the interpreter takes its modules apart, or it complains on stderr.
    self.close = weakref.finalize(self, _close, self._open)

  def __iter__(self) -> "FeedIterator":
    return self

  def __next__(self) -> Arrays:
    self._before = self._open[0].get_state()
    return next(self._open[0])

  def get_state(self, *, before_last: bool = False) -> dict[str, Any]:
    """Position after the last batch that was *handed out*, whatever is prefetched behind it; or before that one.

    Changes of rates that were asked for and do not hold yet are part of it.
    """
    position = self._before if before_last else self._open[0].get_state()
    changes = [[batch, rates.tolist()] for batch, rates in self._changes.items() if batch >= position["batch"]]
    return {"feed": self._fingerprint, "position": _plain(position), "changes": changes}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Raises UserError when the state is of a feed over other data, or with other settings."""
    if state["feed"] != self._fingerprint:
      raise UserError(
        "the data position in the checkpoint belongs to another feed: "
        "the cache, the mixture's rates, the seed or a `feed` setting has changed since",
        hint="restore those settings, or start a fresh run that loads only the parameters",
      )
    self._open[0].set_state(state["position"])  # stops the thread, which starts again with the next batch
    self._changes.clear()
    self._changes.update((int(batch), np.array(rates, np.float64)) for batch, rates in state["changes"])
    self._before = self._open[0].get_state()

  def change_rates(self, rates: Mapping[str, float], step: int) -> int:
    """Asks for other rates after step `step`, when its batch and at most one more were handed out.

    Args:
      rates: task name -> rate, of any scale; a task that is not named is not drawn.
      step: the number of batches that were used; the change does not depend on how far the thread is.

    Returns:
      The number of the step that is the first with these rates: `step` + PREFETCH + 3.

    Raises:
      UserError: a name that the mixture lacks, rates that are no rates, a task without the split.
    """
    batch, handed = step + PREFETCH + 2, self._open[0].get_state()["batch"]
    # Beside the batches that wait, the thread may hold one for which there is no room yet.
    if batch <= handed + PREFETCH:
      raise ValueError(f"rates can not change with batch {batch}: it may have been made")
    asked = self._recipe.checked(rates)
    if not np.array_equal(asked, self._asked()):
      for old in [each for each in self._changes if each < handed]:
        del self._changes[old]
      self._changes[batch] = asked
    return batch + 1

  def shares(self) -> list[Share]:
    """Asked and realised shares of all batches that were handed out, also before a restart; by task."""
    rows = self._recipe.rows()
    rows.restore(self._open[0].get_state()["rows"])
    total = max(int(rows.handed.sum()), 1)
    asked = rows.quota.asked(total) / total
    return [
      Share(task.name, task.category, float(asked[i]), float(rows.handed[i] / total), int(rows.handed[i]))
      for i, task in enumerate(self._recipe.mixture.tasks)
    ]

  def _asked(self) -> Float[np.ndarray, " tasks"]:
    """The rates of the newest change; without one, those at the position."""
    if self._changes:
      return self._changes[max(self._changes)]
    return np.asarray(self._open[0].get_state()["rows"].get("rates", self._recipe.rates))


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
    loss: which tokens count in it, as `feed` was told.
  """

  spec: Mapping[str, tuple[tuple[int, ...], str]]
  overlong: Mapping[str, int]
  fingerprint: str
  loss: str
  recipe: "_Recipe"

  def __iter__(self) -> FeedIterator:
    return FeedIterator(self.recipe, self.fingerprint)


@gin.configurable(allowlist=["batch", "pack", "rows", "overlong", "loss", "isolate"])
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
  loss: str = "targets",
  isolate: bool = True,
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
    loss: "targets": the targets count, or those of them that an example's weights name. "all": every token of inputs
      and targets, for causal decoders.
    isolate: whether the examples of a row are kept apart: attention is block-diagonal, positions begin anew. False, for
      causal decoders: a row is one text, and an example sees those before it.

  Raises:
    UserError: a name that is none of these choices, a length below 1, a split that a task lacks, an over-long
      example under "error" (task, id and lengths named), a task of which nothing is left.
  """
  convert.check_architecture(architecture)
  convert.check_loss(loss, architecture)
  _check("rows", rows, tuple(ROWS))
  _check("overlong", overlong, OVERLONG)
  for name, value in (("batch", batch), ("inputs_length", inputs_length), ("targets_length", targets_length)):
    if not isinstance(value, int) or value < 1:
      raise UserError(f"{name} of the feed is {value!r}", hint="it must be 1 or more")
  if not isolate and architecture != "causal":
    raise UserError(
      f"feed.isolate is False, but the architecture is {architecture!r}",
      hint='an example can see those before it where all attention is causal: model.architecture = "causal"',
    )
  recipe = _Recipe(
    mixture, architecture, split, seed, batch, inputs_length, targets_length, pack, rows, overlong, loss, isolate
  )
  counts = {
    mixture.tasks[index].name: int((stream.split.lengths > np.array(recipe.lengths)).any(axis=1).sum())
    for index, stream in ((index, recipe.stream(index)) for index in np.flatnonzero(recipe.rates).tolist())
  }
  settings = [architecture, split, seed, batch, inputs_length, targets_length, pack, rows, overlong, loss, ORDER]
  settings += [] if isolate else ["joined"]
  return Feed(
    spec={name: (values.shape, values.dtype.name) for name, values in recipe.arrays([[]] * batch).items()},
    overlong={name: count for name, count in counts.items() if count},
    fingerprint=digest([mixture.fingerprint, settings]),
    loss=loss,
    recipe=recipe,
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
  loss: str = "targets",
) -> Iterator[Arrays]:
  """The first `limit` examples of every task that has `split`, one a row, truncated, in the cache's order.

  The last batch is filled up with empty rows: segment ids and loss weights 0. Batches have `task_ids`
  int32[batch].

  Raises:
    UserError: no task of the mixture has that split.
  """
  convert.check_architecture(architecture)
  convert.check_loss(loss, architecture)
  with_split = [(index, task) for index, task in enumerate(mixture.tasks) if len(task.splits.get(split, ()))]
  if not with_split:
    raise UserError(
      f"no task of {mixture.name!r} has examples in split {split!r}",
      hint=did_you_mean(split, (name for task in mixture.tasks for name in task.splits)),
    )
  chosen = [
    (index, task.splits[split], position)
    for index, task in with_split
    for position in range(min(len(task.splits[split]), len(task.splits[split]) if limit is None else limit))
  ]
  eos_id, start_id = mixture.vocabulary.eos_id, mixture.vocabulary.start(architecture)
  for start in range(0, len(chosen), batch):
    part = chosen[start : start + batch]
    examples: list[Example] = [available[position] for _, available, position in part]
    tasks = [index for index, _, _ in part]
    lengths = (inputs_length, targets_length)
    yield convert.padded(
      examples, architecture, *lengths, tasks, rows=batch, eos_id=eos_id, start_id=start_id, loss=loss
    )


@dataclass(eq=False)
class _Recipe:
  """The settings of a feed, and what they make of a mixture."""

  mixture: CachedMixture
  architecture: str
  split: str
  seed: int
  batch: int
  inputs_length: int
  targets_length: int
  pack: bool
  kind: str
  overlong: str
  loss: str
  isolate: bool
  streams: dict[int, Stream] = field(default_factory=dict)

  @functools.cached_property
  def rates(self) -> Float[np.ndarray, " tasks"]:
    return _normalised(np.asarray(self.mixture.rates, np.float64))

  @functools.cached_property
  def start_id(self) -> int | None:
    return self.mixture.vocabulary.start(self.architecture)

  @functools.cached_property
  def lengths(self) -> tuple[int, int]:
    return self.inputs_length, self.targets_length

  def stream(self, index: int) -> Stream:
    """Of a task. Made when it is first asked for, since one whose rate is 0 may lack the split."""
    if index not in self.streams:
      task = self.mixture.tasks[index]
      examples = _split(task, self.split)
      kept = _within(task, examples, np.array(self.lengths), self.overlong)
      # Joined examples keep their first tokens, which something then predicts.
      start_id = self.start_id if self.isolate else 0
      sizes = convert.sizes(examples.lengths, self.architecture, *self.lengths, start_id=start_id)
      self.streams[index] = Stream(examples, kept, sizes, task.name, self.seed)
    return self.streams[index]

  def rows(self) -> Rows:
    capacity = convert.capacity(self.architecture, *self.lengths)
    return ROWS[self.kind](self.stream, self.rates, Packing(capacity, self.seed, single=not self.pack))

  def element(self, task: int, index: int) -> Element:
    example = self.stream(task).split[index]
    return convert.element(example, task, *self.lengths, self.mixture.vocabulary.eos_id)

  def arrays(self, rows: Sequence[Sequence[Element]]) -> Arrays:
    rows = rows if self.isolate else [convert.joined(row) for row in rows]
    made = convert.features(rows, self.architecture, *self.lengths, loss=self.loss, start_id=self.start_id)
    return made | {"task_ids": convert.row_tasks(rows)} if self.kind == "task" else made

  def checked(self, rates: Mapping[str, float]) -> Float[np.ndarray, " tasks"]:
    """Rates of all tasks in order, which sum to 1; raises UserError for what can not be drawn from."""
    indices = {task.name: index for index, task in enumerate(self.mixture.tasks)}
    found = np.zeros(len(indices))
    for name, rate in rates.items():
      if name not in indices:
        raise UserError(f"rates name {name!r}, which is no task of the mixture", hint=did_you_mean(name, indices))
      if not (np.isfinite(rate) and rate >= 0):
        raise UserError(f"the rate of task {name!r} is {rate}", hint="it must be a number, 0 or more")
      found[indices[name]] = rate
    if not found.any():
      raise UserError("rates are 0 for all tasks", hint="give one task a positive rate")
    for index in np.flatnonzero(found).tolist():
      self.stream(index)
    return _normalised(found)


class _Batches(grain.IterDataset):
  def __init__(self, recipe: _Recipe, changes: Changes):
    super().__init__()
    self._recipe, self._changes = recipe, changes

  def __iter__(self) -> "_BatchIterator":
    return _BatchIterator(self._recipe, self._changes)


class _BatchIterator(grain.DatasetIterator):
  """What Grain's thread runs."""

  def __init__(self, recipe: _Recipe, changes: Changes):
    super().__init__()
    self._recipe, self._changes = recipe, changes
    self._rows, self._batch = recipe.rows(), 0

  def __next__(self) -> Arrays:
    if self._batch in self._changes:
      self._rows.change(self._changes[self._batch])
    self._batch += 1
    recipe = self._recipe
    drawn: list[Row] = self._rows.take(recipe.batch)
    return recipe.arrays([[recipe.element(*each) for each in row] for row in drawn])

  def get_state(self) -> dict[str, Any]:
    return {"batch": self._batch, "rows": self._rows.state()}

  def set_state(self, state: Mapping[str, Any]) -> None:
    self._batch = int(state["batch"])
    self._rows = self._recipe.rows()
    self._rows.restore(state["rows"])


def _normalised(rates: Float[np.ndarray, " tasks"]) -> Float[np.ndarray, " tasks"]:
  return rates / rates.sum()


def _plain(state: Any) -> Any:
  """The state with lists for arrays."""
  if isinstance(state, Mapping):
    return {name: _plain(value) for name, value in state.items()}
  return state.tolist() if isinstance(state, np.ndarray) else state


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


def _within(task: CachedTask, examples: CachedSplit, limits: np.ndarray, overlong: str) -> np.ndarray:
  """Indices of the examples that will be drawn."""
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
  return indices
