"""What a run answered, item by item, and what is said of a file that is damaged."""

import json

import pytest

from mtx.errors import UserError
from mtx.report.log import read_results
from mtx.report.predictions import find_evaluated, read_predictions

GOOD = {"task": "t", "id": "1", "prediction": "x", "references": ["y"], "inputs": "?", "f1": 50.0, "exact_match": 0}


def test_lines_become_answers_and_the_first_metric_leads(tmp_path):
  file = tmp_path / "p.jsonl"
  file.write_text(json.dumps(GOOD) + "\n\n" + json.dumps({**GOOD, "id": "2", "inputs": None}) + "\n")
  first, second = read_predictions(file).values()
  assert (first.prediction, first.references, first.inputs) == ("x", ("y",), "?")
  assert list(first.scores.items()) == [("f1", 50.0), ("exact_match", 0.0)]
  assert second.inputs is None


@pytest.mark.parametrize(
  "line, said",
  [
    ('{"task": "t", "id": "1", "predic', "is not JSON"),
    (b"\xff\xfe", "is not JSON"),
    ("[1, 2]", "no JSON object"),
    ({k: v for k, v in GOOD.items() if k != "prediction"}, "there is no 'prediction'"),
    (GOOD | {"id": 7}, "'id' is 7, not text"),
    (GOOD | {"references": "y"}, "'references' is no list of texts"),
    (GOOD | {"id": "0"}, "item t/0 is there a second time"),
  ],
)
def test_a_damaged_line_is_named(tmp_path, line, said):
  file = tmp_path / "p.jsonl"
  bad = line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
  file.write_bytes(json.dumps(GOOD | {"id": "0"}).encode() + b"\n" + bad + b"\n")
  with pytest.raises(UserError) as error:
    read_predictions(file)
  assert f"{file}:2" in error.value.message and said in error.value.message


def test_of_a_stage_the_last_evaluation_counts(make_run, tmp_path):
  folder = make_run(tmp_path / "run")
  last = folder / "route" / "predictions-heldout-100.jsonl"
  (folder / "route" / "predictions-heldout-20.jsonl").write_text("not read\n")
  found = find_evaluated(folder, read_results(folder))
  assert [(e.stage, e.method, e.split, e.step) for e in found] == [
    ("route", "zero-shot", "heldout", 100),
    ("fewshot", "MHR-z", "heldout", 100),
    ("fewshot", "MHR", "heldout", 100),
  ]
  assert found[0].files == (last,) and len(found[1].files) == 6
  assert len(found[1].answers) == 120 and found[1].metrics == ("exact_match",)


def test_what_a_stage_starts_from_is_a_method_of_its_own(make_run, tmp_path):
  folder = make_run(tmp_path / "run")
  before = folder / "route" / "predictions-heldout-0.jsonl"
  before.write_text((folder / "route" / "predictions-heldout-100.jsonl").read_text())
  rows = read_results(folder)
  rows += [{**row, "method": "untrained", "step": 0} for row in rows if row["method"] == "zero-shot"]
  found = find_evaluated(folder, rows)
  last = found[-1]
  assert (last.stage, last.method, last.step, last.files) == ("route", "untrained", 0, (before,)) and len(found) == 4
