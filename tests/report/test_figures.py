"""Figures draw the numbers they were given, in the order they say."""

import re
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import QuadMesh

from mtx.report.figures import (
  exact_match_bars,
  inline_svg,
  learning_curves,
  routing_heat_map,
  save,
  series,
  task_order,
)

TASKS = tuple(f"{category}_{i}" for i in range(6) for category in ("lists", "strings", "lookups"))
CATEGORIES = {task: task.split("_")[0] for task in TASKS}


def routes(*shape, seed=0):
  return np.random.default_rng(seed).dirichlet(np.ones(shape[-1]) * 0.3, size=shape[:-1]).astype(np.float32)


def meshes(figure):
  return [c for axis in figure.axes for c in axis.collections if isinstance(c, QuadMesh) and c.get_array().ndim == 2]


def heat_maps(figure):
  return [mesh for mesh in meshes(figure) if mesh.axes.get_xlabel().startswith("skill")]


@pytest.mark.parametrize("splits", [None, 4])
def test_rows_of_the_heat_map_are_the_named_tasks(splits):
  weights = routes(len(TASKS), *([splits] if splits else []), 8)
  figure = routing_heat_map(weights, TASKS, CATEGORIES)
  panels = heat_maps(figure)
  labels = [label.get_text() for label in panels[0].axes.get_yticklabels()]
  assert len(panels) == (splits or 1) and sorted(labels) == sorted(TASKS)
  for split, panel in enumerate(panels):
    expected = [weights.reshape(len(TASKS), -1, 8)[TASKS.index(name), split] for name in labels]
    np.testing.assert_array_equal(panel.get_array(), expected)
  assert panels[0].axes.yaxis_inverted()  # the first row on top


def test_tasks_stand_by_category_then_by_the_skill_they_use_most():
  weights = routes(len(TASKS), 8)
  order = task_order(weights, TASKS, CATEGORIES)
  assert sorted(order) == list(range(len(TASKS)))
  groups = [CATEGORIES[TASKS[i]] for i in order]
  assert groups == sorted(groups, key=("lists", "strings", "lookups").index)
  for category in set(groups):
    mains = [weights[i].argmax() for i in order if CATEGORIES[TASKS[i]] == category]
    assert mains == sorted(mains)


def test_the_order_of_tasks_does_not_change_the_map_of_a_category():
  weights, shuffled = routes(len(TASKS), 8), np.random.default_rng(1).permutation(len(TASKS))
  names = [TASKS[i] for i in task_order(weights, TASKS, CATEGORIES)]
  moved = [TASKS[i] for i in shuffled]
  renamed = [moved[i] for i in task_order(weights[shuffled], moved, CATEGORIES)]
  for category in ("lists", "strings", "lookups"):
    assert [n for n in names if CATEGORIES[n] == category] == [n for n in renamed if CATEGORIES[n] == category]


@pytest.mark.parametrize(("count", "named"), [(60, True), (61, False), (400, False)])
def test_up_to_sixty_tasks_have_legible_names(count, named):
  tasks = [f"task{i}" for i in range(count)]
  figure = routing_heat_map(routes(count, 8), tasks, {task: "all" for task in tasks})
  (panel,) = heat_maps(figure)
  labels = [label for label in panel.axes.get_yticklabels() if label.get_text()]
  assert len(labels) == (count if named else 0)
  if named:
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in labels]
    assert all(a.y0 >= b.y1 - 0.5 for a, b in pairwise(boxes))
  assert max(figure.get_size_inches()) < 14


def test_names_that_do_not_fit_the_weights_are_refused():
  with pytest.raises(ValueError, match=r"\(3, 8\).* 18 tasks"):
    routing_heat_map(routes(3, 8), TASKS, CATEGORIES)


def metric_lines():
  return [
    {"stage": stage, "step": step, "time": 0.0, "loss": 3 / step}
    | ({"eval/loss": 4 / step, "eval/exact_match": 60.0 + step / 10} if step % 50 == 0 else {})
    for stage in ("pretrain", "mhr", "fewshot")
    for step in range(1, 201)
  ]


def test_curves_go_through_every_logged_point():
  figure = learning_curves(metric_lines())
  titles = [axis.get_title(loc="left") for axis in figure.axes]
  assert titles[:3] == ["pretrain", "mhr", "fewshot"]
  raw, _, evaluation = figure.axes[1].lines
  np.testing.assert_allclose(raw.get_xydata(), np.array(series(metric_lines(), "mhr", "loss")).T)
  np.testing.assert_allclose(evaluation.get_xydata(), [(s, 4 / s) for s in (50, 100, 150, 200)])
  (score,) = figure.axes[4].lines
  np.testing.assert_allclose(score.get_ydata(), [65, 70, 75, 80])


def test_smoothing_keeps_a_straight_line_straight():
  lines = [{"stage": "mhr", "step": s, "time": 0.0, "loss": 5 - s / 100} for s in range(200)]
  raw, smooth = learning_curves(lines).axes[0].lines
  np.testing.assert_allclose(raw.get_ydata()[4:-4], smooth.get_ydata()[4:-4], rtol=1e-6)


@pytest.mark.parametrize("values", [[], [1.0], [float("nan")] * 3, [1.0, float("inf"), float("nan")] * 30])
def test_a_run_that_went_wrong_can_be_drawn(values):
  lines = [{"stage": "mhr", "step": i, "time": 0.0, "loss": x} for i, x in enumerate(values)]
  assert inline_svg(learning_curves(lines), "curves", label="curves").startswith("<svg")


def result_rows():
  return [
    dict(stage="fewshot", method=m, task=t, category=CATEGORIES[t], split=s, metric="exact_match")
    | dict(value=10.0 * i + seed, count=8, step=1, seed=seed)
    for s in ("train", "heldout")
    for i, m in enumerate(("zero-shot", "MHR-z", "MHR"))
    for t in TASKS[:6]
    for seed in (0, 2)
  ]


def test_bars_are_as_long_as_the_means():
  figure = exact_match_bars(result_rows())
  train, heldout = figure.axes
  assert [label.get_text() for label in train.get_yticklabels()][-1] == "mean of all tasks"
  for i, bars in enumerate(heldout.containers[::2]):
    np.testing.assert_allclose([bar.get_width() for bar in bars], 10.0 * i + 1)
  assert len(exact_match_bars(result_rows(), split="heldout").axes) == 1
  assert exact_match_bars([]).axes == []


def test_equal_figures_give_equal_files_and_leave_the_style_alone(tmp_path):
  before = dict(matplotlib.rcParams)
  for name in ("a", "b"):
    for suffix in ("svg", "png"):
      path = save(routing_heat_map(routes(len(TASKS), 8), TASKS, CATEGORIES), tmp_path / f"{name}.{suffix}")
      assert path.stat().st_size > 1000
  for suffix in ("svg", "png"):
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
  assert dict(matplotlib.rcParams) == before


def test_inline_drawings_can_share_a_page():
  svgs = [inline_svg(exact_match_bars(result_rows()), name, label='a "b" <c>') for name in ("one", "two")]
  ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in svgs]
  assert not set(ids[0]) & set(ids[1])
  for svg, own in zip(svgs, ids, strict=True):
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)
    assert used and {a or b for a, b in used} <= set(own)
    assert 'aria-label="a &quot;b&quot; &lt;c&gt;"' in svg
    assert "http" not in svg and "var(--ink)" in svg and "#24292f" not in svg


def test_dollars_in_names_are_dollars():
  svg = inline_svg(routing_heat_map(routes(1, 8), ["a$x^2$"], {"a$x^2$": "c"}), "routing", label="")
  assert "a$x^2$" in svg


def test_names_of_narrow_categories_do_not_overlap():
  tasks = [f"task{i}" for i in range(300)]
  categories = {task: f"category{min(i, 40)}" for i, task in enumerate(tasks)}  # forty of one task each
  (panel,) = heat_maps(routing_heat_map(routes(300, 8), tasks, categories))
  assert [text.get_text() for text in panel.axes.texts] == ["category40"]
