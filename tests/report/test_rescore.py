"""Scores from predictions files: the same again where nothing has changed, and all that was there is kept."""

import json
import os

import pytest
from made_runs import CATEGORIES, make_run, write_lines

from mtx.errors import UserError
from mtx.report.log import read_results, write_results
from mtx.report.rescore import rescore
from mtx.report.runs import open_runs
from mtx.tasks.metrics import mean_score, scores


@pytest.fixture
def folder(tmp_path):
  return make_run(tmp_path / "run", items=6)


def opened(folder):
  (run,) = open_runs([folder])
  return run


def contents(folder):
  return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(file):
  return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_again_is_the_same(folder):
  """Values and files, byte by byte."""
  before = contents(folder)
  found = rescore(opened(folder))
  assert len(found.changes) == 3 * len(CATEGORIES) and len(found.files) == 1 + 2 * len(CATEGORIES)
  assert not found.notes and not any(change.changed or change.before is None for change in found.changes)
  assert contents(folder) == before


def test_another_metric_is_added(folder):
  """A row a task with the fields of its evaluation, a score an example; all else stays."""
  rows, old = read_results(folder), read(folder / "fewshot" / "MHR" / "lists_1.jsonl")
  found = rescore(opened(folder), ["rouge_l", "macro_f1"])
  assert all(change.before is None for change in found.changes)
  after = read_results(folder)
  assert after[: len(rows)] == rows and len(after) == 3 * len(rows)
  lines = read(folder / "fewshot" / "MHR" / "lists_1.jsonl")
  texts = [line["references"] for line in lines], [line["prediction"] for line in lines]
  items = scores("rouge_l", *texts)
  assert lines == [{**line, "rouge_l": score} for line, score in zip(old, items, strict=True)]
  (row,) = (row for row in rows if (row["method"], row["task"]) == ("MHR", "lists_1"))
  mine = [r for r in after if (r["method"], r["task"]) == ("MHR", "lists_1")]
  new = [{**row, "metric": name, "value": mean_score(name, *texts)} for name in ("rouge_l", "macro_f1")]
  assert mine == [row, *new]
  assert opened(folder).evaluated[0].metrics == ("exact_match", "rouge_l")


def test_a_changed_value_is_seen_and_replaced_in_its_place(folder):
  rows = read_results(folder)
  write_results(folder, [{**rows[3], "value": 55.5}])
  found = rescore(opened(folder))
  (change,) = (change for change in found.changes if change.changed)
  assert (change.before, change.row) == (55.5, rows[3])
  assert read_results(folder) == rows


def test_lost_results_come_back(folder):
  key = lambda row: (row["stage"], row["method"], row["task"])
  rows = read_results(folder)
  (folder / "results.json").unlink()
  rescore(opened(folder))
  found = read_results(folder)
  # Nothing else tells the steps of few-shot training.
  assert sorted(({**row, "step": 100} for row in found), key=key) == sorted(rows, key=key)


def test_predictions_of_another_step_do_not_count(folder):
  rows = read_results(folder)
  wrong = [{**line, "prediction": "?"} for line in read(folder / "route" / "predictions-heldout-100.jsonl")]
  for name in ("heldout-20", "train-100"):
    write_lines(folder / "route" / f"predictions-{name}.jsonl", wrong)
  rescore(opened(folder))
  heldout = [row for row in read_results(folder) if row["split"] == "heldout"]
  assert heldout == rows


def test_a_crash_leaves_what_was_there(folder, monkeypatch):
  before = contents(folder)

  def crash(*paths):
    raise OSError("no space left")

  monkeypatch.setattr(os, "replace", crash)
  with pytest.raises(OSError, match="no space"):
    rescore(opened(folder), ["rouge_l"])
  after = contents(folder)
  assert {path: after[path] for path in before} == before


def test_options_are_enough_for_metrics_of_options(folder):
  """Of the tasks that have them; of the others it is said that they have not."""
  file = folder / "fewshot" / "MHR" / "lists_1.jsonl"
  made = []
  for i, line in enumerate(read(file)):
    options = {"options": [*line["references"], "mistake"], "option_scores": [-1.0 - i % 2, -1.5]}
    made.append(line | options)
  write_lines(file, made)
  found = rescore(opened(folder), ["accuracy"])
  assert [(c.row["method"], c.row["task"], c.row["value"]) for c in found.changes] == [("MHR", "lists_1", 50.0)]
  assert [line["accuracy"] for line in read(file)] == [100.0, 0.0] * 3
  (note,) = found.notes
  assert note.startswith("accuracy: not of 17 of 18 tasks evaluated. metric 'accuracy' can not score task 'lists_0'")


BAD = [
  ({"options": "ab"}, "'options' is no list of texts"),
  ({"options": ["a", 1]}, "'options' is no list of texts"),
  ({"options": ["a", "b"], "option_scores": [1]}, "'option_scores' is no list of a number an option"),
  ({"options": ["a"], "option_scores": ["x"]}, "'option_scores' is no list of a number an option"),
  ({"references": None}, "'references' is no list of texts"),
]


@pytest.mark.parametrize(("fields", "said"), BAD)
def test_a_damaged_line_is_named_and_nothing_is_written(folder, fields, said):
  file = folder / "fewshot" / "MHR-z" / "strings_2.jsonl"
  lines = read(file)
  lines[2] |= fields
  write_lines(file, lines)
  before = contents(folder)
  with pytest.raises(UserError) as error:
    rescore(opened(folder), ["rouge_l"])
  assert f"{file}:3 is no prediction: {said}" in error.value.message
  assert contents(folder) == before


def test_a_run_without_predictions_has_nothing_to_score(tmp_path):
  folder = make_run(tmp_path / "run", finished=False)
  with pytest.raises(UserError, match="has no predictions to score"):
    rescore(opened(folder))
