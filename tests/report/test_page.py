"""One page holds all of a run and needs nothing else."""

import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mtx.analysis.gradients import METRIC, remember
from mtx.errors import UserError
from mtx.report.log import read_results, write_results
from mtx.report.page import write_page
from mtx.report.record import write_record
from mtx.report.runs import open_runs
from mtx.report.table import tabulate

VOID = {"meta", "br", "hr", "link", "img", "input"}


class Balance(HTMLParser):
  """Open tags; raises where a closing tag does not match."""

  def __init__(self):
    super().__init__()
    self.open = []

  def handle_starttag(self, tag, attrs):
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"


def page_of(*folders):
  """The page, and the notes on what it lacks."""
  path, notes = write_page(open_runs(folders), folders[0].parent / "page.html")
  page = path.read_text().replace("<wbr>", "")
  balance = Balance()
  balance.feed(page)
  assert balance.open == []
  ids = re.findall(r'\bid="([^"]+)"', page)
  assert len(ids) == len(set(ids))
  linked = re.findall(r'<a href="#([^"]+)"', page)
  assert linked and set(linked) <= set(ids)
  return page, notes


def text_of(page):
  bare = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.DOTALL)
  return html.unescape(re.sub(r"<[^>]+>", "", bare))


@pytest.fixture(scope="module")
def run(make_run, tmp_path_factory):
  folder = make_run(tmp_path_factory.mktemp("one") / "quickstart")
  write_results(folder, [row | {"seed": 1, "value": row["value"] / 2} for row in read_results(folder)])
  remember(folder / "route" / "gradients.jsonl", 20, list("abc"), np.eye(3))
  remember(folder / "route" / "gradients.jsonl", 40, list("abc"), np.full((3, 3), 0.25))
  return folder


@pytest.fixture(scope="module")
def page(run):
  return page_of(run)[0]


def test_the_page_holds_every_task_and_value(run, page):
  lines = dict(re.findall(r"<tr class=\"(?:task|category|overall)\"[^>]*><td>(.*?)</td>(.*?)</tr>", page, re.DOTALL))
  (scores,) = tabulate(read_results(run))
  assert len(scores.lines) == 9
  for line in scores.lines:
    shown = text_of(lines[line.name])
    assert all(f"{cell.mean:.1f} ±{cell.spread:.1f}" in shown for cell in line.cells)


def test_the_page_says_what_was_run(page):
  text = text_of(page)
  for part in ("pretrain", "route", "0.10.2", "8 x cpu", "12,345", "678,901", "adapter/.*", "'<.*>/(q|v)'", "0123abcd",
               "2 files changed", "feedbeef", "f05", "3.00GB", "data 8", "1 - cosine of routes"):  # fmt: skip
    assert part in text, part
  assert "step 40: mean 0.250 over all pairs" in text


def test_the_page_fetches_nothing(page):
  assert re.findall(r"https?:", page) == []
  targets = re.findall(r'(?:src|href)\s*=\s*["\']?([^"\' >]+)', page)
  assert targets and all(target.startswith(("#", "data:image/png;base64,")) for target in targets)
  assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
  assert not re.search(r"<(link|iframe|img|object|embed)\b|<script [^>]*src|@import|fetch\(|XMLHttpRequest", page)
  assert "default-src 'none'" in page


def test_more_tasks_than_one_reads_are_folded_away_but_there(make_run, tmp_path):
  categories = {f"task{i:03}": f"category{i % 5}" for i in range(80)}
  page, _ = page_of(make_run(tmp_path / "many", categories=categories, items=2, routed=False))
  folded = page[page.index("<summary>All 80 tasks") :]
  assert all(f"<td>{task}</td>" in folded for task in categories)
  assert not any(f"<td>{task}</td>" in page[: -len(folded)] for task in categories)


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
  folder = tmp_path / "young"
  write_record(folder, finished=False, stages=[{"name": "pretrain", "steps": 9}], versions={"jax": "0.10.2"})
  page, notes = page_of(folder)
  assert notes == ["young has not finished: pretrain has not begun"]
  assert notes[0] in text_of(page) and "0.10.2" in page


def test_half_a_run_shows_what_there_is(make_run, tmp_path):
  page, notes = page_of(make_run(tmp_path / "half", finished=False))
  said = ["half has not finished: route is at step 40 of 100", "half has not finished: fewshot has not begun"]
  assert notes == said
  text = text_of(page)
  assert all(line in text for line in said)
  assert "1 - cosine of routes" in text and "learning curves of route" in page
  assert 'id="scores"' not in page and 'id="examples"' not in page


def test_names_and_answers_are_text_never_markup(make_run, tmp_path):
  name = "<script>alert(1)<"
  folder = make_run(tmp_path / name, categories={name: name, "b": name}, gin=name)
  file = folder / "route" / "predictions-heldout-100.jsonl"
  lines = [json.loads(line) | {"inputs": name, "prediction": name} for line in file.read_text().splitlines()]
  file.write_text("".join(json.dumps(line) + "\n" for line in lines))
  page, _ = page_of(folder)
  assert page.count("<script") == 1 and name in text_of(page)


def test_the_best_method_of_several_is_called_that(run, page):
  (scores,) = tabulate(read_results(run))
  best = max(range(3), key=lambda i: scores.overall.cells[i].mean)
  assert f"{scores.methods[best]}, best of 3" in text_of(page)


def test_cosines_are_not_percentages(make_run, tmp_path):
  folder = make_run(tmp_path / "run")
  (row, *_) = read_results(folder)
  write_results(folder, [row | {"metric": METRIC, "value": 0.5, "split": "train"}])
  assert "gradient cosine" not in text_of(page_of(folder)[0])


def test_wrong_answers_stand_before_right_ones_and_every_task_has_its_turn(page):
  articles = re.findall(r"<article([^>]*)>\n<header><b>(.*?)</b>", page)
  wrong = ["data-wrong" in attributes for attributes, _ in articles]
  assert wrong == sorted(wrong, reverse=True) and True in wrong and False in wrong
  first = [task for _, task in articles[:6]]
  assert len(set(first)) == 6
  text = text_of(page[page.index("<article") :])
  assert "Question" in text and "reference" in text and "answer" in text and "mistake" in text


def test_several_runs_stand_side_by_side(make_run, tmp_path):
  a = make_run(tmp_path / "a-0", gin="MHR.rank = 4\nfeed.batch = 32\n")
  b = make_run(tmp_path / "b-0", gin="MHR.rank = 8\nfeed.batch = 32\n", skill=(0.2, 0.5, 1.0))
  page, notes = page_of(a, b)
  assert notes == []
  text = text_of(page)
  assert "MHR.rank" in text and "b-0\n− a-0" in text
  differing = page[page.index("Gin bindings that differ") :]
  assert "feed.batch" not in differing[: differing.index("</table>")]


def test_runs_on_unequal_items_are_refused_by_name(make_run, tmp_path):
  a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", items=21)
  with pytest.raises(UserError, match=r"lists_0/lists_0/test/20") as error:
    page_of(a, b)
  assert "arm `a`" in error.value.text and "arm `b`" in error.value.text


def test_a_run_without_an_evaluation_is_said_to_lack_it(make_run, tmp_path):
  _, notes = page_of(make_run(tmp_path / "a"), make_run(tmp_path / "b", finished=False))
  assert "held-out tasks, MHR: nothing to compare in b" in notes


def test_a_protocol_has_its_averages(make_run, tmp_path):
  """A line a cell and prompt under each level; macro counts categories alike, micro items."""
  folder = make_run(tmp_path / "a")
  page, _ = page_of(folder)
  assert "macro and micro" not in page
  common = {"stage": "protocol", "split": "heldout", "step": 0, "seed": 0, "metric": "exact_match", "level": "task",
            "shots": 2, "selector": "bm25", "benchmark": ""}  # fmt: skip
  write_results(
    folder,
    [
      {**common, "task": task, "dataset": task, "category": category, "count": count, "value": value + shift,
       "prompt": prompt, "method": f"2-shot-bm25-{prompt}"}
      for prompt, shift in (("plain", 0), ("ask", 10))
      for task, category, count, value in (("x", "one", 4, 20.0), ("y", "one", 4, 40.0), ("z", "two", 2, 60.0))
    ],
  )  # fmt: skip
  page, _ = page_of(folder)
  table = page[page.index("macro and micro averages") :]
  text = text_of(table[: table.index("</table>")].replace("</td>", " </td>"))
  assert "held-out tasks of seen categories" in text
  lines = [line.split() for line in text.splitlines() if line.strip()]
  assert ["2", "bm25", "plain", "45.0", "36.0"] in lines and ["ask", "55.0", "46.0"] in lines
  assert ["median", "50.0", "41.0"] in lines
