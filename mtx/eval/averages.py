"""Averages of a protocol's rows: median over prompts, then instance -> task -> category -> benchmark.

As OPT-IML takes them (Iyer et al. 2022, arXiv 2212.12017): a category counts as much as any other, however many tasks
it has. The median over prompts is T0's (Sanh et al. 2022, arXiv 2110.08207).
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

MEDIAN = "median"  # over prompts: what `medians` calls the prompt of its rows
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Averages:
  """Attributes:
  tasks: data set -> score, the median over its prompts.
  categories: (benchmark, category) -> mean over its tasks.
  benchmarks: mean over their categories.
  macro: mean over benchmarks.
  micro: mean over items: a task counts as often as it has some.
  """

  tasks: Mapping[str, float]
  categories: Mapping[tuple[str, str], float]
  benchmarks: Mapping[str, float]
  macro: float
  micro: float


def averages(rows: Iterable[Row]) -> Averages:
  """Of rows of one model, level, number of shots, selector and seed.

  Args:
    rows: with `dataset`, `category`, `benchmark`, `prompt`, `value` and `count`; one a data set and prompt, so of one
      metric each (see `leading`).

  Raises:
    ValueError: no rows, or two of one data set and prompt.
  """
  by_task: dict[str, list[Row]] = {}
  for row in rows:
    by_task.setdefault(row["dataset"], []).append(row)
  if not by_task:
    raise ValueError("there are no rows to average")
  for name, mine in by_task.items():
    prompts = [row["prompt"] for row in mine]
    if len(set(prompts)) < len(prompts):
      raise ValueError(f"data set {name} has two rows of one prompt: {prompts}")
  tasks = {name: median(row["value"] for row in mine) for name, mine in by_task.items()}
  categories = _means({name: (mine[0]["benchmark"], mine[0]["category"]) for name, mine in by_task.items()}, tasks)
  benchmarks = _means({key: key[0] for key in categories}, categories)
  # Under each prompt a data set has the same items, so one prompt's count is its weight.
  counts = {name: max(row["count"] for row in mine) for name, mine in by_task.items()}
  total = sum(counts.values())
  micro = sum(value * counts[name] for name, value in tasks.items()) / total if total else float("nan")
  return Averages(tasks, categories, benchmarks, fmean(benchmarks.values()), micro)


def leading(rows: Iterable[Row]) -> list[Row]:
  """Of every task only the rows of its main metric, which stand first; no medians, since `averages` takes them."""
  main: dict[str, str] = {}
  kept = []
  for row in rows:
    if row["prompt"] != MEDIAN and row["metric"] == main.setdefault(row["task"], row["metric"]):
      kept.append(row)
  return kept


def medians(rows: Sequence[Row]) -> list[dict[str, Any]]:
  """A row for every data set that was asked in several prompts, with the median of each metric over them.

  Args:
    rows: of one stage; those of single prompts count. The rows of a group differ in task, prompt, method and value.
  """
  groups: dict[tuple, list[Row]] = {}
  for row in rows:
    if row["prompt"] != MEDIAN:
      key = tuple(row[name] for name in ("dataset", "metric", "shots", "selector", "seed"))
      groups.setdefault(key, []).append(row)
  made = []
  for mine in groups.values():
    if len({row["prompt"] for row in mine}) > 1:
      of_cell = {"task": mine[0]["dataset"], "prompt": MEDIAN, "value": median(row["value"] for row in mine)}
      made.append({**mine[0], **of_cell})
  return made


def _means(groups: Mapping[Any, Hashable], values: Mapping[Any, float]) -> dict[Any, float]:
  """Group -> mean of what is in it, in order of appearance."""
  members: dict[Any, list[float]] = {}
  for name, group in groups.items():
    members.setdefault(group, []).append(values[name])
  return {group: fmean(each) for group, each in members.items()}
