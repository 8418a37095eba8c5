"""One HTML page a run: its scores, curves, routes and configuration. A single file that fetches nothing."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from mtx.report import figures
from mtx.report.log import replace
from mtx.report.progress import duration, quantity
from mtx.report.table import (
  MAX_TASKS,
  ParameterGroup,
  Scores,
  Spread,
  learning_rate,
  metric_name,
  share,
  split_name,
  tabulate,
)

PAGE = "report.html"


class Headline(NamedTuple):
  """One number of the page's head: what it is, the number, what it is to be compared with."""

  label: str
  value: str
  detail: str


def write_page(
  run_dir: str | os.PathLike,
  title: str,
  rows: Sequence[Mapping[str, Any]],
  metrics: Sequence[Mapping[str, Any]],
  routing: Mapping[str, Any] | None,
  config_text: str,
  environment: Mapping[str, Any],
  *,
  trainable: Mapping[str, tuple[Sequence[ParameterGroup], int]] | None = None,
  methods: Sequence[str] | None = None,
  spread: Spread = "half-range",
) -> Path:
  """Writes `run_dir/report.html`, in one rename.

  Args:
    run_dir: directory of the run, made if absent.
    title: name of the run.
    rows: result rows (`read_results`).
    metrics: lines of metrics.jsonl (`read_metrics`).
    routing: `weights` [tasks, skills] or [tasks, splits, skills], `tasks` (names) and `categories`
      (task -> category); None if the model does not route.
    config_text: the operative gin configuration.
    environment: name -> version, device or list of them.
    trainable: stage -> (its parameter groups, count of frozen parameters).
    methods, spread: see `mtx.report.table.tabulate`.

  Returns:
    Path of the page.
  """
  rows, metrics = list(rows), list(metrics)
  tables = tabulate(rows, methods=methods, spread=spread)
  stages = list(dict.fromkeys(line["stage"] for line in metrics))
  cells = [cell for scores in tables for line in scores.lines for cell in line.cells if cell]
  templates = jinja2.Environment(
    loader=jinja2.PackageLoader("mtx.report"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  templates.filters |= {
    "share": share,
    "rate": learning_rate,
    "metric": metric_name,
    "split": split_name,
  }
  page = templates.get_template("page.html").render(
    title=title,
    headlines=_headlines(tables, metrics, trainable or {}),
    tables=tables,
    max_tasks=MAX_TASKS,
    has_spread=any(cell.spread is not None for cell in cells),
    has_partial=any(not cell.complete for cell in cells),
    spread_text="half of max - min" if spread == "half-range" else "one standard deviation",
    bars=[_bars(rows, scores, f"bars{i}", methods, spread) for i, scores in enumerate(tables)],
    stages=[_stage(metrics, stage) for stage in stages],
    curves=[
      figures.inline_svg(
        figures.learning_curves(metrics, stages=[stage]), f"curves{i}", label=f"learning curves of {stage}"
      )
      for i, stage in enumerate(stages)
    ],
    routing=None
    if routing is None
    else figures.inline_svg(
      figures.routing_heat_map(routing["weights"], routing["tasks"], routing["categories"]),
      "routing",
      label="routing weights of tasks over skills",
    ),
    trainable=trainable or {},
    config_text=config_text,
    environment={k: v if isinstance(v, (list, tuple)) else [v] for k, v in environment.items()},
  )
  path = Path(run_dir) / PAGE
  path.parent.mkdir(parents=True, exist_ok=True)
  replace(path, page)
  return path


def _headlines(
  tables: Sequence[Scores],
  metrics: Sequence[Mapping[str, Any]],
  trainable: Mapping[str, tuple[Sequence[ParameterGroup], int]],
) -> list[Headline]:
  lines = []
  for scores in sorted(tables, key=lambda scores: scores.split != "heldout"):
    named = [(method, cell) for method, cell in zip(scores.methods, scores.overall.cells, strict=True) if cell]
    method, best = max(named, key=lambda pair: pair[1].mean)
    detail = method
    if len(named) > 1:
      # Chosen on the very tasks it is reported on: said, so that nobody takes it for a fair pick.
      detail += f", best of {len(named)}"
      detail += "" if method == named[0][0] else f"; {named[0][0]} {named[0][1]}"
    lines.append(Headline(f"{scores.title}, mean of {scores.tasks}", str(best), detail))
  if trainable:
    stage, (groups, frozen) = list(trainable.items())[-1]
    count = sum(group[1] for group in groups)
    lines.append(Headline("trainable parameters", quantity(count), f"{share(count, count + frozen)} in {stage}"))
  if metrics:
    stages = [_stage(metrics, stage) for stage in dict.fromkeys(line["stage"] for line in metrics)]
    steps = sum(stage["steps"] for stage in stages)
    seconds = sum(stage["seconds"] for stage in stages)
    lines.append(
      Headline(
        "training time",
        duration(seconds),
        f"{steps:,} steps, {len(stages)} " + ("stages" if len(stages) > 1 else "stage"),
      )
    )
  return lines


def _stage(metrics: Sequence[Mapping[str, Any]], stage: str) -> dict[str, Any]:
  lines = [line for line in metrics if line["stage"] == stage]
  seconds = max(line["time"] for line in lines) - min(line["time"] for line in lines)
  _, losses = figures.series(lines, stage, "loss")
  _, speeds = figures.series(lines, stage, "tokens_per_second")
  _, mfus = figures.series(lines, stage, "mfu")
  return {
    "name": stage,
    "steps": max(line["step"] for line in lines),
    "seconds": seconds,
    "time": duration(seconds),
    "loss": f"{losses[0]:.3f} → {losses[-1]:.3f}" if len(losses) else "-",
    "speed": quantity(float(np.median(speeds))) if len(speeds) else "-",
    "mfu": f"{100 * float(np.median(mfus)):.1f}%" if len(mfus) else "-",
  }


def _bars(
  rows: Sequence[Mapping[str, Any]], scores: Scores, name: str, methods: Sequence[str] | None, spread: Spread
) -> str:
  """A drawing beside a table that compares methods; a single one is read off its column."""
  if len(scores.methods) < 2:
    return ""
  figure = figures.exact_match_bars(rows, metric=scores.metric, split=scores.split, methods=methods, spread=spread)
  return figures.inline_svg(figure, name, label=scores.title)
