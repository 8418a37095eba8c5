"""`mtx report` from end to end: one run, several, half of one, and what it says of what is no run."""

import json

import pytest
from made_runs import make_run

from mtx.run import main


@pytest.fixture
def run(tmp_path, monkeypatch):
  monkeypatch.setenv("COLUMNS", "300")
  return make_run(tmp_path / "one")


def said(capsys):
  return capsys.readouterr().err.strip()


def test_one_run_gets_its_page_anew(run, capsys):
  (run / "report.html").write_text("old")
  assert main(["report", str(run)]) == 0
  assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
  page = (run / "report.html").read_text()
  assert "one" in page and page.lstrip().startswith("<!doctype html>")


def test_several_runs_get_a_page_here(run, tmp_path, monkeypatch, capsys):
  other = make_run(tmp_path / "two", finished=False)
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  assert main(["report", str(run), str(other)]) == 0
  out = capsys.readouterr().out
  assert "two has not finished: route is at step 40 of 100\n" in out and "report: report.html\n" in out
  assert "held-out tasks, MHR: nothing to compare in two\n" in out
  assert {path.name for path in (tmp_path / "here").iterdir()} == {"report.html"}
  assert main(["report", str(run), "--out", "new/page.html"]) == 0
  assert (tmp_path / "here" / "new" / "page.html").is_file()


def test_what_is_no_run_is_told_what_was_looked_for(run, tmp_path, capsys):
  files = "run.json, metrics.jsonl, results.json, operative.gin"
  assert main(["report", str(tmp_path / "nothing")]) == 2
  assert said(capsys) == f"mtx: {tmp_path / 'nothing'} is not there.\n  a run has one of: {files}"
  assert main(["report", str(tmp_path)]) == 2
  text = said(capsys)
  assert f"{tmp_path} is not a run folder: it has none of {files}." in text
  assert text.endswith("the folders in it are runs: one")
  assert main(["report", str(run / "run.json")]) == 2
  assert "is a file, not a run folder" in said(capsys)


def test_damage_is_named_by_its_line(run, capsys):
  file = run / "fewshot" / "MHR" / "lists_1.jsonl"
  lines = file.read_text().splitlines()
  file.write_text("\n".join([*lines[:3], lines[3][:40], *lines[4:]]) + "\n")
  assert main(["report", str(run)]) == 2
  assert f"{file}:4 is not JSON" in said(capsys)
  assert not (run / "report.html").exists()
  file.write_text("\n".join(lines) + "\n")
  (run / "route" / "routing.json").write_text('{"tasks": ["a"], "weights": [[[1]], [[1]]], "step": 3}')
  assert main(["report", str(run)]) == 2
  assert "routing.json:1 can not be read" in said(capsys)
  (run / "run.json").write_text("[]")
  assert main(["report", str(run)]) == 2
  assert "run.json is not a JSON object" in said(capsys)


def test_unequal_items_are_named(run, tmp_path, capsys):
  other = make_run(tmp_path / "two", items=19)
  assert main(["report", str(run), str(other)]) == 2
  text = said(capsys)
  assert "`two`" in text and "`one`" in text and "lists_0/lists_0/test/19" in text


@pytest.mark.parametrize(
  "words, expected",
  [
    (["--out", "page.pdf"], "--out page.pdf is no HTML file.\n  --out page.pdf.html"),
    (["--gin.train.seed=1"], "`mtx report` reads no gin"),
    (["RUN"], "is named twice"),
  ],
)
def test_words_that_mean_nothing_are_refused(run, capsys, words, expected):
  assert main(["report", str(run), *[str(run) if word == "RUN" else word for word in words]]) == 2
  assert expected in said(capsys)


def test_old_runs_without_inputs_or_a_record_have_a_page(run):
  (run / "run.json").unlink()
  for file in run.glob("**/*.jsonl"):
    if file.name != "metrics.jsonl":
      lines = [json.loads(line) for line in file.read_text().splitlines()]
      file.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "inputs"}) + "\n" for line in lines))
  assert main(["report", str(run)]) == 0
  page = (run / "report.html").read_text()
  assert "not in the predictions file" in page and "has not finished" not in page
