"""Figures of a run: learning curves, the task x skill routing map, scores before and after.

They are built on `matplotlib.figure.Figure`, never on pyplot, so making one leaves no state behind and needs
no display. Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart.
"""

import html
import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mtx.analysis.gradients import METRIC
from mtx.report.table import Line, Spread, metric_name, split_name, tabulate

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, FAINT, PAPER = "#24292f", "#6b7480", "#d5dae0", "#ffffff"
# In a page these follow its light or dark theme.
THEME = {INK: "var(--ink)", MUTED: "var(--muted)", FAINT: "var(--faint)", PAPER: "var(--paper)"}
STYLE: dict[Any, Any] = {
  "font.family": "sans-serif",
  "font.size": 9,
  "text.parse_math": False,  # names of tasks may hold a dollar
  "axes.titlesize": 10,
  "axes.titleweight": "bold",
  "axes.titlelocation": "left",
  "axes.labelsize": 9,
  "axes.edgecolor": FAINT,
  "axes.labelcolor": MUTED,
  "axes.titlecolor": INK,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.axisbelow": True,
  "axes.facecolor": "none",
  "figure.facecolor": PAPER,
  "figure.constrained_layout.use": True,
  "grid.color": FAINT,
  "grid.linewidth": 0.6,
  "legend.frameon": False,
  "legend.fontsize": 8.5,
  "legend.labelcolor": INK,
  "text.color": INK,
  "xtick.color": MUTED,
  "ytick.color": MUTED,
  "xtick.major.size": 0,
  "ytick.major.size": 0,
}
LEGIBLE_TASKS = 60  # beyond this a task's line is thinner than its name
BARS = 24  # tasks that have bars of their own; their table stands beside them
LONGEST_NAME = 44
MOST_POINTS = 1000  # of a curve; a screen shows no more, and a page with every step of a long run is slow


def learning_curves(metrics: Iterable[Mapping[str, Any]], *, stages: Sequence[str] | None = None) -> Figure:
  """One column a stage: training and evaluation loss above, evaluation scores below.

  Args:
    metrics: lines of metrics.jsonl. `loss` is the training loss, `eval/loss` (or `eval/<split>/loss`) the
      evaluation loss, every other `eval/...` a score in [0, 100]; more than six scores are not drawn.
    stages: which, in order; all that have lines, in order of appearance, if None.
  """
  metrics = list(metrics)
  stages = list(dict.fromkeys(m["stage"] for m in metrics)) if stages is None else list(stages)
  scores = {stage: score_names(metrics, stage) for stage in stages}
  rows = 2 if any(scores.values()) else 1
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(max(3.6 * len(stages), 4.2), 1.2 + 2.0 * rows))
    axes = figure.subplots(rows, max(len(stages), 1), squeeze=False, sharex="col", height_ratios=(1.35, 1)[:rows])
    for column, stage in enumerate(stages):
      _losses(axes[0, column], metrics, stage)
      axes[0, column].set_title(stage)
      axes[-1, column].set_xlabel("step")
      if rows == 2:
        _scores(axes[1, column], metrics, stage, scores[stage])
  return figure


def series(
  metrics: Iterable[Mapping[str, Any]], stage: str, name: str
) -> tuple[Float[np.ndarray, "points"], Float[np.ndarray, "points"]]:
  """Steps and values of one scalar of a stage."""
  points = [(m["step"], m[name]) for m in metrics if m["stage"] == stage and name in m]
  steps, values = np.array(points, float).reshape(-1, 2).T
  return steps, values


def _losses(axis: Axes, metrics: Sequence[Mapping[str, Any]], stage: str) -> None:
  steps, values = series(metrics, stage, "loss")
  if len(values):
    mean = smooth(values)
    thin = slice(None, None, -(-len(values) // MOST_POINTS))
    if mean is not values:
      axis.plot(steps[thin], values[thin], color=COLOURS[0], alpha=0.25, linewidth=0.8)
    axis.plot(steps[thin], mean[thin], color=COLOURS[0], linewidth=1.6, label="train")
  names = dict.fromkeys(k for m in metrics if m["stage"] == stage for k in m if _is_loss(k))
  for colour, name in zip(COLOURS[1:], names, strict=False):
    where = name.removeprefix("eval/").removesuffix("loss").strip("/")
    label = "evaluation" + (f", {split_name(where)}" if where else "")
    axis.plot(*series(metrics, stage, name), color=colour, marker="o", markersize=3.2, linewidth=1.2, label=label)
  axis.set_ylabel("loss (nats a token)")
  shown = [line.get_ydata() for line in axis.lines]
  if any(np.isfinite(y).any() for y in shown):
    axis.set_ylim(bottom=0)
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.1, columnspacing=1.2)
  grid(axis)


def _scores(axis: Axes, metrics: Sequence[Mapping[str, Any]], stage: str, names: Sequence[str]) -> None:
  for colour, name in zip(COLOURS[1:] + COLOURS[:1], names, strict=False):
    *where, metric = name.removeprefix("eval/").split("/")
    label = ", ".join([metric_name(metric), *map(split_name, where)])
    axis.plot(*series(metrics, stage, name), color=colour, marker="o", markersize=3.2, linewidth=1.2, label=label)
  axis.set_ylim(0, max(10, min(104, axis.get_ylim()[1] * 1.15)) if names else 100)
  if names:
    axis.set_ylabel("score (%)")
    axis.legend(loc="best")
  else:
    axis.set_yticks([])
    axis.text(0.5, 0.5, "not evaluated while training", transform=axis.transAxes, ha="center", color=MUTED)
  grid(axis)


def score_names(metrics: Sequence[Mapping[str, Any]], stage: str) -> list[str]:
  """Evaluation scores that were logged in a stage, as many as have colours; cosines are no scores."""
  names = dict.fromkeys(k for m in metrics if m["stage"] == stage for k in m if k.startswith("eval/"))
  names = {name: None for name in names if name.rsplit("/", 1)[-1] != METRIC}
  return [name for name in names if not _is_loss(name)][: len(COLOURS)]


def _is_loss(name: str) -> bool:
  return name.startswith("eval/") and name.rsplit("/", 1)[-1] == "loss"


def smooth(values: Float[np.ndarray, "points"]) -> Float[np.ndarray, "points"]:
  """Mean of a window of a thirtieth of the curve, centred so that it does not lag; short ones stay."""
  if len(values) < 40:
    return values
  window = np.ones(2 * max(len(values) // 60, 2) + 1)
  return np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")


def grid(axis: Axes) -> None:
  """Lines across only, and few whole steps below."""
  axis.grid(axis="y")
  axis.spines["left"].set_visible(False)
  axis.set_xlim(left=0)
  axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
  axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


def routing_heat_map(
  weights: Float[np.ndarray, "tasks skills"] | Float[np.ndarray, "tasks splits skills"],
  tasks: Sequence[str],
  categories: Mapping[str, str],
) -> Figure:
  """How much of each skill every task uses: a row a task, a column a skill, a panel a split (MHR).

  Rows are in the order of `task_order`, with a gap between categories. With more than 60 tasks only
  categories are named, those whose band is as high as a name.

  Args:
    weights: routing weights, not negative, after normalisation.
    tasks: their names.
    categories: task -> category.

  Raises:
    ValueError: there are not as many names as rows.
  """
  weights = np.asarray(weights, np.float32)
  if weights.ndim not in (2, 3) or len(weights) != len(tasks):
    raise ValueError(f"routing weights {weights.shape} do not have a row for each of {len(tasks)} tasks")
  panels = weights[:, None] if weights.ndim == 2 else weights
  order = task_order(weights, tasks, categories)
  names = [tasks[i] for i in order]
  groups = [categories[name] for name in names]
  starts = [0] + [i for i in range(1, len(groups)) if groups[i] != groups[i - 1]]
  _, splits, skills = panels.shape
  legible = len(tasks) <= LEGIBLE_TASKS
  height = 0.19 * len(tasks) if legible else 11.0
  with matplotlib.rc_context(STYLE):
    width = max(splits * skills * (0.3 if splits == 1 else 0.2), 2.4)
    figure = Figure(figsize=(width + 4.2, height + 1.5))
    axes = figure.subplots(1, splits, squeeze=False, sharey=True)[0]
    highest = float(np.nanmax(panels, initial=1e-6))
    for split, axis in enumerate(axes):
      mesh = axis.pcolormesh(panels[order, split], cmap="viridis", vmin=0, vmax=highest, rasterized=not legible)
      # Cells apart from each other, categories further apart: the paper shows between them.
      if legible:
        axis.hlines(range(1, len(tasks)), 0, skills, color=PAPER, linewidth=0.8)
      axis.vlines(range(1, skills), 0, len(tasks), color=PAPER, linewidth=0.8)
      axis.hlines(starts[1:], -0.1, skills + 0.1, color=PAPER, linewidth=4 if legible else 2, clip_on=False)
      step = 1 if skills <= 16 else -(-skills // 8)
      axis.set_xticks(np.arange(0, skills, step) + 0.5, [str(s) for s in range(0, skills, step)])
      axis.set_xlabel("skill" if splits == 1 else f"skill (split {split})")
      axis.spines[:].set_visible(False)
    axes[0].set_ylim(len(tasks), 0)
    if legible:
      axes[0].set_yticks(np.arange(len(tasks)) + 0.5, [short(name) for name in names], color=INK, fontsize=8)
    else:
      axes[0].set_yticks([])
    for start, stop in zip(starts, [*starts[1:], len(tasks)], strict=True):
      x = skills + 0.25 * skills * splits / 8
      axes[-1].plot([x - 0.1] * 2, [start + 0.2, stop - 0.2], color=MUTED, linewidth=1, clip_on=False)
      if (stop - start) * height / len(tasks) > 0.13:  # inches; a name needs as much
        axes[-1].text(x + 0.15, (start + stop) / 2, groups[start], va="center", color=MUTED, fontsize=8)
    axes[-1].set_xlim(0, skills)
    bar = figure.colorbar(mesh, ax=axes, location="bottom", shrink=1 if splits == 1 else 0.6, aspect=30, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label("routing weight")
    bar.ax.axvline(1 / skills, color=PAPER, linewidth=1.5)
    bar.ax.text(
      1 / skills,
      1.25,
      "uniform",
      transform=bar.ax.get_xaxis_transform(),
      ha="center",
      fontsize=8,
      color=MUTED,
    )
  return figure


def task_order(
  weights: Float[np.ndarray, "tasks ..."], tasks: Sequence[str], categories: Mapping[str, str]
) -> list[int]:
  """Rows by category, in order of appearance; within one, by the skill a task uses most, then by how much.

  With several splits the skill used most is that of the mean over splits.
  """
  weights = np.asarray(weights)
  usage = weights.reshape(len(tasks), -1, weights.shape[-1]).mean(1)
  rank = {category: i for i, category in enumerate(dict.fromkeys(categories[task] for task in tasks))}
  main = usage.argmax(1)
  return sorted(range(len(tasks)), key=lambda i: (rank[categories[tasks[i]]], main[i], -usage[i, main[i]], i))


def exact_match_bars(
  rows: Iterable[Mapping[str, Any]],
  *,
  metric: str = "exact_match",
  split: str | None = None,
  methods: Sequence[str] | None = None,
  spread: Spread = "half-range",
) -> Figure:
  """Horizontal bars, a group a task, a bar a method, whiskers between seeds; categories beyond 24 tasks.

  Args:
    rows, methods, spread: as in `mtx.report.table.tabulate`.
    metric: which one.
    split: which one; a panel for each if None.
  """
  tables = [s for s in tabulate(rows, metrics=[metric], methods=methods, spread=spread) if split in (None, s.split)]
  shown: list[list[Line]] = []
  for scores in tables:
    kind = "task" if scores.tasks <= BARS else "category"
    shown.append([line for line in scores.lines if line.kind in (kind, "overall")])
  heights = [len(lines) * max(0.2, 0.085 * len(s.methods) + 0.08) for lines, s in zip(shown, tables, strict=True)]
  columns = list(dict.fromkeys(method for scores in tables for method in scores.methods))
  with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(4.6, sum(heights) + 0.9 * max(len(tables), 1)))
    if not tables:
      return figure
    axes = figure.subplots(len(tables), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axis, scores, lines in zip(axes, tables, shown, strict=True):
      thick = 0.8 / len(scores.methods)
      for i, method in enumerate(scores.methods):
        colour = COLOURS[columns.index(method) % len(COLOURS)]
        cells = [line.cells[i] for line in lines]
        y = np.arange(len(lines)) - 0.4 + thick * (i + 0.5)
        means = [cell.mean if cell else np.nan for cell in cells]
        whiskers = [cell.spread or np.nan if cell else np.nan for cell in cells]
        axis.barh(y, means, thick * 0.9, color=colour, label=method)
        axis.errorbar(means, y, xerr=whiskers, fmt="none", ecolor=INK, elinewidth=0.8)
      axis.set_yticks(range(len(lines)), [short(line.name) for line in lines], color=INK, fontsize=8)
      axis.get_yticklabels()[-1].set_fontweight("bold")
      axis.set_ylim(len(lines) - 0.5, -0.5)
      axis.set_xlim(0, 100)
      axis.grid(axis="x")
      axis.spines[:].set_visible(False)
      axis.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=max(1, min(len(scores.methods), 230 // (5 * max(map(len, scores.methods)) + 20))),
        handlelength=1,
        borderaxespad=0.1,
        columnspacing=1.2,
        title=split_name(scores.split) if len(tables) > 1 else None,
        title_fontproperties={"weight": "bold", "size": 10},
        alignment="left",
      )
    axes[-1].set_xlabel(f"{metric_name(metric)} (%)")
  return figure


def save(figure: Figure, path: str | os.PathLike) -> Path:
  """Writes a figure as .svg or .png (160 dots an inch), by the suffix; equal figures give equal bytes."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # Text as outlines: a lone picture can not count on the reader's fonts.
  with matplotlib.rc_context(STYLE | {"svg.hashsalt": "mtx", "svg.fonttype": "path"}):
    figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
  return path


def inline_svg(figure: Figure, name: str, *, label: str) -> str:
  """A figure as an <svg> element for a page that defines the variables of `THEME`.

  Args:
    name: prefix of the ids in it; must differ between the figures of a page.
    label: what a screen reader says.
  """
  buffer = io.StringIO()
  # Text as text: it can be searched, and takes the page's font.
  with matplotlib.rc_context(STYLE | {"svg.hashsalt": name, "svg.fonttype": "none"}):
    figure.savefig(
      buffer,
      format="svg",
      transparent=True,
      dpi=160,  # of what is rasterised: maps of very many tasks
      bbox_inches="tight",  # a legend or a long name may stand out
      pad_inches=0.04,
      metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
  svg = buffer.getvalue()
  svg = svg[svg.index("<svg") :]
  svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
  svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
  svg = re.sub(r'\bid="', f'id="{name}-', svg)
  svg = re.sub(r'href="#', f'href="#{name}-', svg).replace("url(#", f"url(#{name}-")
  for colour, variable in THEME.items():
    svg = svg.replace(colour, variable)
  return svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def short(name: str) -> str:
  """Both ends of a long name; the middle says least."""
  half = LONGEST_NAME // 2
  return name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half + 1 :]}"
