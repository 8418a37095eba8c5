"""Which predictions a page shows, side by side: wrong ones first, all tasks in turn."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from mtx.report.compare import method_names
from mtx.report.predictions import UNTRAINED, Answer, Evaluated, Item
from mtx.report.runs import Run
from mtx.report.table import metric_name, split_name

MOST = 120  # examples of a group
LONGEST = 2400  # characters of a text; a page with every word of long inputs is slow on a phone
RIGHT = 100.0


@dataclass(frozen=True)
class Said:
  """What one run or method answered; `score` is by its task's main metric, None if it has none."""

  who: str
  prediction: str
  metric: str
  score: float | None

  @property
  def right(self) -> bool:
    return self.score is not None and self.score >= RIGHT


@dataclass(frozen=True)
class Example:
  """One item; `inputs` is None where no predictions file has them."""

  task: str
  id: str
  inputs: str | None
  references: tuple[str, ...]
  said: tuple[Said, ...]

  @property
  def wrong(self) -> bool:
    return not all(each.right for each in self.said)

  @property
  def differs(self) -> bool:
    return len({each.prediction for each in self.said}) > 1

  @property
  def score(self) -> float:
    """Mean over who answered; what has no score counts as wrong."""
    return sum(each.score or 0.0 for each in self.said) / len(self.said)


@dataclass(frozen=True)
class Examples:
  """What is shown of `total` items, of which `wrong` were not answered rightly by everyone."""

  title: str
  shown: tuple[Example, ...]
  total: int
  wrong: int


def of_run(run: Run) -> list[Examples]:
  """A group a split, the run's methods side by side."""
  groups: dict[str, dict[str, Evaluated]] = {}
  for each, name in zip(run.evaluated, method_names(run.evaluated), strict=True):
    groups.setdefault(each.split, {})[name] = each
  return [_examples(split_name(split), by_method) for split, by_method in groups.items()]


def of_runs(runs: Sequence[Run]) -> list[Examples]:
  """A group a split and method that two or more runs have, the runs side by side."""
  groups: dict[tuple[str, str], dict[str, Evaluated]] = {}
  for run in runs:
    for each in (each for each in run.evaluated if each.method != UNTRAINED):
      groups.setdefault((each.split, each.method), {})[run.name] = each
  common = {key: by_run for key, by_run in groups.items() if len(by_run) > 1}
  most = max(MOST // max(len(common), 1), 30)
  return [_examples(f"{split_name(s)}, {method}", by_run, most) for (s, method), by_run in common.items()]


def _examples(title: str, by_who: Mapping[str, Evaluated], most: int = MOST) -> Examples:
  items = dict.fromkeys(item for evaluated in by_who.values() for item in evaluated.answers)
  made = [_example(item, by_who) for item in items]
  wrong = [each for each in made if each.wrong]
  right = [each for each in made if not each.wrong]
  # A quarter is kept for right answers: what works is of interest too.
  kept_right = min(len(right), max(most // 4, most - len(wrong)))
  shown = (*_in_turn(wrong, most - kept_right), *_in_turn(right, kept_right))
  return Examples(title, shown, len(made), len(wrong))


def _example(item: Item, by_who: Mapping[str, Evaluated]) -> Example:
  found = {who: evaluated.answers[item] for who, evaluated in by_who.items() if item in evaluated.answers}
  answers = list(found.values())
  inputs = next((answer.inputs for answer in answers if answer.inputs is not None), None)
  said = tuple(_said(who, answer) for who, answer in found.items())
  references = tuple(map(_cut, answers[0].references))
  return Example(*item, None if inputs is None else _cut(inputs), references, said)


def _said(who: str, answer: Answer) -> Said:
  metric, score = next(iter(answer.scores.items()), ("", None))
  return Said(who, _cut(answer.prediction), metric_name(metric), score)


def _in_turn(examples: Iterable[Example], most: int) -> list[Example]:
  """The worst of every task, then the second worst of every task, ..."""
  by_task: dict[str, list[Example]] = {}
  for example in sorted(examples, key=lambda each: each.score):
    by_task.setdefault(example.task, []).append(example)
  turns: Iterator[Example | None] = chain.from_iterable(zip_longest(*by_task.values()))
  return [example for example in turns if example is not None][:most]


def _cut(text: str) -> str:
  """Both ends of a long text: instructions stand first, the question last."""
  if len(text) <= LONGEST:
    return text
  half = LONGEST // 2
  return f"{text[:half]} … [{len(text) - 2 * half:,} characters more] … {text[-half:]}"
