"""A task as text: what every provider of tasks returns. No TensorFlow, no SeqIO.

A provider is one file in `mtx/tasks` with one `@gin.configurable` function that returns a `Collection`: its tasks as
text. `mtx.tasks.mixture` joins collections, gives them one vocabulary and rates, and registers them with SeqIO.
"""

import functools
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtx.errors import UserError

Row = Mapping[str, Any]


class Reading:
  """What a task needs while its rows are read, and where it says which of them are unusable.

  Attributes:
    encode: text -> token ids in the mixture's vocabulary, no EOS: a list or an array, perhaps one that is read-only.
    size: number of ids, sentinels included.
    sentinels: how many of them, from the end, are T5's sentinels.
    bad: (place, reason) of every row that was left out.
  """

  def __init__(
    self, encode: Callable[[str], Sequence | np.ndarray] = str.split, size: int = 0, sentinels: int = 0, budget: int = 0
  ):
    """budget: rows of a split that may be left out; at 0 the first bad one stops the build."""
    # A task that counts a prompt's tokens hands out that very prompt next, mostly.
    self.encode = functools.lru_cache(maxsize=4)(encode)
    self.size, self.sentinels, self.budget = size, sentinels, budget
    self.bad: list[tuple[str, str]] = []

  def count(self, text: str) -> int:
    """Tokens of a text, EOS not counted."""
    return len(self.encode(text))

  def sentinel(self, index: int) -> int:
    """Id of sentinel 0, 1, ...: they count down from the end of the vocabulary.

    Raises:
      UserError: the vocabulary has not that many.
    """
    if index >= self.sentinels:
      raise UserError(
        f"sentinel {index} is asked for, the vocabulary has {self.sentinels}",
        hint="mixture.extra_ids = 100 adds a hundred",
      )
    return self.size - 1 - index

  def skip(self, place: str, reason: str) -> None:
    """Notes an unusable row: the caller goes on with the next one.

    Args:
      place: file and line, with a column where there is one.
      reason: what is wrong with it.

    Raises:
      UserError: more rows are bad than the budget allows.
    """
    self.bad.append((place, reason))
    if len(self.bad) > self.budget:
      over = f" (bad row {len(self.bad)} of this split)" if self.budget else ""
      raise UserError(f"{place}: {reason}{over}", hint="leave out bad rows with build.bad_rows = 100, the most a split")


@dataclass(frozen=True)
class TextTask:
  """A task whose examples are text. `mtx.tasks.mixture` makes it a SeqIO Task.

  Attributes:
    name: unique among all tasks: letters, digits, `_` and `.`.
    category: the unit between one task and all of them.
    rows: `rows(split, reading)` yields the split's examples in an order that never changes. Each is a mapping with
      `inputs` and `targets` (text, or token ids without EOS), and if need be
        `id`: unique in the task; default `<task>-<split>-<position>`;
        `references`: list of all right answers; default the target alone;
        `options`: list of answers to choose from by their likelihood; the target is one of them;
        `turns`: instead of inputs and targets a list of (role, text), role "user" or "assistant", the first of a user
          and the last of the assistant; the loss counts what the assistant says.
      It is a function of a module (one that does not import TensorFlow) with arguments bound by `functools.partial`,
      so that it can go to another process and into the cache's fingerprint. Bound objects that stand for content
      outside the code, files above all, have a method `fingerprint() -> str` (see `mtx.tasks.files.DataFile`).
    splits: split -> number of examples, None where only reading can tell. `train` is learned from, `validation` gives
      a loss curve, `test` is scored.
    metrics: names in `mtx.tasks.metrics.METRICS`, the main one first.
    language: BCP 47 tag of what a model must write.
  """

  name: str
  category: str
  rows: Callable[[str, Reading], Iterator[Row]]
  splits: Mapping[str, int | None]
  metrics: tuple[str, ...] = ("exact_match",)
  language: str = "en"


@dataclass(frozen=True)
class Collection:
  """What a provider returns: tasks as text, not yet registered with SeqIO and not bound to a vocabulary.

  Attributes:
    name: of the provider, `superni` for example.
    train: tasks to learn from; heldout: tasks to be judged on, never trained on. A task may have other splits too.
    citation: paper or repository, and licence, in a line.
    texts: text that a vocabulary is trained on; None: the training tasks' own inputs and targets.
    vocabulary: makes the SentencePiece model that fits the collection best and returns its file, where the default,
      pieces trained on `texts`, does not fit.
  """

  name: str
  train: tuple[TextTask, ...] = ()
  heldout: tuple[TextTask, ...] = ()
  citation: str = ""
  texts: Callable[[], Iterable[str]] | None = None
  vocabulary: Callable[[], Path] | None = None


@dataclass(frozen=True)
class TaskInfo:
  """What a mixing strategy may look at. `examples` are those of split `train`."""

  name: str
  category: str
  source: str
  examples: int


def counted(rows: Callable[[str, Reading], Iterator[Row]], splits: Iterable[str]) -> dict[str, int]:
  """Split -> number of usable rows, found by reading them all once."""
  return {split: sum(1 for _ in rows(split, Reading(budget=sys.maxsize))) for split in splits}


def text_hash(text: str) -> int:
  """64 bits that depend on the text alone: the same in every process."""
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def share(text: str, salt: str = "") -> float:
  """A number in [0, 1) that depends on the text alone: by it, rows fall into splits that stay when data grows."""
  return text_hash(salt + text) / 2**64
