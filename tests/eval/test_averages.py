"""Averages: a median over prompts first, then every task of a category and every category of a benchmark alike."""

import pytest

from mtx.eval.averages import MEDIAN, averages, leading, medians


def row(task, value, *, category="c", prompt="plain", count=10, benchmark="", **more):
  given = {"task": task, "dataset": task, "value": value, "category": category, "prompt": prompt, "count": count}
  rest = {"benchmark": benchmark, "metric": "exact_match", "shots": 0, "selector": "none", "seed": 0}
  return given | rest | more


def test_levels_of_averaging():
  """Categories count alike in macro, items in micro."""
  rows = [row("a", 10), row("b", 20), row("d", 90, category="e", count=80)]
  found = averages(rows)
  assert found.categories == {("", "c"): 15, ("", "e"): 90}
  assert found.macro == pytest.approx((15 + 90) / 2)
  assert found.micro == pytest.approx((10 * 10 + 20 * 10 + 90 * 80) / 100)


def test_benchmarks_count_alike_however_many_categories_they_have():
  rows = [row("a", 0, benchmark="x"), row("b", 50, category="d", benchmark="x"), row("e", 100, benchmark="y")]
  found = averages(rows)
  assert found.benchmarks == {"x": 25, "y": 100} and found.macro == 62.5


def test_the_median_over_prompts_comes_first():
  """One bad prompt of three changes nothing, whatever it scores."""
  for worst in (0, 39):
    prompts = {"p": worst, "q": 40, "r": 70}
    found = averages([row("a", value, prompt=name) for name, value in prompts.items()])
    assert found.tasks == {"a": 40} and found.macro == found.micro == 40


def test_a_prompt_adds_no_items():
  rows = [row("a", 30, prompt=p, count=5) for p in "pq"] + [row("b", 60, count=10)]
  assert averages(rows).micro == pytest.approx((30 * 5 + 60 * 10) / 15)


def test_two_rows_of_one_prompt_are_no_average():
  with pytest.raises(ValueError, match="two rows of one prompt"):
    averages([row("a", 1), row("a", 2)])
  with pytest.raises(ValueError, match="no rows"):
    averages([])


def test_the_main_metric_stands_first():
  rows = [row("a", 1), row("a", 9, metric="chrf"), row("b", 7, metric="chrf"), row("a", 1, prompt=MEDIAN)]
  assert [(r["task"], r["metric"]) for r in leading(rows)] == [("a", "exact_match"), ("b", "chrf")]


def test_medians_of_data_sets_with_several_prompts():
  """Prompts of the grid and prompts that are tasks of their own; cells and seeds stay apart."""
  rows = [row("a", value, prompt=p, seed=seed) for seed in (0, 1) for p, value in (("p", 10 + seed), ("q", 20))]
  rows += [row(f"b_{p}", value, prompt=p, dataset="b") for p, value in (("x", 1), ("y", 2), ("z", 9))]
  rows += [row("alone", 5)]
  found = medians(rows)
  assert {(r["task"], r["prompt"], r["seed"], r["value"]) for r in found} == {
    ("a", MEDIAN, 0, 15.0),
    ("a", MEDIAN, 1, 15.5),
    ("b", MEDIAN, 0, 2),
  }
  assert medians(rows + found) == found
