"""What is wrong with cached examples: leaks, contradictions, copies, empty and cut targets, one-sided labels."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt64

from mtx.data.cache import CachedMixture, CachedSplit, Example
from mtx.data.jobs import with_text
from mtx.data.leaks import COMMON, LEAK, NGRAM, Examples, Leaks, Pair, find_leaks
from mtx.data.vocabulary import Vocabulary
from mtx.errors import UserError, did_you_mean

CHECKS = ("leaks", "conflicts", "duplicates", "empty", "cut", "imbalance")
MOST_LABELS = 20
EXAMPLES_PER_LABEL = 5  # fewer, and targets that hardly repeat would pass for labels


@dataclass(frozen=True)
class Labels:
  """Targets of a task that chooses among few.

  Attributes:
    counts: (text, examples), the most frequent first.
    majority: share of the most frequent: what always giving it would score.
    entropy: bits.
  """

  counts: tuple[tuple[str, int], ...]
  majority: float
  entropy: float


@dataclass(frozen=True)
class SplitAudit:
  """One split of one task; counts are of examples.

  Attributes:
    role: "train" or "evaluation".
    duplicates: equal to an earlier one in inputs and targets, token by token.
    conflicts: have the inputs of an earlier one and none of its answers (references, or targets where there are none).
    conflicting: ids of some of these, each with that of the earlier one.
    empty: targets of no token but EOS; `empty_ids` names some.
    cut_inputs, cut_targets: longer than the model will read; None where no length was given.
    labels: None unless there are at most 20 distinct targets, with five examples each on average.
  """

  role: str
  task: str
  split: str
  examples: int
  duplicates: int
  conflicts: int
  conflicting: tuple[tuple[str, str], ...]
  empty: int
  empty_ids: tuple[str, ...]
  cut_inputs: int | None
  cut_targets: int | None
  labels: Labels | None

  @property
  def name(self) -> str:
    return f"{self.task} ({self.split})"


@dataclass(frozen=True)
class Problem:
  """One line of what a build should stop for. `check` is one of CHECKS, `share` of the examples of `where`."""

  check: str
  where: str
  share: float
  text: str


@dataclass(frozen=True)
class Audit:
  """What `audit` found.

  Attributes:
    inputs_length, targets_length: what "cut" means; None where not given.
    lengths: role -> tokens of inputs and targets of all its examples.
  """

  train: str
  evaluations: tuple[str, ...]
  splits: tuple[SplitAudit, ...]
  leaks: Leaks
  inputs_length: int | None = None
  targets_length: int | None = None
  lengths: dict[str, Int32[np.ndarray, "examples 2"]] = field(default_factory=dict, compare=False)

  def problems(
    self,
    fail_on: Iterable[str] = ("leaks", "conflicts", "duplicates", "empty", "cut"),
    *,
    leak: float = LEAK,
    conflicts: float = 0.01,
    duplicates: float = 0.01,
    empty: float = 0.0,
    cut: float = 0.05,
    imbalance: float = 0.9,
  ) -> list[Problem]:
    """What is over its threshold, each a share of examples, in the order of CHECKS and the worst first.

    Args:
      fail_on: which of CHECKS. "imbalance" is a fact about the world as often as a fault, and has to be asked for.
      leak: of an evaluation set's examples; see `mtx.data.leaks.Overlap.share`.
      conflicts, duplicates, empty, cut: of a split's; "cut" looks at inputs and at targets.
      imbalance: share of the most frequent label.

    Raises:
      UserError: a name that is none of CHECKS.
    """
    wanted = [fail_on] if isinstance(fail_on, str) else list(fail_on)
    for name in wanted:
      if name not in CHECKS:
        raise UserError(f"fail_on names {name!r}", hint=did_you_mean(name, CHECKS))
    shares = {"conflicts": conflicts, "duplicates": duplicates, "empty": empty, "cut": cut, "imbalance": imbalance}
    found: list[Problem] = []
    for check in (name for name in CHECKS if name in wanted):
      if check == "leaks":
        made: Iterator[Problem] = (_leak(pair, self.leaks.ngram) for pair in self.leaks.over(leak))
      else:
        made = (each for split in self.splits for each in _shares(split, check) if each.share > shares[check])
      found += sorted(made, key=lambda problem: -problem.share)
    return found


def audit(
  train: CachedMixture,
  evaluations: Sequence[CachedMixture] = (),
  *,
  inputs_length: int | None = None,
  targets_length: int | None = None,
  split: str = "train",
  evaluation_splits: Sequence[str] = ("test", "validation"),
  ngram: int = NGRAM,
  common: float = COMMON,
  worst: int = 3,
  watch: Callable[[str, int, int], Any] = lambda task, done, total: None,
) -> Audit:
  """Reads every example of both sides.

  Args:
    train: its tasks' `split` is what a model learns from, where a task has it.
    evaluations: mixtures whose `evaluation_splits` are compared with it; `train` may be among them, for its validation
      split. A split that lies in two mixtures counts once.
    inputs_length, targets_length: most tokens that the model will read, EOS included.
    ngram, common, worst: see `mtx.data.leaks.find_leaks`.
    watch: called with a name, the number of splits that are done and of all, before one is read.

  Raises:
    UserError: no task of `train` has `split`, or no task of `evaluations` has one of theirs; a length below 1.
  """
  for name, length in (("inputs_length", inputs_length), ("targets_length", targets_length)):
    if length is not None and (not isinstance(length, int) or length < 1):
      raise UserError(f"{name} of the audit is {length!r}", hint="it must be 1 or more")
  learned = _sources("train", [train], [split])
  judged = _sources("evaluation", evaluations, evaluation_splits) if evaluations else []
  total = 2 * len(learned) + len(judged)
  splits: list[SplitAudit] = []
  for source in [*learned, *judged]:
    watch(f"{source.task} {source.split}", len(splits), total)
    splits.append(_audited(source, inputs_length, targets_length))
  leaks = find_leaks(
    [source.examples for source in learned],
    [source.examples for source in judged],
    ngram=ngram,
    common=common,
    worst=worst,
    watch=lambda task, done, _: watch(f"{task} {split}, {ngram}-grams", len(splits) + done, total),
  )
  return Audit(
    train=train.name,
    evaluations=tuple(mixture.name for mixture in evaluations),
    splits=tuple(splits),
    leaks=leaks,
    inputs_length=inputs_length,
    targets_length=targets_length,
    lengths={side[0].role: np.concatenate([each.rows.lengths for each in side]) for side in (learned, judged) if side},
  )


@dataclass(frozen=True)
class _Source:
  role: str
  task: str
  split: str
  rows: CachedSplit
  vocabulary: Vocabulary

  @property
  def examples(self) -> Examples:
    return Examples(self.task, self.split, _Texts(self.rows, self.vocabulary))


@dataclass(frozen=True)
class _Texts:
  """Examples with their texts, which the cache has not of training examples that came as ids."""

  rows: CachedSplit
  vocabulary: Vocabulary

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> Example:
    return next(with_text([self.rows[index]], self.vocabulary))


def _sources(role: str, mixtures: Sequence[CachedMixture], splits: Sequence[str]) -> list[_Source]:
  """Splits with examples; a folder counts once."""
  found: dict[str, _Source] = {}
  for mixture in mixtures:
    for task in mixture.tasks:
      for name in splits:
        if len(task.splits.get(name, ())):
          rows = task.splits[name]
          found.setdefault(str(rows.folder), _Source(role, task.name, name, rows, mixture.vocabulary))
  if not found:
    names = ", ".join(repr(mixture.name) for mixture in mixtures)
    known = {name for mixture in mixtures for task in mixture.tasks for name in task.splits}
    raise UserError(
      f"no task of {names} has examples in split {' or '.join(map(repr, splits))}",
      hint=did_you_mean(splits[0] if splits else "", known),
    )
  return list(found.values())


def _audited(source: _Source, inputs_length: int | None, targets_length: int | None) -> SplitAudit:
  split, vocabulary = source.rows, source.vocabulary
  count = len(split)
  inputs, whole = np.empty(count, np.uint64), np.empty(count, np.uint64)
  targets: Counter[bytes] = Counter()
  many = False
  empty: list[str] = []
  for index in range(count):
    example = split[index]
    inputs[index] = _hash(example["inputs"])
    whole[index] = _hash(example["inputs"], example["targets"])
    if not (example["targets"] != vocabulary.eos_id).any():
      empty.append(str(example["id"]))
    if not many:
      targets[example["targets"].tobytes()] += 1
      many = len(targets) > MOST_LABELS
  conflicting = list(_conflicts(split, inputs))
  cut = [
    None if limit is None else int((split.lengths[:, side] > limit).sum())
    for side, limit in enumerate((inputs_length, targets_length))
  ]
  return SplitAudit(
    role=source.role,
    task=source.task,
    split=source.split,
    examples=count,
    duplicates=count - len(np.unique(whole)),
    conflicts=len(conflicting),
    conflicting=tuple(conflicting[:3]),
    empty=len(empty),
    empty_ids=tuple(empty[:3]),
    cut_inputs=cut[0],
    cut_targets=cut[1],
    labels=None if many else _labels(targets, vocabulary),
  )


def _hash(*arrays: Int32[np.ndarray, " n"]) -> int:
  state = hashlib.blake2b(digest_size=8)
  for array in arrays:
    state.update(len(array).to_bytes(8, "big") + array.tobytes())
  return int.from_bytes(state.digest(), "big")


def _conflicts(split: CachedSplit, inputs: UInt64[np.ndarray, " examples"]) -> Iterator[tuple[str, str]]:
  """Ids of examples with the inputs of an earlier one (whose id is the second) and none of its answers."""
  _, group, sizes = np.unique(inputs, return_inverse=True, return_counts=True)
  first: dict[int, tuple[str, frozenset]] = {}
  for index in np.flatnonzero(sizes[group] > 1):
    example = split[int(index)]
    known = first.setdefault(int(group[index]), (str(example["id"]), _answers(example)))
    if not known[1] & _answers(example):
      yield str(example["id"]), known[0]


def _answers(example: Example) -> frozenset:
  return frozenset(text.strip() for text in example["references"]) or frozenset([example["targets"].tobytes()])


def _labels(targets: Counter[bytes], vocabulary: Vocabulary) -> Labels | None:
  total = targets.total()
  if not total or total < EXAMPLES_PER_LABEL * len(targets):
    return None
  counts = tuple((vocabulary.decode(np.frombuffer(ids, np.int32)), count) for ids, count in targets.most_common())
  shares = np.array([count for _, count in counts]) / total
  return Labels(counts, float(shares[0]), float(-(shares * np.log2(shares)).sum()) + 0.0)


def _leak(pair: Pair, ngram: int) -> Problem:
  overlap = pair.overlap
  where = f"{pair.evaluation} ({pair.split})"
  found = f"{overlap.ngrams} share a {ngram}-gram" if overlap.ngrams else ""
  equal = f"{overlap.answers} are equal in input and answer" if overlap.answers else ""
  counts = " and ".join(text for text in (found, equal) if text)
  example = f"; first {pair.worst[0].evaluation_id} with {pair.worst[0].train_id}" if pair.worst else ""
  text = f"{where}: of {overlap.examples} examples {counts} with training task {pair.train}{example}"
  return Problem("leaks", where, overlap.share, text)


def _shares(split: SplitAudit, check: str) -> Iterator[Problem]:
  """A split's share of each kind that a check looks at."""
  of = f"of {split.examples:,} examples"
  if check == "imbalance":
    if split.labels:
      label, count = split.labels.counts[0]
      text = f"{split.name}: {count:,} {of} have the target {label!r} ({len(split.labels.counts)} labels)"
      yield Problem(check, split.name, split.labels.majority, text)
    return
  pair = " has the inputs of ".join(split.conflicting[0]) if split.conflicting else ""
  kinds: dict[str, list[tuple[int | None, str]]] = {
    "conflicts": [(split.conflicts, f"have the inputs of another, and another answer; {pair}")],
    "duplicates": [(split.duplicates, "are copies of another")],
    "empty": [(split.empty, f"have an empty target; {', '.join(split.empty_ids)}")],
    "cut": [
      (split.cut_inputs, "have inputs that are longer than inputs_length"),
      (split.cut_targets, "have targets that are longer than targets_length"),
    ],
  }
  for found, words in kinds[check]:
    if found:
      yield Problem(check, split.name, found / split.examples, f"{split.name}: {found:,} {of} {words}")
