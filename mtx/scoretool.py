"""`mtx score`: metrics of what a run has predicted, without decoding it again."""

import argparse
import math
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtx.errors import UserError
from mtx.report.log import RESULTS
from mtx.report.rescore import Change, Rescored, rescore
from mtx.report.runs import Run, open_runs
from mtx.report.table import metric_name, split_name

COMMANDS = ("score",)


def add_commands(commands: argparse._SubParsersAction) -> None:
  """Adds `score` to the command line."""
  text = "score a run's predictions anew, or by other metrics, without decoding; results.json gets the rows"
  command = commands.add_parser("score", help=text, description=text)
  command.add_argument("runs", nargs="+", metavar="RUN", help="folders that `mtx train` wrote")
  command.add_argument("--metrics", metavar="A,B", help="default: those that the run has")
  command.add_argument("--debug", action="store_true", help="show tracebacks")
  command.epilog = "Rows of other metrics stay. `mtx report RUN` then writes the page anew."


def run(arguments: argparse.Namespace) -> int:
  """Does what a parsed command line asks for. Returns the exit code."""
  metrics = None
  if arguments.metrics is not None:
    metrics = list(dict.fromkeys(name.strip() for name in arguments.metrics.split(",") if name.strip()))
    if not metrics:
      raise UserError("--metrics names no metric.", hint="--metrics rouge_l,exact_match")
  console = Console(highlight=False)
  for each in open_runs(arguments.runs):
    with console.status(f"scoring {each.name}"):
      found = rescore(each, metrics)
    _show(console, each, found)
  return 0


def _show(console: Console, run: Run, found: Rescored) -> None:
  if found.changes:
    console.print(table(run.name, found.changes))
  for note in found.notes:
    console.print(note, markup=False, soft_wrap=True)
  new = sum(change.before is None for change in found.changes)
  changed = sum(change.changed for change in found.changes)
  same = len(found.changes) - new - changed
  files = f"{len(found.files)} predictions file{'s' if len(found.files) > 1 else ''}"
  counts = f"{new} new, {changed} changed, {same} as before"
  console.print(f"{files} scored; {run.folder / RESULTS}: {counts}", markup=False, soft_wrap=True)


def table(name: str, changes: Sequence[Change]) -> Table:
  """A line an evaluation and metric: means over tasks, now and before."""
  made = Table(title=Text(name), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
  for column in ("stage", "method", "of", "metric"):
    made.add_column(column)
  for column in ("tasks", "examples", "mean", "before"):
    made.add_column(column, justify="right")
  groups: dict[tuple, list[Change]] = {}
  for change in changes:
    row = change.row
    groups.setdefault((row["stage"], row["method"], row["split"], row["step"], row["metric"]), []).append(change)
  for (stage, method, split, _, metric), of in groups.items():
    before = [change.before for change in of if change.before is not None]
    known = f"{_mean(before):.2f}" if len(before) == len(of) else f"{len(before)} tasks"
    was = known if before else "new"
    mean = _mean([change.row["value"] for change in of])
    examples = sum(change.row["count"] for change in of)
    words = (stage, method, split_name(split), metric_name(metric), f"{len(of):,}", f"{examples:,}", f"{mean:.2f}", was)
    made.add_row(*map(Text, words))
  return made


def _mean(values: Sequence[float]) -> float:
  return math.fsum(values) / len(values)
