"""One page holds all of a run and needs nothing else."""

import html
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from mtx.report.page import write_page
from mtx.report.table import ParameterGroup, tabulate

CATEGORIES = {f"{c}_{i}": c for c in ("lists", "strings") for i in range(4)}
VOID = {"meta", "br", "hr", "link", "img"}


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


def result_rows(categories=CATEGORIES):
  generator = np.random.default_rng(0)
  return [
    dict(stage="fewshot", method=method, task=task, category=category, split="heldout", metric="exact_match")
    | dict(value=float(generator.uniform(0, 100)), count=64, step=100, seed=seed)
    for task, category in categories.items()
    for method in ("zero-shot", "MHR")
    for seed in range(3)
  ]


def metric_lines():
  return [
    {
      "stage": stage,
      "step": step,
      "time": start + step,
      "loss": 3 / step,
      "tokens_per_second": 18_400.0,
      "mfu": 0.3,
    }
    for stage, start in (("pretrain", 0.0), ("mhr", 500.0))
    for step in range(1, 101)
  ]


def write(run_dir, **changes):
  weights = np.random.default_rng(0).dirichlet(np.ones(4), size=(len(CATEGORIES), 2))
  given = dict(
    title="Quickstart",
    rows=result_rows(),
    metrics=metric_lines(),
    routing={"weights": weights, "tasks": list(CATEGORIES), "categories": CATEGORIES},
    config_text="feed.batch = 32\nadapter.pattern = '<.*>/(q|v)'",
    environment={"jax": "0.10.2", "devices": ["cpu:0", "cpu:1"]},
    trainable={"mhr": ([ParameterGroup("adapter/.*", 12_345, 1e-3)], 678_901)},
  )
  path = write_page(run_dir, **given | changes)
  page = path.read_text()
  balance = Balance()
  balance.feed(page)
  assert balance.open == []
  ids = re.findall(r'\bid="([^"]+)"', page)
  assert len(ids) == len(set(ids))
  return page


def text_of(page):
  return html.unescape(re.sub(r"<[^>]+>", "", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)))


def test_the_page_holds_every_task_and_value(tmp_path):
  page = write(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
  lines = dict(re.findall(r"<tr class=\"(?:task|category|overall)\"><td>(.*?)</td>(.*?)</tr>", page, re.DOTALL))
  (scores,) = tabulate(result_rows())
  for line in scores.lines:
    shown = text_of(lines[line.name])
    assert all(f"{cell.mean:.1f} ±{cell.spread:.1f}" in shown for cell in line.cells)
  for part in (
    "pretrain",
    "mhr",
    "0.10.2",
    "cpu:0, cpu:1",
    "12,345",
    "678,901",
    "adapter/.*",
    "'<.*>/(q|v)'",
    "1:39",
  ):
    assert part in text_of(page)
  for task in CATEGORIES:
    assert text_of(page).count(task) == 3  # table, bars, routing


def test_the_page_fetches_nothing(tmp_path):
  page = write(tmp_path)
  assert re.findall(r"https?:", page) == []
  targets = re.findall(r'(?:src|href)\s*=\s*["\']?([^"\' >]+)', page)
  assert targets and all(target.startswith(("#", "data:image/png;base64,")) for target in targets)
  assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
  assert not re.search(r"<(script|link|iframe|img|object|embed)\b|@import", page)


def test_more_tasks_than_one_reads_are_folded_away_but_there(tmp_path):
  categories = {f"task{i:03}": f"category{i % 5}" for i in range(80)}
  page = write(tmp_path, rows=result_rows(categories), routing=None)
  folded = page[page.index("<summary>All 80 tasks") :]
  assert all(f"<td>{task}</td>" in folded for task in categories)
  assert not any(f"<td>{task}</td>" in page[: -len(folded)] for task in categories)


@pytest.mark.parametrize("absent", [("rows",), ("metrics",), ("rows", "metrics")])
def test_a_run_cut_short_still_has_a_page(tmp_path, absent):
  page = write(tmp_path, routing=None, trainable=None, **{name: [] for name in absent})
  assert "Quickstart" in page and "feed.batch = 32" in page


def test_names_are_text_never_markup(tmp_path):
  name = "<script>alert(1)</script>"
  page = write(
    tmp_path,
    title=name,
    rows=result_rows({name: name}),
    config_text=name,
    environment={name: name},
    routing=None,
  )
  assert "<script" not in page and name in text_of(page)


def test_the_best_method_of_several_is_called_that(tmp_path):
  text = text_of(write(tmp_path))
  (scores,) = tabulate(result_rows())
  best = max(range(2), key=lambda i: scores.overall.cells[i].mean)
  assert f"{scores.methods[best]}, best of 2" in text
