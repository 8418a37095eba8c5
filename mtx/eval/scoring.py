"""Lines of a predictions file to scores: the one way, for answers that were just given and for those on disk."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtx.atomic import write
from mtx.errors import UserError
from mtx.tasks.answers import Answers
from mtx.tasks.metrics import Score, evaluate, find, lacking

Line = Mapping[str, Any]
# Of a line; its other fields are scores. `options` where an example has them, `option_scores` where they were ranked.
FIELDS = ("task", "id", "inputs", "prediction", "references", "options", "option_scores")


def score_lines(lines: Sequence[Line], metrics: Sequence[str]) -> dict[str, Score]:
  """Scores the answers of one task by each of its metrics.

  Raises:
    UserError: an unknown metric, or one that an example has not what it needs for; task and example are named.
  """
  answers = Answers.of(lines)
  found: dict[str, Score] = {}
  for metric in metrics:
    check(metric, lines, answers)
    found[metric] = evaluate(metric, answers)
  return found


def check(metric: str, lines: Sequence[Line], answers: Answers) -> None:
  """Raises UserError, with task and example, where a metric can not score the lines."""
  if reason := lacking(metric, answers):
    place = lines[reason[0]]
    hint = ""
    if find(metric).chooses:
      hint = "such metrics are of tasks whose rows have `options`, one of them the target; `mtx.tasks.task` says more"
      if place.get("options") and not place.get("option_scores"):
        hint = f"options are ranked where the task's metrics need it: add {metric!r} to them, or to evaluation.metrics"
    raise UserError(
      f"metric {metric!r} can not score task {place['task']!r}, example {place['id']!r}: {reason[1]}.", hint=hint
    )


def check_examples(task: str, examples: Sequence[Line], metrics: Sequence[str]) -> None:
  """The same, of a task's examples that are not answered yet; their options will be ranked."""
  lines = [{"task": task, "id": example["id"]} for example in examples]
  for metric in metrics:
    check(metric, lines, _as_if_ranked(examples))


def fits(examples: Sequence[Line], metric: str) -> bool:
  """Whether examples that are not answered yet have what a metric needs."""
  return lacking(metric, _as_if_ranked(examples)) is None


def _as_if_ranked(examples: Sequence[Line]) -> Answers:
  options = [example.get("options", ()) for example in examples]
  scores = [[0.0] * len(each) for each in options]
  return Answers([example["references"] for example in examples], [""] * len(examples), options, scores)


def with_scores(lines: Sequence[Line], found: Mapping[str, Score]) -> list[dict[str, Any]]:
  """Lines with the scores that examples have, in place of older ones by the same metrics; NaN is left out."""
  made = []
  for i, line in enumerate(lines):
    scores = {metric: score.items[i] for metric, score in found.items() if score.items is not None}
    old = {field: value for field, value in line.items() if field not in found or field in scores}
    made.append({field: v for field, v in (old | scores).items() if not (isinstance(v, float) and math.isnan(v))})
  return made


def write_lines(path: Path, lines: Sequence[Line]) -> None:
  """Writes a predictions file."""
  write(path, "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines))
