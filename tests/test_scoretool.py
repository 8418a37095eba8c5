"""`mtx score` from end to end."""

import json

import pytest
from made_runs import make_run

from mtx.report.log import read_results
from mtx.run import main


@pytest.fixture
def run(tmp_path, monkeypatch):
  monkeypatch.setenv("COLUMNS", "120")
  return make_run(tmp_path / "one", items=5)


def said(capsys):
  return capsys.readouterr().err.strip()


def test_a_table_says_what_is_new(run, tmp_path, capsys):
  other = make_run(tmp_path / "two", items=5, seed=1)
  assert main(["score", str(run), str(other), "--metrics", "exact_match, macro_f1"]) == 0
  out = capsys.readouterr().out
  rows = [line.split() for line in out.splitlines()]
  assert ["one"] in rows and ["two"] in rows
  mean = sum(row["value"] for row in read_results(run) if row["method"] == "MHR" and row["metric"] == "macro_f1") / 6
  assert ["fewshot", "MHR", "held-out", "tasks", "macro", "F1", "6", "30", f"{mean:.2f}", "new"] in rows
  exact = (
    sum(row["value"] for row in read_results(run) if row["method"] == "MHR" and row["metric"] == "exact_match") / 6
  )
  words = ["fewshot", "MHR", "held-out", "tasks", "exact", "match", "6", "30", f"{exact:.2f}", f"{exact:.2f}"]
  assert words in rows
  assert f"13 predictions files scored; {run / 'results.json'}: 18 new, 0 changed, 18 as before\n" in out
  assert main(["report", str(run), str(other), "--out", str(tmp_path / "page.html")]) == 0


@pytest.mark.parametrize(
  ("words", "expected"),
  [
    (["--metrics", "rougel"], "mtx: metric 'rougel' is not known\n  did you mean `rouge_l`"),
    (["--metrics", ","], "mtx: --metrics names no metric."),
    (["--gin.x=1"], "mtx: argument '--gin.x=1' is not known.\n  `mtx score` reads no gin"),
  ],
)
def test_what_can_not_be_asked(run, capsys, words, expected):
  assert main(["score", str(run), *words]) == 2
  assert said(capsys).startswith(expected)


def test_options_that_are_not_there(run, capsys):
  assert main(["score", str(run), "--metrics", "auroc"]) == 2
  text = said(capsys)
  assert "metric 'auroc' can not score task 'lists_0', example 'lists_0/test/0': it has no options." in text
  assert "such metrics are of tasks whose rows have `options`" in text
  file = run / "fewshot" / "MHR" / "lists_0.jsonl"
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  file.write_text("".join(json.dumps(line | {"options": line["references"]}) + "\n" for line in lines))
  for other in (run / "route").glob("predictions*"):
    other.unlink()
  for other in [*run.glob("fewshot/MHR-z/*"), *(f for f in run.glob("fewshot/MHR/*") if f != file)]:
    other.unlink()
  assert main(["score", str(run), "--metrics", "accuracy"]) == 2
  text = said(capsys)
  assert "its options were not ranked" in text and "evaluation.metrics" in text


def test_a_corrupt_line_is_named(run, capsys):
  file = run / "route" / "predictions-heldout-100.jsonl"
  lines = file.read_text().splitlines()
  file.write_text("\n".join([*lines[:6], lines[6][:30], *lines[7:]]) + "\n")
  before = (run / "results.json").read_bytes()
  assert main(["score", str(run)]) == 2
  assert f"{file}:7 is not JSON" in said(capsys)
  assert (run / "results.json").read_bytes() == before
  assert main(["score", str(run / "route")]) == 2
  assert "is not a run folder" in said(capsys)
