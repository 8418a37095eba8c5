"""Means in tables are the means of the rows, whatever their order."""

import numpy as np
import pytest

from mtx.report.table import ParameterGroup, result_table, tabulate, to_text, trainable_table

CATEGORIES = {
  "sort": "lists",
  "reverse": "lists",
  "upper": "strings",
  "lower": "strings",
  "two_hop": "lookups",
}
METHODS = ("zero-shot", "MHR-z", "MHR", "MHR-mu")


def result(task, method, seed, value, **fields):
  plain = dict(stage="fewshot", method=method, task=task, category=CATEGORIES.get(task, "lists"), split="heldout")
  return plain | dict(metric="exact_match", value=value, count=64, step=100, seed=seed) | fields


@pytest.fixture
def rows():
  generator = np.random.default_rng(0)
  return [
    result(task, method, seed, float(generator.uniform(0, 100)))
    for seed in range(3)
    for method in METHODS
    for task in CATEGORIES
  ]


def values(rows, method, tasks):
  """[seeds, tasks]"""
  return np.array(
    [
      [r["value"] for t in tasks for r in rows if (r["method"], r["task"], r["seed"]) == (method, t, seed)]
      for seed in range(3)
    ]
  )


@pytest.mark.parametrize("metric", ["exact_match", "ece"])
def test_the_best_is_the_lowest_where_less_is_better(rows, metric):
  (scores,) = tabulate([row | {"metric": metric} for row in rows])
  for line in scores.lines:
    means = [round(cell.mean, 1) for cell in line.cells]
    assert line.best == (min(means) if metric == "ece" else max(means))


@pytest.mark.parametrize("spread", ["half-range", "std"])
def test_means_and_spreads_equal_numpy(rows, spread):
  np.random.default_rng(1).shuffle(rows)
  (scores,) = tabulate(rows, methods=METHODS, spread=spread)
  assert scores.methods == METHODS
  for line in scores.lines:
    tasks = {
      "task": [line.name],
      "category": [t for t, c in CATEGORIES.items() if c == line.category],
      "overall": list(CATEGORIES),
    }[line.kind]
    assert line.count == (64 if line.kind == "task" else len(tasks))
    for method, cell in zip(METHODS, line.cells, strict=True):
      by_seed = values(rows, method, tasks).mean(1)
      expected = by_seed.std(ddof=1) if spread == "std" else (by_seed.max() - by_seed.min()) / 2
      np.testing.assert_allclose([cell.mean, cell.spread], [by_seed.mean(), expected])


def test_lines_go_by_category_and_end_with_the_mean_of_all(rows):
  (scores,) = tabulate(rows)
  assert [(line.kind, line.name) for line in scores.lines] == [
    ("category", "lists"),
    ("task", "sort"),
    ("task", "reverse"),
    ("category", "strings"),
    ("task", "upper"),
    ("task", "lower"),
    ("category", "lookups"),
    ("task", "two_hop"),
    ("overall", "mean of all tasks"),
  ]


def test_splits_and_metrics_have_tables_of_their_own_with_only_their_methods():
  rows = [
    result("sort", "MHR", 0, 50.0),
    result("sort", "MHR", 0, 60.0, metric="rouge_l"),
    result("sort", "pretrained", 0, 90.0, split="train"),
  ]
  tables = tabulate(rows)
  assert [(t.split, t.metric, t.methods) for t in tables] == [
    ("train", "exact_match", ("pretrained",)),
    ("heldout", "exact_match", ("MHR",)),
    ("heldout", "rouge_l", ("MHR",)),
  ]
  assert [t.metric for t in tabulate(rows, metrics=["rouge_l"])] == ["rouge_l"]


def test_a_method_of_two_stages_has_two_columns():
  rows = [result("sort", "full", 0, 1.0, stage="pretrain"), result("sort", "full", 0, 2.0, stage="finetune")]
  (scores,) = tabulate(rows)
  assert scores.methods == ("pretrain: full", "finetune: full")


def test_the_later_of_two_rows_counts():
  (scores,) = tabulate([result("sort", "MHR", 0, 1.0, step=100), result("sort", "MHR", 0, 2.0, step=200)])
  assert scores.overall.cells[0].mean == 2.0


def test_a_mean_over_some_of_the_tasks_says_so():
  rows = [result("sort", "MHR", 0, 10.0), result("upper", "MHR", 0, 30.0), result("sort", "MHR-z", 0, 50.0)]
  (scores,) = tabulate(rows)
  assert [(cell.mean, cell.complete) for cell in scores.overall.cells] == [(20.0, True), (50.0, False)]
  text = to_text(result_table(rows))
  assert "50.0*" in text and "* mean over the tasks that were evaluated" in " ".join(text.split())


def test_text_holds_every_name_and_value_in_its_width(rows):
  text = to_text(result_table(rows, methods=METHODS), width=90)
  assert all(len(line) <= 90 for line in text.splitlines())
  assert "\x1b" not in text and text.endswith("\n") and text == "\n".join(map(str.rstrip, text.split("\n")))
  (scores,) = tabulate(rows, methods=METHODS)
  for line in scores.lines:
    (shown,) = [
      shown
      for shown in text.splitlines()
      if shown.split("  ")[0] == line.name or shown.strip().startswith(line.name + "  ")
    ]
    assert all(str(cell) in shown for cell in line.cells)


def test_a_narrow_table_folds_names_but_keeps_numbers():
  name = "task1344_glue_entailment_classification_with_a_long_name"
  text = to_text(result_table([result(name, "MHR", 0, 12.3), result(name, "MHR-z", 0, 45.6)]), width=40)
  assert "12.3" in text and "45.6" in text and all(len(line) <= 40 for line in text.splitlines())


def test_many_tasks_are_shown_by_category():
  rows = [result(f"task{i}", "MHR", 0, float(i), category=f"category{i % 4}", metric="rouge_l") for i in range(61)]
  text = to_text(result_table(rows))
  assert "task17" not in text and "ROUGE-L" in text and "61 tasks" in text
  for c in range(4):
    (line,) = [line for line in text.splitlines() if f"category{c}" in line]
    assert line.split()[1:] == [str(len(range(c, 61, 4))), f"{np.mean(range(c, 61, 4)):.1f}"]
  assert "task17" in to_text(result_table(rows, max_tasks=61))


def test_brackets_in_names_are_not_markup():
  text = to_text(result_table([result("[bold]sort", "MHR [3 seeds]", 0, 1.0)]))
  assert "[bold]sort" in text and "MHR [3 seeds]" in text


def test_trainable_parameters_add_up():
  groups = [
    ParameterGroup("adapter/.*/(a|b)", 294_912, 1e-3),
    ParameterGroup("adapter/.*/router", 768, "0.1, cosine"),
  ]
  text = to_text(trainable_table(groups, frozen=6_412_288))
  lines = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
  assert lines["adapter/.*/(a|b)"] == ["adapter/.*/(a|b)", "294,912", "4.4%", "0.001"]
  assert lines["trainable"] == ["trainable", "295,680", "4.41%"]
  assert lines["frozen"] == ["frozen", "6,412,288", "95.6%", "0"]
