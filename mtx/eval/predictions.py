"""Predictions files: one JSON object a line and item, with what was asked, answered and scored."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtx.errors import UserError

Item = tuple[str, str]  # task, id
TEXTS = ("task", "id", "prediction")


@dataclass(frozen=True)
class Answer:
  """Attributes:
  inputs: None where the file does not have them.
  scores: metric -> score in [0, 100], in the order of the file: the first is the task's main one.
  """

  prediction: str
  references: tuple[str, ...]
  inputs: str | None
  scores: Mapping[str, float]


def read_predictions(path: Path) -> dict[Item, Answer]:
  """The items of a predictions file, in its order.

  Raises:
    UserError: a line that is not such an object, or an item that is there twice; names the line.
  """
  answers: dict[Item, Answer] = {}
  hint = "delete the file and evaluate again, or restore it"
  try:
    lines = path.read_bytes().split(b"\n")
  except OSError as error:
    raise UserError(f"{path} can not be read: {error.strerror}.") from error
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    place = f"{path}:{number}"
    try:
      fields = json.loads(line.decode("utf-8"))
    except ValueError as error:
      raise UserError(f"{place} is not JSON: {error}", hint=hint) from error
    item, answer = _answer(fields, place, hint)
    if item in answers:
      raise UserError(f"{place}: item {'/'.join(item)} is there a second time.", hint=hint)
    answers[item] = answer
  return answers


def _answer(fields: Any, place: str, hint: str) -> tuple[Item, Answer]:
  if not isinstance(fields, dict):
    raise UserError(f"{place} is no JSON object.", hint=hint)
  for name in TEXTS:
    if not isinstance(fields.get(name), str):
      what = f"{name!r} is {fields[name]!r}, not text" if name in fields else f"there is no {name!r}"
      raise UserError(f"{place} is no prediction: {what}.", hint=hint)
  references, inputs = fields.get("references"), fields.get("inputs")
  if not isinstance(references, list) or not all(isinstance(each, str) for each in references):
    raise UserError(f"{place} is no prediction: 'references' is no list of texts.", hint=hint)
  rest = {name: value for name, value in fields.items() if name not in (*TEXTS, "references", "inputs")}
  scores = {name: float(v) for name, v in rest.items() if isinstance(v, (int, float))}
  answer = Answer(fields["prediction"], tuple(references), inputs if isinstance(inputs, str) else None, scores)
  return (fields["task"], fields["id"]), answer
