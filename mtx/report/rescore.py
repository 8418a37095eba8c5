"""Scores of a finished run anew, or by other metrics, from its predictions files: nothing is decoded again."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtx.errors import UserError
from mtx.eval.scoring import Line, check, score_lines, with_scores, write_lines
from mtx.report.log import write_results
from mtx.report.predictions import find_evaluated, read_predictions
from mtx.report.runs import Run
from mtx.tasks.answers import Answers
from mtx.tasks.metrics import METRICS, Score, find

Row = Mapping[str, Any]
EVALUATION = ("stage", "method", "split", "step", "seed")


@dataclass(frozen=True)
class Change:
  """Attributes:
  row: of results.json, as it is now.
  before: its value until now; None where it had none.
  """

  row: Row
  before: float | None

  @property
  def changed(self) -> bool:
    return self.before is not None and not math.isclose(self.before, self.row["value"], rel_tol=1e-9, abs_tol=1e-9)


@dataclass(frozen=True)
class Rescored:
  """Attributes:
  changes: a row a task and metric.
  notes: what could not be scored, and why.
  files: predictions files that were read.
  """

  changes: tuple[Change, ...]
  notes: tuple[str, ...]
  files: tuple[Path, ...]


@dataclass
class _Answered:
  """One task of one evaluation: where its lines are, and its rows by metric."""

  file: Path
  task: str
  common: Row
  rows: dict[str, Row] = field(default_factory=dict)


def rescore(run: Run, metrics: Sequence[str] | None = None) -> Rescored:
  """Scores all answers of a run; then results.json has the new rows, predictions files the new scores of examples.

  All is read and scored before anything is written. Rows and scores by other metrics stay as they are, and so does
  what can not be scored.

  Args:
    metrics: None: those that results.json has of a task; where it has none of it, those that its predictions have.

  Raises:
    UserError: an unknown metric, a run without predictions, a damaged file (the line is named), or a named metric that
      needs what no task of the run has.
  """
  for metric in metrics or ():
    find(metric)
  files: dict[Path, list[dict[str, Any]]] = {}
  answered = list(_answered(run, files))
  if not answered:
    raise UserError(
      f"{run.folder} has no predictions to score.", hint="whole evaluations leave some: STAGE/predictions-*.jsonl"
    )
  changes: list[Change] = []
  notes: list[str] = []
  refused: dict[str, list[str]] = {}
  for each in answered:
    lines = [line for line in files[each.file] if line["task"] == each.task]
    names = list(metrics if metrics is not None else each.rows or _scored(lines))
    for name in names if metrics is not None else ():
      if refusal := _refusal(name, lines):
        refused.setdefault(name, []).append(refusal.text)
    found = score_lines(lines, [name for name in names if metrics is None or not _refusal(name, lines)])
    scored = iter(with_scores(lines, found))
    files[each.file] = [next(scored) if line["task"] == each.task else line for line in files[each.file]]
    for name, score in found.items():
      if math.isnan(score.value):
        notes.append(f"{each.task}: {name} is undefined for its examples")
      else:
        changes.append(_change(run, each, name, score, len(lines)))
  for name, texts in refused.items():
    if len(texts) == len(answered):
      raise UserError(texts[0])
    notes.append(f"{name}: not of {len(texts)} of {len(answered)} tasks evaluated. {texts[0].splitlines()[0]}")
  for file, lines in files.items():
    write_lines(file, lines)
  write_results(run.folder, [change.row for change in changes])
  return Rescored(tuple(changes), tuple(notes), tuple(files))


def _answered(run: Run, files: dict[Path, list[dict[str, Any]]]) -> Iterator[_Answered]:
  """Every task of every evaluation that rows tell of and predictions are there for; then predictions without rows.

  `files` is filled with their lines.
  """
  found: dict[tuple, _Answered] = {}
  for row in run.rows:
    key = (*(row[name] for name in EVALUATION), row["task"])
    if row["metric"] in METRICS and key not in found:
      file = next((f for f in _files(run.folder, row) if row["task"] in _tasks(f, files)), None)
      if file is None:
        continue
      found[key] = _Answered(file, row["task"], {name: row[name] for name in EVALUATION})
    if key in found and row["metric"] in METRICS:
      found[key].rows[row["metric"]] = row
  yield from found.values()
  seen = {(each.file, each.task) for each in found.values()}
  for evaluated in find_evaluated(run.folder, run.rows):
    split = evaluated.split if evaluated.split == "train" else "heldout"
    values = (evaluated.stage, evaluated.method, split, evaluated.step, run.seed)
    for file in evaluated.files:
      for task in _tasks(file, files):
        if (file, task) not in seen:
          yield _Answered(file, task, dict(zip(EVALUATION, values, strict=True)))


def _files(folder: Path, row: Row) -> Iterator[Path]:
  """Where the predictions of a row may lie."""
  stage = folder / str(row["stage"])
  yield stage / str(row["method"]) / f"{row['task']}.jsonl"
  for file in sorted(stage.glob(f"predictions-*-{row['step']}.jsonl")):
    if (file.name == f"predictions-train-{row['step']}.jsonl") == (row["split"] == "train"):
      yield file


def _tasks(file: Path, files: dict[Path, list[dict[str, Any]]]) -> dict[str, None]:
  """Tasks of a predictions file, in order."""
  if file not in files and file.is_file():
    files[file] = read_lines(file)
  return dict.fromkeys(line["task"] for line in files.get(file, ()))


def read_lines(file: Path) -> list[dict[str, Any]]:
  """All fields of all lines.

  Raises:
    UserError: a line that is no prediction, or whose options and their scores do not fit; file and line are named.
  """
  read_predictions(file)  # names what is damaged
  lines = []
  for number, text in enumerate(file.read_bytes().split(b"\n"), 1):
    if not text.strip():
      continue
    line = json.loads(text)
    options, scores = line.get("options", []), line.get("option_scores", [])
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
      raise UserError(f"{file}:{number} is no prediction: 'options' is no list of texts.")
    numbers = isinstance(scores, list) and all(isinstance(score, (int, float)) for score in scores)
    if not numbers or len(scores) not in (0, len(options)):
      raise UserError(f"{file}:{number} is no prediction: 'option_scores' is no list of a number an option.")
    lines.append(line)
  return lines


def _scored(lines: Sequence[Line]) -> list[str]:
  """Metrics by which the lines were scored."""
  return [name for name in dict.fromkeys(name for line in lines for name in line) if name in METRICS]


def _refusal(metric: str, lines: Sequence[Line]) -> UserError | None:
  try:
    check(metric, lines, Answers.of(lines))
  except UserError as error:
    return error
  return None


def _change(run: Run, answered: _Answered, metric: str, score: Score, count: int) -> Change:
  category = run.categories.get(answered.task, "")
  known = answered.rows.get(metric)
  of_task = next(iter(answered.rows.values()), {"task": answered.task, "category": category})
  row = {**(known or of_task), **answered.common, "metric": metric, "value": score.value, "count": count}
  return Change(row, None if known is None else float(known["value"]))
