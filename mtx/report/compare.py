"""What runs, or methods of one run, scored on the same items: means and differences, with intervals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64

from mtx.eval.letters import Comparison, compare_arms
from mtx.eval.statistics import Aligned, Interval, align, bootstrap, holm
from mtx.report.predictions import UNTRAINED, Evaluated, Item
from mtx.report.runs import Run, arms
from mtx.report.table import metric_name, split_name

LEVEL = 0.95
DRAWS = 4000
TASK_DRAWS = 2000


@dataclass(frozen=True)
class TaskLine:
  """One task: mean scores in the order of `Compared.arms`, and how far each after the first is from the first.

  `adjusted` are Holm's p values over all tasks and arms.
  """

  task: str
  count: int
  means: tuple[float, ...]
  differences: tuple[Interval | None, ...]
  adjusted: tuple[float | None, ...]


@dataclass(frozen=True)
class Compared:
  """Arms on the same items, by one metric.

  Attributes:
    split, metric, method: what was compared; method is None where the arms are methods.
    arms: names, in the order in which they were given.
    seeds, items: how many.
    by_task: arms told apart over tasks, each of which counts the same: intervals are for other tasks like these.
      None with fewer than three tasks.
    by_item: over items: intervals are for other items of these tasks. None with a single score. Either is None where
      the scatter of a pair can not be estimated.
    tasks: a line a task.
  """

  split: str
  metric: str
  method: str | None
  arms: tuple[str, ...]
  seeds: int
  items: int
  by_task: Comparison | None
  by_item: Comparison | None
  tasks: tuple[TaskLine, ...]

  @property
  def title(self) -> str:
    words = [split_name(self.split), metric_name(self.metric)]
    return ", ".join(words if self.method is None else [*words, self.method])

  def mean(self, arm: int) -> float:
    """Of an arm, by its place; every task counts the same."""
    return float(np.mean([line.means[arm] for line in self.tasks]))

  @property
  def shown(self) -> tuple[tuple[str, Comparison], ...]:
    """What there is to show, with what it is over."""
    both = (("tasks", self.by_task), ("items", self.by_item))
    return tuple((over, comparison) for over, comparison in both if comparison is not None)


def compare_methods(run: Run) -> list[Compared]:
  """Methods of one run, where several answered the same items; other items make another comparison."""
  groups: dict[tuple[str, frozenset[Item]], dict[str, Evaluated]] = {}
  names = method_names(run.evaluated)
  for each, name in zip(run.evaluated, names, strict=True):
    groups.setdefault((each.split, frozenset(each.answers)), {})[name] = each
  made: list[Compared] = []
  for (split, _), methods in groups.items():
    if len(methods) > 1:
      made += _by_metric(split, None, {name: {0: each} for name, each in methods.items()})
  return made


def compare_runs(runs: Sequence[Run]) -> tuple[list[Compared], list[str]]:
  """(comparisons of every evaluation that all arms have, notes on those that only some have).

  Where a run has not finished, tasks that it has not come to are left out, and that is noted.

  Raises:
    UserError: runs were evaluated on unequal items; names them. A damaged predictions file; names the line.
  """
  grouped = arms(runs)
  found = {arm: {seed: _last(run) for seed, run in of.items()} for arm, of in grouped.items()}
  keys = dict.fromkeys(key for of in found.values() for evaluated in of.values() for key in evaluated)
  made: list[Compared] = []
  notes: list[str] = []
  for split, method in keys:
    has = {arm: all((split, method) in evaluated for evaluated in of.values()) for arm, of in found.items()}
    if all(has.values()):
      chosen = {arm: {seed: e[split, method] for seed, e in of.items()} for arm, of in found.items()}
      if not all(run.finished for run in runs):
        chosen, left_out = _common_tasks(chosen)
        notes += (
          [f"{split_name(split)}, {method}: without {left_out}, which not all runs have done"] if left_out else []
        )
      made += _by_metric(split, method, chosen)
      notes += _other_data(f"{split_name(split)}, {method}", chosen)
    else:
      lacking = ", ".join(arm for arm, there in has.items() if not there)
      notes.append(f"{split_name(split)}, {method}: nothing to compare in {lacking}")
  return made, notes


def _common_tasks(
  chosen: Mapping[str, Mapping[int, Evaluated]],
) -> tuple[dict[str, dict[int, Evaluated]], str]:
  """(the same, of the tasks that all have; the names of the other tasks)."""
  tasks = [evaluated.tasks for of in chosen.values() for evaluated in of.values()]
  common = frozenset.intersection(*tasks)
  kept = {arm: {seed: replace(e, only=common) for seed, e in of.items()} for arm, of in chosen.items()}
  return kept, ", ".join(sorted(frozenset.union(*tasks) - common))


def _other_data(title: str, chosen: Mapping[str, Mapping[int, Evaluated]]) -> list[str]:
  """A note where items of the same name are not the same: then nothing is paired, whatever their names say."""
  (first, runs), *others = chosen.items()
  for arm, of in others:
    for seed, evaluated in of.items():
      asked, found = runs[seed].answers, evaluated.answers  # another seed may show other examples in its prompts
      unequal = [i for i in asked if (asked[i].inputs, asked[i].references) != (found[i].inputs, found[i].references)]
      if unequal:
        where = "/".join(unequal[0])
        return [
          f"{title}: {len(unequal):,} of {len(asked):,} items have another input or reference in {arm} than in {first} "
          f"({where}, ...): they read other data, so the comparison is not of the same items"
        ]
  return []


def method_names(evaluated: Sequence[Evaluated]) -> list[str]:
  """Methods, with their stage where several stages have one."""
  stages: dict[str, set[str]] = {}
  for each in evaluated:
    stages.setdefault(each.method, set()).add(each.stage)
  return [e.method if len(stages[e.method]) == 1 else f"{e.stage}: {e.method}" for e in evaluated]


def _last(run: Run) -> dict[tuple[str, str], Evaluated]:
  """(split, method) -> its predictions in the last stage that has it; what no run has trained yet is no comparison."""
  return {(each.split, each.method): each for each in run.evaluated if each.method != UNTRAINED}


def _by_metric(split: str, method: str | None, chosen: Mapping[str, Mapping[int, Evaluated]]) -> Iterator[Compared]:
  metrics = dict.fromkeys(m for of in chosen.values() for evaluated in of.values() for m in evaluated.metrics)
  for metric in metrics:
    scores = {arm: {seed: e.scores(metric) for seed, e in of.items()} for arm, of in chosen.items()}
    yield _compared(split, metric, method, align(scores))


def _compared(split: str, metric: str, method: str | None, aligned: Aligned) -> Compared:
  by_task = aligned.task_means()
  return Compared(
    split,
    metric,
    method,
    tuple(aligned.arms),
    len(aligned.seeds),
    len(aligned.items),
    _comparison(by_task) if len(by_task.items) > 2 else None,
    _comparison(aligned) if len(aligned.seeds) * len(aligned.items) > 1 else None,
    _tasks(aligned),
  )


def _comparison(aligned: Aligned) -> Comparison | None:
  """None if the scatter of any pair can not be estimated."""
  found = compare_arms(aligned.arms, draws=DRAWS, level=LEVEL)
  pairs = ((interval, aligned.arms[a] - aligned.arms[b]) for (a, b), interval in found.intervals.items())
  return found if all(_has_width(interval, scores) for interval, scores in pairs) else None


def _has_width(interval: Interval, differences: Float64[np.ndarray, "seed item"]) -> bool:
  """False where an interval is a point although scores scatter.

  Two seeds with equal means, and few items that differ: all scatter then counts as neither of seeds nor of items.
  """
  return interval.high - interval.low > 1e-6 or float(np.ptp(differences)) == 0


def _tasks(aligned: Aligned) -> tuple[TaskLine, ...]:
  names, of_item = np.unique([task for task, _ in aligned.items], return_inverse=True)
  first, *others = aligned.arms.values()
  rng = np.random.default_rng(0)
  lines = []
  for number, name in enumerate(names):
    mine = of_item == number
    differences: list[Interval | None] = [None] * len(others)
    if len(aligned.seeds) * mine.sum() > 1:
      cases = np.stack([other[:, mine] - first[:, mine] for other in others])
      found = bootstrap(cases, draws=TASK_DRAWS, level=LEVEL, rng=rng)
      differences = [each if _has_width(each, case) else None for each, case in zip(found, cases, strict=True)]
    means = tuple(float(scores[:, mine].mean()) for scores in aligned.arms.values())
    lines.append((str(name), int(mine.sum()), means, tuple(differences)))
  known = [each.p for *_, differences in lines for each in differences if each and each.p is not None]
  adjusted = iter(holm(known).tolist())
  return tuple(TaskLine(*line, tuple(next(adjusted) if d else None for d in line[-1])) for line in lines)
