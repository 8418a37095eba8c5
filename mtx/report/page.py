"""One HTML page of a run, or of several: a single file that fetches nothing."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import markupsafe
import numpy as np

from mtx.analysis.gradients import METRIC
from mtx.atomic import write
from mtx.report import answers, contrast, figures, similarity
from mtx.report.compare import Compared, compare_methods, compare_runs
from mtx.report.config import differences, unequal
from mtx.report.progress import duration, quantity
from mtx.report.protocol import protocol_lines, protocol_notes, protocols
from mtx.report.runs import Run, arms
from mtx.report.table import (
  MAX_TASKS,
  Cell,
  ParameterGroup,
  Scores,
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


def write_page(runs: Sequence[Run], path: str | os.PathLike) -> tuple[Path, list[str]]:
  """Writes the page of one run, or of several side by side, in one rename.

  Args:
    runs: from `mtx.report.runs.open_runs`; the first is what others are compared with.

  Returns:
    The page, and notes on what it could not show.

  Raises:
    UserError: a damaged file (names the line), or runs that were evaluated on unequal items (names them).
    OSError: the page can not be written.
  """
  path = Path(path)
  compared, notes = compare_runs(runs) if len(runs) > 1 else (compare_methods(runs[0]), [])
  lines = [f"{run.name} has not finished: {line}" for run in runs for line in run.missing or _unfinished(run)]
  given = {
    "title": runs[0].name if len(runs) == 1 else " · ".join(run.name for run in runs),
    "runs": runs,
    "unfinished": lines,
    "notes": notes,
    **_protocol(runs),
    "compared": compared,
    "compared_open": _opened(compared),
    "forests": [
      figures.inline_svg(contrast.forest(each), f"forest{i}", label=f"differences, {each.title}") if each.shown else ""
      for i, each in enumerate(compared)
    ],
    "examples": answers.of_run(runs[0]) if len(runs) == 1 else answers.of_runs(runs),
    "routing": [_routing(run, i) for i, run in enumerate(runs) if run.routing is not None],
    "alignment": [_alignment(run, i) for i, run in enumerate(runs) if run.alignment is not None],
    "alignment_curves": _alignment_curves(runs),
    "stages": [{"run": run.name, **_stage(run.metrics, stage)} for run in runs for stage in _logged(run)],
    "memory": [(run.name, run.record["memory"]) for run in runs if "memory" in run.record],
    "trainable": [(run.name, stage, *_groups(made)) for run in runs for stage, made in _trainable(run).items()],
    "made": [_made(run) for run in runs],
    "max_tasks": MAX_TASKS,
    "categories": {task: category for run in runs for task, category in run.categories.items()},
    **(_of_one(runs[0]) if len(runs) == 1 else _of_several(runs)),
  }
  write(path, _templates().get_template("page.html").render(given))
  return path, lines + notes


def _templates() -> jinja2.Environment:
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
    "quantity": quantity,
    "soft": soft,
    "capital": lambda text: text[:1].upper() + text[1:],
  }
  return templates


def soft(name: str) -> markupsafe.Markup:
  """A name that may be broken behind its underscores and slashes."""
  return markupsafe.Markup(re.sub(r"([_/])(?=\w)", r"\1<wbr>", str(markupsafe.escape(name))))


def _unfinished(run: Run) -> list[str]:
  return [] if run.finished else ["what follows is what there is"]


def _of_one(run: Run) -> dict[str, Any]:
  """What only the page of a single run has."""
  tables = tabulate(run.rows, metrics=_percentages(run.rows))
  cells = [cell for scores in tables for line in scores.lines for cell in line.cells if cell]
  return {
    "headlines": _headlines(run, tables),
    "tables": tables,
    "has_spread": any(cell.spread is not None for cell in cells),
    "has_partial": any(not cell.complete for cell in cells),
    "bars": [_bars(run.rows, scores, f"bars{i}") for i, scores in enumerate(tables)],
    "summaries": [],
    "curves": [
      figures.inline_svg(
        figures.learning_curves(run.metrics, stages=[stage]), f"curves{i}", label=f"learning curves of {stage}"
      )
      for i, stage in enumerate(_logged(run))
    ],
    "unequal_gin": {},
    "unequal_made": {},
  }


def _of_several(runs: Sequence[Run]) -> dict[str, Any]:
  """What only the page of several runs has."""
  stages = dict.fromkeys(stage for run in runs for stage in _logged(run))
  return {
    "headlines": [],
    "tables": [],
    "has_spread": any(len(of) > 1 for of in arms(runs).values()),
    "has_partial": False,
    "bars": [],
    "summaries": _summaries(runs),
    "curves": [
      figures.inline_svg(contrast.run_curves(runs, stage), f"curves{i}", label=f"learning curves of {stage}")
      for i, stage in enumerate(stages)
    ],
    "unequal_gin": differences([run.gin for run in runs]),
    "unequal_made": unequal([{name: ", ".join(values) for name, values in _made(run).items()} for run in runs]),
  }


def _protocol(runs: Sequence[Run]) -> dict[str, Any]:
  """Averages by level and cell, a model an arm; nothing where no run has a protocol."""
  rows = protocols({arm: [row for run in of.values() for row in run.rows] for arm, of in arms(runs).items()})
  return {"protocol": protocol_lines(rows), "protocol_models": list(rows), "protocol_notes": protocol_notes(rows)}


def _opened(compared: Sequence[Compared]) -> int:
  """The main metric of what held-out tasks were judged by last."""
  groups = {(each.split, each.method): i for i, each in reversed(list(enumerate(compared)))}
  return max((i for (split, _), i in groups.items() if split == "heldout"), default=0)


def _summaries(runs: Sequence[Run]) -> list[dict[str, Any]]:
  """For each split and metric: a line a method, a column an arm, means over all tasks."""
  grouped = arms(runs)
  by_arm = {arm: [row for run in of.values() for row in _last(run.rows)] for arm, of in grouped.items()}
  tables = {
    arm: {(s.split, s.metric): s for s in tabulate(rows, metrics=_percentages(rows))} for arm, rows in by_arm.items()
  }
  keys = dict.fromkeys(key for scores in tables.values() for key in scores)
  made = []
  for split, metric in keys:
    found = {arm: scores[split, metric] for arm, scores in tables.items() if (split, metric) in scores}
    methods = dict.fromkeys(method for scores in found.values() for method in scores.methods)
    lines = [(method, [_overall(found.get(arm), method) for arm in grouped]) for method in methods]
    tasks = sorted({scores.tasks for scores in found.values()})
    title = f"{split_name(split)}, {metric_name(metric)}"
    made.append({"title": title, "arms": list(grouped), "lines": lines, "tasks": tasks})
  return made


def _percentages(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """Metrics that are scores; cosines have a section of their own."""
  return list(dict.fromkeys(row["metric"] for row in rows if row["metric"] != METRIC))


def _last(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  """Rows of the last stage that has a method; arms may name their stages otherwise, or have more of them."""
  stage = {(row["split"], row["method"]): row["stage"] for row in rows}
  return [{**row, "stage": ""} for row in rows if row["stage"] == stage[row["split"], row["method"]]]


def _overall(scores: Scores | None, method: str) -> Cell | None:
  return None if scores is None or method not in scores.methods else scores.overall.cells[scores.methods.index(method)]


def _headlines(run: Run, tables: Sequence[Scores]) -> list[Headline]:
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
  if trainable := _trainable(run):
    stage, made = list(trainable.items())[-1]
    groups, frozen = _groups(made)
    count = sum(group.parameters for group in groups)
    lines.append(Headline("trainable parameters", quantity(count), f"{share(count, count + frozen)} in {stage}"))
  if run.metrics:
    stages = [_stage(run.metrics, stage) for stage in _logged(run)]
    steps = sum(stage["steps"] for stage in stages)
    seconds = sum(stage["seconds"] for stage in stages)
    detail = f"{steps:,} steps, {len(stages)} " + ("stages" if len(stages) > 1 else "stage")
    lines.append(Headline("training time", duration(seconds), detail))
  return lines


def _logged(run: Run) -> list[str]:
  return list(dict.fromkeys(line["stage"] for line in run.metrics))


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


def _bars(rows: Sequence[Mapping[str, Any]], scores: Scores, name: str) -> str:
  """A drawing beside a table that compares methods; a single one is read off its column."""
  if len(scores.methods) < 2:
    return ""
  figure = figures.exact_match_bars(rows, metric=scores.metric, split=scores.split)
  return figures.inline_svg(figure, name, label=scores.title)


def _routing(run: Run, number: int) -> dict[str, Any]:
  routing = run.routing
  assert routing is not None
  known = run.categories
  categories = {task: known.get(task, "") for task in routing.tasks}
  heat = figures.routing_heat_map(routing.weights, routing.tasks, categories)
  label = f"routing weights of tasks over skills, {run.name}"
  made = {"run": run.name, "map": figures.inline_svg(heat, f"routing{number}", label=label), "tree": ""}
  if len(routing.tasks) > 1:
    tree = similarity.dendrogram(routing.weights, routing.tasks, categories)
    made["tree"] = figures.inline_svg(tree, f"tree{number}", label=f"dendrogram of tasks by routes, {run.name}")
  return made


def _alignment(run: Run, number: int) -> dict[str, Any]:
  found = run.alignment
  assert found is not None
  figure = similarity.alignment_map(found.cosine[-1], found.tasks, run.categories)
  every, inside, across = similarity.mean_alignment(found.cosine[-1], found.tasks, run.categories)
  svg = figures.inline_svg(figure, f"alignment{number}", label=f"cosines of tasks' gradients, {run.name}")
  return {"run": run.name, "of": found, "map": svg, "every": every, "inside": inside, "across": across}


def _alignment_curves(runs: Sequence[Run]) -> str:
  """How it went, where it was measured more than once."""
  lines = {run.name: run.alignment for run in runs if run.alignment is not None and len(run.alignment.steps) > 1}
  if not lines:
    return ""
  return figures.inline_svg(contrast.alignment_curves(lines), "aligned", label="mean cosine of gradients over steps")


def _trainable(run: Run) -> dict[str, Any]:
  return run.record.get("trainable", {})


def _groups(made: Mapping[str, Any]) -> tuple[list[ParameterGroup], int]:
  return [ParameterGroup(*group) for group in made["groups"]], made["frozen"]


def _made(run: Run) -> dict[str, list[str]]:
  """What the run was made with, as words."""
  record = run.record
  made: dict[str, list[str]] = {"folder": [str(run.folder)]}
  if code := record.get("code"):
    changed = code["changed_files"]
    made["git commit"] = [code["commit"], *([f"{changed} files changed since"] if changed else [])]
  for name in ("seed", "devices"):
    if name in record:
      made[name] = [str(record[name])]
  if mesh := record.get("mesh"):
    made["mesh"] = [f"{axis} {size}" for axis, size in mesh.items()]
  for mixture, data in record.get("data", {}).items():
    made[f"data: {mixture}"] = [data["fingerprint"], f"{len(data['tasks']):,} tasks"]
  return made | {name: [str(version)] for name, version in record.get("versions", {}).items()}
