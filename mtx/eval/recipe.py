"""Recipes: the small experiment of a method sheet as data, and the verdict on what it promised.

A recipe is one gin file (configs/recipe). What it binds to `recipe` says what is compared; the rest is what every arm
runs with. An arm is bindings over that file, and an arm with a seed is one run.
"""

import fnmatch
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gin
import numpy as np
from jaxtyping import Float64

from mtx.errors import UserError, did_you_mean
from mtx.eval.criteria import Criterion, Name, criteria
from mtx.eval.predictions import Answer, read_predictions
from mtx.eval.statistics import Aligned, Interval, Item, align, holm, paired_bootstrap

FIELDS = (
  "stage",
  "method",
  "split",
  "metric",
  "task",
  "category",
  "step",
  "level",
  "shots",
  "selector",
  "prompt",
  "dataset",
  "benchmark",
)  # of a result row, that a measure may ask for
DRAWS, LEVEL = 10_000, 0.95
Row = Mapping[str, Any]


@gin.configurable("recipe")
@dataclass(frozen=True)
class Recipe:
  """What a gin file declares.

  Attributes:
    title: the claim, in words.
    source: sheet and paper that it is of.
    arms: name -> bindings `NAME = VALUE` over the recipe's file. `{other}` in them is the folder of the run of an arm
      that stands before, with the same seed: `model.pretrained = '{base}'`.
    seeds: of every arm; each is bound to the macro SEED.
    measures: name -> values of FIELDS that a result row has; `task` is a pattern or a list of them. A measure is the
      mean over the tasks. In criteria an arm alone means the first measure.
    accept: criteria, see `mtx.eval.criteria`.
    minutes: that all of it takes on two cores.
    run: None: an arm is `mtx train`. Else a function `(arm, seed, folder) -> result rows` that is called instead.
    derive: None, or a function of what the arms of one seed left, `{arm: rows} -> {arm: further rows}`: measures that
      compare a whole curve, or arms with each other, such as `@data_needed`.
  """

  title: str = gin.REQUIRED
  arms: Mapping[str, Sequence[str]] = gin.REQUIRED
  measures: Mapping[str, Mapping[str, Any]] = gin.REQUIRED
  accept: Sequence[str] = gin.REQUIRED
  source: str = ""
  seeds: Sequence[int] = (0, 1, 2)
  minutes: float = 20.0
  run: Callable[[str, int, Path], list[dict[str, Any]]] | None = None
  derive: Callable[[Mapping[str, Sequence[Row]]], Mapping[str, Sequence[Row]]] | None = None

  def __post_init__(self):
    for name in (*self.arms, *self.measures):
      if not name.isidentifier():
        raise UserError(f"recipe: {name!r} is no name for an arm or a measure.", hint="letters, digits and _")
    for what in ("arms", "measures", "accept", "seeds"):
      if not getattr(self, what):
        raise UserError(f"binding `recipe.{what}` is empty.")
    if len(set(self.seeds)) < len(self.seeds):
      raise UserError(f"binding `recipe.seeds` has a seed twice: {list(self.seeds)}.")
    for name, wanted in self.measures.items():
      for field in wanted:
        if field not in FIELDS:
          raise UserError(
            f"binding `recipe.measures`: {name!r} asks for {field!r}, which result rows do not have.",
            hint=did_you_mean(field, FIELDS),
          )
    self.criteria()

  def criteria(self) -> list[Criterion]:
    """The acceptance criteria, read; raises UserError for what can not be read or names what is not there."""
    return [each for text in self.accept for each in criteria(text, tuple(self.arms), tuple(self.measures))]


@dataclass(frozen=True)
class Run:
  """What a run of an arm left: `rows` of results.json, and the folder with its predictions."""

  rows: Sequence[Row]
  folder: Path


@dataclass(frozen=True)
class Finding:
  """A criterion with what was measured.

  Attributes:
    left, right: of its sides, means over seeds and items.
    difference: left - right, with p of no difference; its ends are None where there is one number alone.
    adjusted: p by Holm over the recipe's criteria.
    agree: seeds in which it holds.
    met: as the criterion asks.
  """

  criterion: str
  left: float
  right: float
  difference: float
  low: float | None
  high: float | None
  p: float | None
  adjusted: float | None
  agree: tuple[int, ...]
  met: bool


@dataclass(frozen=True)
class Verdict:
  """Attributes:
  measured: arm -> measure -> seed -> mean, of whatever was measured.
  seeds: that were judged.
  """

  findings: tuple[Finding, ...]
  measured: Mapping[str, Mapping[str, Mapping[int, float]]]
  seeds: tuple[int, ...]

  @property
  def met(self) -> bool:
    return all(finding.met for finding in self.findings)


def judge(recipe: Recipe, runs: Mapping[str, Mapping[int, Run]], seeds: Sequence[int]) -> Verdict:
  """Compares what the recipe's criteria name, on the same items in every arm, by paired bootstrap over seeds and items.

  Args:
    runs: arm -> seed -> what it left; every arm that a criterion names, with all of `seeds`.

  Raises:
    UserError: rows that a measure asks for are not there (the nearest are named), runs that can not be paired.
  """
  chosen = recipe.criteria()
  runs = _with_derived(recipe, runs, seeds)
  findings = [_find(recipe, each, runs, seeds) for each in chosen]
  with_p = [i for i, finding in enumerate(findings) if finding.p is not None]
  adjusted = dict(zip(with_p, holm([findings[i].p for i in with_p]).tolist(), strict=True))  # type: ignore[misc]
  findings = [Finding(**{**vars(f), "adjusted": adjusted.get(i)}) for i, f in enumerate(findings)]
  measured: dict[str, dict[str, dict[int, float]]] = {}
  for arm in recipe.arms:
    for name, wanted in recipe.measures.items():
      for seed in seeds:
        run = runs.get(arm, {}).get(seed)
        if run and (rows := select(run.rows, wanted)):
          mean = float(np.mean([row["value"] for row in rows]))
          measured.setdefault(arm, {}).setdefault(name, {})[seed] = mean
  return Verdict(tuple(findings), measured, tuple(seeds))


def _with_derived(
  recipe: Recipe, runs: Mapping[str, Mapping[int, Run]], seeds: Sequence[int]
) -> Mapping[str, Mapping[int, Run]]:
  """The runs, and what the recipe derives from those of one seed."""
  if recipe.derive is None:
    return runs
  made: dict[str, dict[int, Run]] = {arm: dict(of_arm) for arm, of_arm in runs.items()}
  for seed in seeds:
    more = recipe.derive({arm: of_arm[seed].rows for arm, of_arm in runs.items() if seed in of_arm})
    for arm, rows in more.items():
      run = made[arm][seed]
      made[arm][seed] = replace(run, rows=[*run.rows, *rows])
  return made


def _find(recipe: Recipe, criterion: Criterion, runs: Mapping[str, Mapping[int, Run]], seeds: Sequence[int]) -> Finding:
  scores = {
    name: {seed: _items(recipe, name, seed, runs[name.arm][seed]) for seed in seeds} for name in criterion.names
  }
  aligned = align(_by_place(_same_grain(scores)))
  arrays = {name: _weighted(aligned, str(name)) for name in criterion.names}
  shape = next(iter(arrays.values())).shape
  left, right = (np.broadcast_to(side(arrays), shape).astype(np.float64) for side in (criterion.left, criterion.right))
  difference = left - right
  interval = Interval(float(difference.mean()), np.nan, np.nan, None)
  if difference.size > 1:
    interval = paired_bootstrap(left, right, draws=DRAWS, level=LEVEL)
  agree = tuple(seed for seed, each in zip(seeds, difference.mean(1), strict=True) if criterion.holds(float(each)))
  ends = interval.low, interval.high
  met = {
    "": criterion.holds(interval.estimate),
    "seeds": len(agree) == len(seeds),
    "interval": all(np.isfinite(end) and criterion.holds(end) for end in ends),
  }[criterion.asks]
  low, high = (float(end) if np.isfinite(end) else None for end in ends)
  return Finding(
    str(criterion), float(left.mean()), float(right.mean()), interval.estimate, low, high, interval.p, None, agree, met
  )


def select(rows: Iterable[Row], wanted: Mapping[str, Any]) -> list[Row]:
  """The rows that have what a measure asks for."""
  return [row for row in rows if all(_fits(row.get(field), value) for field, value in wanted.items())]


def _fits(value: Any, wanted: Any) -> bool:
  choices = wanted if isinstance(wanted, (list, tuple)) else [wanted]
  return any(value == each or (isinstance(each, str) and fnmatch.fnmatchcase(str(value), each)) for each in choices)


def _items(recipe: Recipe, name: Name, seed: int, run: Run) -> dict[str, dict[Item, float]]:
  """Task -> item -> score of one measure of one run: items are examples where predictions give the row's value, and
  else the row is the one item of its task."""
  wanted = recipe.measures[name.measure]
  rows = select(run.rows, wanted)
  if not rows:
    raise UserError(
      f"measure {name.measure!r} finds no result of arm {name.arm!r} with seed {seed} in {run.folder}.",
      hint=_nearest(run.rows, wanted),
    )
  made: dict[str, dict[Item, float]] = {}
  for row in rows:
    if row["task"] in made:
      raise UserError(
        f"measure {name.measure!r} finds two results of task {row['task']!r} of arm {name.arm!r}.",
        hint="let it ask for one stage, method, split and metric",
      )
    found = predicted(run.folder, row)
    mean = float(np.mean(list(found.values()))) if found else np.nan
    # What is no mean over examples, such as the F1 of a corpus, is one number a task.
    same = bool(found) and abs(mean - row["value"]) <= 1e-6 * max(1.0, abs(row["value"]))
    made[row["task"]] = found if same else {(row["task"], ""): float(row["value"])}
  return made


def predicted(folder: Path, row: Row) -> dict[Item, float]:
  """(task, id) -> score of a row's examples, from the run's predictions; empty where there are none.

  Raises:
    UserError: a line that is no prediction; file and line are named.
  """
  stage = folder / str(row["stage"])
  for file in (stage / str(row["method"]) / f"{row['task']}.jsonl", *stage.glob(f"predictions-*-{row['step']}.jsonl")):
    if file.is_file():
      written = file.stat()
      answers = _answers(file, (written.st_mtime_ns, written.st_size))
      metric = row["metric"]
      found = {i: a.scores[metric] for i, a in answers.items() if i[0] == row["task"] and metric in a.scores}
      if found:
        return found
  return {}


@functools.lru_cache(maxsize=32)
def _answers(file: Path, written: tuple[int, int]) -> Mapping[Item, Answer]:
  """The file's, read once for all of its tasks and all criteria; `written` tells a file from its successor."""
  return read_predictions(file)


def _same_grain(
  scores: Mapping[Name, Mapping[int, Mapping[str, Mapping[Item, float]]]],
) -> dict[str, dict[int, dict[Item, float]]]:
  """Scores as `align` takes them. Where measures of one criterion differ in kind, a task is one item in all of them."""
  grains = {
    task: {tuple(items) for runs in scores.values() for run in runs.values() if (items := run.get(task))}
    for runs in scores.values()
    for run in runs.values()
    for task in run
  }
  whole = {task for task, kinds in grains.items() if ((task, ""),) in kinds and len(kinds) > 1}

  def flat(run: Mapping[str, Mapping[Item, float]]) -> dict[Item, float]:
    made: dict[Item, float] = {}
    for task, items in run.items():
      made |= {(task, ""): float(np.mean(list(items.values())))} if task in whole else items
    return made

  return {str(name): {seed: flat(run) for seed, run in runs.items()} for name, runs in scores.items()}


def _by_place(scores: dict[str, dict[int, dict[Item, float]]]) -> dict[str, dict[int, dict[Item, float]]]:
  """Where every seed has items of its own, as a world that is drawn by seed has, the n-th of a task stands for the n-th
  of the other seeds. Arms are paired within a seed: they must share its items, and `align` says where they do not."""
  first = next(iter(scores.values()))
  own = len({frozenset(run) for run in first.values()}) > 1
  paired = all(
    runs.keys() == first.keys() and all(runs[s].keys() == first[s].keys() for s in runs) for runs in scores.values()
  )
  if not (own and paired):
    return scores

  def numbered(run: Mapping[Item, float]) -> dict[Item, float]:
    seen: Counter[str] = Counter()
    made: dict[Item, float] = {}
    for task, item in sorted(run):
      made[task, str(seen[task])] = run[task, item]
      seen[task] += 1
    return made

  return {name: {seed: numbered(run) for seed, run in runs.items()} for name, runs in scores.items()}


def _weighted(aligned: Aligned, name: str) -> Float64[np.ndarray, "seed item"]:
  """Scores whose plain mean is the mean over tasks, each task counting the same however many items it has.

  Weights are of deviations from that mean, so that what is equal on all items stays equal.
  """
  tasks = [task for task, _ in aligned.items]
  counts = {task: tasks.count(task) for task in set(tasks)}
  weights = np.array([len(tasks) / (len(counts) * counts[task]) for task in tasks])
  scores = aligned.arms[name]
  mean = (weights * scores).mean(1, keepdims=True)
  return mean + weights * (scores - mean)


def _nearest(rows: Sequence[Row], wanted: Mapping[str, Any]) -> str:
  """The field that no row has as it is asked for, with what rows have there; else how many rows fit each."""
  if not rows:
    return "the run has no results"
  for field, value in wanted.items():
    if not select(rows, {field: value}):
      return f"{field} = {value!r}: " + did_you_mean(str(value), {str(row.get(field)) for row in rows})
  return "every value occurs, but no row has all of them: " + ", ".join(f"{f} = {v!r}" for f, v in wanted.items())
