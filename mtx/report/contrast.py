"""Figures of several runs or methods together: their curves in one panel, their differences with intervals."""

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mtx.report.compare import Compared
from mtx.report.figures import COLOURS, INK, MUTED, STYLE, grid, score_names, series, short, smooth
from mtx.report.runs import Alignment, Run
from mtx.report.similarity import mean_alignment
from mtx.report.table import metric_name, split_name

DASHES = ("-", "--", ":", "-.")  # when there are more runs than colours


def run_curves(runs: Sequence[Run], stage: str) -> Figure:
  """Training loss of each run, evaluation loss, and the first evaluation score of each split that any of them has.

  Args:
    runs: drawn in the order given, those without the stage left out of the panel but not out of the colours.
  """
  lines = [metric for run in runs for metric in run.metrics]
  names = ["loss", *_present(lines, stage, ["eval/loss"]), *score_names(lines, stage)[:2]]
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(4.6, 0.5 + 1.75 * len(names)))
    axes = figure.subplots(len(names), 1, squeeze=False, sharex=True)[:, 0]
    for name, axis in zip(names, axes, strict=True):
      for number, run in enumerate(runs):
        steps, values = series(run.metrics, stage, name)
        if len(values):
          look = {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number // len(COLOURS) % len(DASHES)]}
          marks = {} if name == "loss" else {"marker": "o", "markersize": 3}
          axis.plot(steps, smooth(values), label=run.name, linewidth=1.4, **look, **marks)
      axis.set_ylabel(_label(name), fontsize=8.5)
      grid(axis)
      if any(np.isfinite(line.get_ydata()).any() for line in axis.lines):
        axis.set_ylim(bottom=0)
    axes[0].set_title(stage)
    axes[-1].set_xlabel("step")
    handles, labels = axes[0].get_legend_handles_labels()
    columns = max(1, min(len(labels), 48 // (max(map(len, labels), default=1) + 6)))
    figure.legend(handles, labels, loc="outside lower left", ncols=columns, handlelength=1.6)
  return figure


def _present(lines: Sequence[dict], stage: str, names: Sequence[str]) -> list[str]:
  return [name for name in names if any(name in line for line in lines if line["stage"] == stage)]


def _label(name: str) -> str:
  if name in ("loss", "eval/loss"):
    return {"loss": "training loss", "eval/loss": "evaluation loss"}[name]
  *where, metric = name.removeprefix("eval/").split("/")
  return ",\n".join([metric_name(metric) + " (%)", *map(split_name, where)])


def alignment_curves(found: Mapping[str, Alignment]) -> Figure:
  """Mean cosine over all pairs of tasks at each measurement, a line a run."""
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(4.6, 2.4))
    axis = figure.subplots()
    for number, (name, each) in enumerate(found.items()):
      means = [mean_alignment(cosine, each.tasks, {})[0] for cosine in each.cosine]
      axis.plot(each.steps, means, color=COLOURS[number % len(COLOURS)], marker="o", markersize=3, label=name)
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.set_ylabel("mean cosine")
    axis.set_xlabel("step")
    grid(axis)
    if len(found) > 1:
      axis.legend(loc="best")
  return figure


def forest(compared: Compared) -> Figure:
  """Differences of every pair of arms, the better one first, with intervals over tasks and over items."""
  shown = compared.shown
  pairs = list(shown[0][1].intervals)
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(4.4, 0.95 + (0.2 + 0.16 * len(shown)) * len(pairs)))
    axis = figure.subplots()
    axis.axvline(0, color=INK, linewidth=0.8)
    for number, (over, comparison) in enumerate(shown):
      found = [_interval(comparison, pair) for pair in pairs]
      y = np.arange(len(pairs)) + (number - (len(shown) - 1) / 2) * 0.3
      colour = COLOURS[number]
      for at, (_, low, high) in zip(y, found, strict=True):
        axis.plot([low, high], [at, at], color=colour, linewidth=1.6)
      axis.plot([estimate for estimate, *_ in found], y, "o", color=colour, markersize=4.5, label=f"over {over}")
    axis.set_yticks(range(len(pairs)), [f"{short(a)}\nminus {short(b)}" for a, b in pairs], color=INK, fontsize=8)
    axis.set_ylim(len(pairs) - 0.5, -0.5)
    axis.set_xlabel(f"difference in {metric_name(compared.metric)} (points), 95 % intervals", color=MUTED)
    axis.grid(axis="x")
    axis.spines["left"].set_visible(False)
    if len(shown) > 1:
      axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.1, handlelength=1)
  return figure


def _interval(comparison, pair: tuple[str, str]) -> tuple[float, float, float]:
  """The pair's interval, in this order of the two: tasks and items may rank them differently."""
  if pair in comparison.intervals:
    found = comparison.intervals[pair]
    return found.estimate, found.low, found.high
  found = comparison.intervals[pair[1], pair[0]]
  return -found.estimate, -found.high, -found.low
