"""What a run has predicted: the last evaluation of every stage, every few-shot method, every cell of a protocol."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mtx.analysis.gradients import METRIC
from mtx.eval.predictions import Answer, Item, read_predictions

OF_MIXTURE = re.compile(r"predictions-(?P<mixture>.+)-(?P<step>\d+)\.jsonl")
UNTRAINED = "untrained"  # the method of a model that nothing was done to yet


@dataclass(frozen=True)
class Evaluated:
  """One method's predictions for one set of items.

  Attributes:
    stage, step: of the model.
    split: "train", "heldout", or the name of another mixture.
    method: as in result rows.
    files: read when `answers` is asked for.
    only: tasks to which it is restricted; None: all.
  """

  stage: str
  step: int
  split: str
  method: str
  files: tuple[Path, ...]
  only: frozenset[str] | None = None

  @cached_property
  def answers(self) -> dict[Item, Answer]:
    """Raises UserError where a file is damaged."""
    found: dict[Item, Answer] = {}
    for file in self.files:
      found |= read_predictions(file)
    return {item: answer for item, answer in found.items() if self.only is None or item[0] in self.only}

  @property
  def tasks(self) -> frozenset[str]:
    return frozenset(task for task, _ in self.answers)

  def scores(self, metric: str) -> dict[Item, float]:
    """Of those items that have this metric."""
    return {item: answer.scores[metric] for item, answer in self.answers.items() if metric in answer.scores}

  @property
  def metrics(self) -> tuple[str, ...]:
    """In order of appearance."""
    return tuple(dict.fromkeys(metric for answer in self.answers.values() for metric in answer.scores))


def find_evaluated(run_dir: Path, rows: Sequence[Mapping[str, Any]]) -> list[Evaluated]:
  """What a run has predicted: of every stage, mixture and method the last evaluation, and every few-shot method.

  Args:
    rows: result rows of the run; they say which method a stage's evaluation was.
  """
  rows = [row for row in rows if row["metric"] != METRIC]  # what was measured, not answered
  found: list[Evaluated] = []
  last: dict[tuple[str, str, str], tuple[int, Path]] = {}
  for path in sorted(run_dir.glob("*/predictions-*-*.jsonl")):
    if match := OF_MIXTURE.fullmatch(path.name):
      stage, mixture, step = path.parent.name, match["mixture"], int(match["step"])
      key = (stage, mixture, _method(rows, stage, mixture, step))
      last[key] = max(last.get(key, (-1, path)), (step, path))
  for (stage, mixture, method), (step, path) in last.items():
    found.append(Evaluated(stage, step, mixture, method, (path,)))
  adapted: dict[tuple[str, str], list[Path]] = {}
  for path in sorted(run_dir.glob("*/*/*.jsonl")):
    adapted.setdefault((path.parent.parent.name, path.parent.name), []).append(path)
  for (stage, method), files in adapted.items():
    mine = [row for row in rows if row["stage"] == stage and row["method"] == method]
    splits: dict[str, set[str]] = {}
    for row in mine:
      splits.setdefault(str(row["split"]), set()).add(row["task"])
    step = int(mine[-1]["step"]) if mine else 0
    for split, tasks in (splits or {"heldout": set()}).items():
      # Of a file without rows yet, nobody knows the split.
      only = frozenset(tasks) if len(splits) > 1 else None
      found.append(Evaluated(stage, step, split, method, tuple(files), only))
  return _as_rows(found, rows)


def _method(rows: Iterable[Mapping[str, Any]], stage: str, mixture: str, step: int) -> str:
  split = "train" if mixture == "train" else "heldout"
  mine = [r["method"] for r in rows if (r["stage"], r["split"], r["step"]) == (stage, split, step)]
  return str(mine[-1]) if mine else "trained" if mixture == "train" else "zero-shot"


def _as_rows(found: list[Evaluated], rows: Sequence[Mapping[str, Any]]) -> list[Evaluated]:
  """In the order of result rows."""
  order = list(dict.fromkeys((row["stage"], row["method"]) for row in rows))
  rank = lambda each: order.index(key) if (key := (each.stage, each.method)) in order else len(order)
  return sorted(found, key=rank)
