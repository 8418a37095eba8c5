"""Which tasks a protocol judges, and how new each of them is to a model: OPT-IML's three levels of generalisation.

Iyer et al. 2022, arXiv 2212.12017: tasks of categories that training has none of, held-out tasks of categories that it
has others of, and held-out instances of tasks that it has.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtx.data.cache import CachedMixture, CachedTask
from mtx.errors import UserError, did_you_mean
from mtx.eval.evaluate import judged_split
from mtx.tasks.metrics import METRICS

LEVELS = ("category", "task", "instance")


@dataclass(frozen=True)
class Judged:
  """A task with its place in a protocol.

  Attributes:
    level: one of LEVELS.
    dataset: what it shares with tasks that differ from it in their prompt alone; else its name.
    prompt: of its own, by which it differs from those; "" for a task that has no such others.
    benchmark: the unit over categories.
    metrics: that count, the main one first.
  """

  task: CachedTask
  level: str
  dataset: str
  prompt: str
  benchmark: str
  metrics: tuple[str, ...]

  @property
  def scored(self) -> tuple[str, ...]:
    """All metrics that are kept: those that count, and the task's own."""
    return tuple(dict.fromkeys((*self.metrics, *self.task.metrics)))

  @property
  def split(self) -> str:
    """As in the rows of other evaluations."""
    return "train" if self.level == "instance" else "heldout"


def judged_tasks(
  train: CachedMixture,
  heldout: CachedMixture,
  *,
  levels: Sequence[str] = LEVELS,
  tasks: Sequence[str] = (),
  metrics: Sequence[str] = (),
  own_prompts: str = "",
  benchmarks: Mapping[str, str] | None = None,
) -> tuple[list[Judged], list[str]]:
  """(tasks to judge, names of those that have no split to be judged on); the levels are relative to `train`.

  Args:
    levels: of LEVELS, which.
    tasks: patterns; empty: all.
    metrics: in place of each task's own: of these, or others that fit its examples (`mtx.tasks.metrics`); empty: its
      own.
    own_prompts: regular expression with groups `dataset` and `prompt` for the names of tasks that are one data set in
      several prompts, `promptsource_(?P<dataset>rte_en)_(?P<prompt>.+)`; names that it does not match stay alone.
    benchmarks: pattern of task names -> benchmark; the first that matches counts. What none matches is one of its own,
      "".

  Raises:
    UserError: an unknown level, a pattern that matches no task, no task at all, an unknown metric, an expression that
      can not be read.
  """
  for level in levels:
    if level not in LEVELS:
      raise UserError(f"binding `protocol.levels`: no level {level!r}.", hint=did_you_mean(level, LEVELS))
  named = _expression(own_prompts)
  trained = {task.name for task in train.tasks}
  seen = {task.category for task in train.tasks}
  level_of = lambda t: "instance" if t.name in trained else "task" if t.category in seen else "category"
  everyone = {task.name: task for task in (*heldout.tasks, *train.tasks)}
  for pattern in tasks:
    if not fnmatch.filter(everyone, pattern):
      hint = did_you_mean(pattern, everyone)
      raise UserError(f"binding `protocol.tasks`: {pattern!r} matches no task.", hint=hint)
  found, left_out = [], []
  for name, task in everyone.items():
    level = level_of(task)
    if level not in levels or (tasks and not any(fnmatch.fnmatchcase(name, pattern) for pattern in tasks)):
      continue
    if not task.splits.get(judged_split(task)):
      left_out.append(name)
      continue
    match = named.fullmatch(name) if named else None
    dataset, prompt = (match["dataset"], match["prompt"]) if match else (name, "")
    benchmark = next((b for p, b in (benchmarks or {}).items() if fnmatch.fnmatchcase(name, p)), "")
    found.append(Judged(task, level, dataset, prompt, benchmark, _metrics(task, metrics)))
  if not found:
    there = ", ".join(sorted({level_of(task) for task in everyone.values()})) or "none"
    hint = f"there are tasks of the levels: {there}"
    raise UserError("the protocol has no tasks to judge (`protocol.levels`, `protocol.tasks`).", hint=hint)
  return found, left_out


def _expression(written: str) -> re.Pattern | None:
  if not written:
    return None
  try:
    made = re.compile(written)
  except re.error as error:
    raise UserError(f"binding `protocol.own_prompts`: {written!r} is no regular expression: {error}.") from error
  if not {"dataset", "prompt"} <= set(made.groupindex):
    hint = "for example 'promptsource_(?P<dataset>rte_en)_(?P<prompt>.+)'"
    raise UserError(f"binding `protocol.own_prompts`: {written!r} lacks the groups dataset and prompt.", hint=hint)
  return made


def _metrics(task: CachedTask, asked: Sequence[str]) -> tuple[str, ...]:
  for metric in asked:
    if metric not in (*task.metrics, *METRICS):
      hint = did_you_mean(metric, (*task.metrics, *METRICS))
      raise UserError(f"binding `protocol.metrics`: task {task.name} has no metric {metric!r}.", hint=hint)
  return tuple(asked) or task.metrics
