"""`mtx sweep`: one run for every combination of gin values, and one tidy table of all their results."""

import argparse
import functools
import hashlib
import itertools
import os
import re
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtx.errors import UserError
from mtx.gintext import marks, parse
from mtx.launch import (
  DONE,
  FAILED,
  QUEUED,
  RUNNING,
  STOPPED,
  Job,
  by_template,
  one_by_one,
  prepare,
  train_job,
)
from mtx.report.log import read_results
from mtx.report.progress import Progress, duration

OUT, TABLE = "runs/sweeps", "results.parquet"
KINDS = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
# Of result rows, whatever a sweep has so far; other fields follow.
COLUMNS = {name: str for name in ("stage", "method", "split", "task", "category", "metric")} | {
  "step": int, "seed": int, "value": float, "count": int,
}  # fmt: skip
SHOWN = 6  # columns of means that a console has room for


class Axis(NamedTuple):
  """A parameter or macro, and the values that it takes; References and Macros of gin among them."""

  name: str
  values: tuple[Any, ...]


def add_commands(commands: argparse._SubParsersAction) -> None:
  """Adds `sweep` to the command line."""
  text = "train once for every combination of values; the same command goes on; results in one Parquet table"
  command = commands.add_parser("sweep", help=text, description=text)
  command.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="may be repeated")
  command.add_argument("--over", action="append", default=[], metavar="NAME=[V,V]", help="may be repeated")
  command.add_argument(
    "--launch", metavar="COMMAND", help='for a queue: "sbatch --wrap \\"{command}\\""; default: here'
  )
  command.add_argument("--resubmit", action="store_true", help="launch again what a queue has lost")
  command.add_argument("--anew", action="store_true", help="move runs with other settings to old/, and run again")
  command.add_argument("--out", metavar="FOLDER", help=f"default {OUT}/NAME, after the gin file")
  command.add_argument("--debug", action="store_true", help="show tracebacks")
  command.epilog = "Bindings, --gin.NAME=VALUE, go to every run. Exit code 1 where a run failed."


def run(arguments: argparse.Namespace, bindings: Sequence[str] = ()) -> int:
  """Does what a parsed command line asks for. Returns the exit code.

  Args:
    bindings: `NAME=VALUE`, for every run.
  """
  console = Console(highlight=False)
  if not arguments.gin_file:
    raise UserError("`mtx sweep` needs a gin file.", hint="--gin_file=configs/run/quickstart.gin")
  axes = [axis(text) for text in arguments.over]
  _check(axes, bindings)
  out = Path(arguments.out or Path(OUT) / Path(arguments.gin_file[-1]).stem)
  made = {job.folder: (job, cell) for job, cell in jobs(arguments.gin_file, axes, bindings, out)}
  kept = lambda there: console.print(f"run with other settings: kept as {there}", markup=False, soft_wrap=True)
  ready = [prepare(job, kept if arguments.anew else None) for job, _ in made.values()]
  done = sum(job.state == DONE for job in ready)
  console.print(f"{out}: {len(ready)} runs, {done} of them done", soft_wrap=True)
  cells = {folder: cell for folder, (_, cell) in made.items()}
  with Progress(out.name, len(ready), done, unit="runs", console=console) as progress:
    tell = functools.partial(_tell, progress, cells, out, [done])
    if arguments.launch:
      ended, through = by_template(ready, arguments.launch, tell, resubmit=arguments.resubmit), True
    else:
      ended, through = one_by_one([(job, None) for job in ready], tell)
  rows = write_table(out, cells)
  console.print(summary(ended, cells))
  if rows:
    console.print(f"{out / TABLE}: {rows:,} rows; pandas.read_parquet reads it", soft_wrap=True)
  if not through or any(job.state == STOPPED for job in ended):
    console.print(f"{out}: stopped; the same command goes on from what is done")
    return 143
  failed = [job for job in ended if job.state == FAILED]
  for job in failed:
    console.print(f"failed: {job.name}, {job.log}\n  {job.said()}", soft_wrap=True, markup=False)
  return 1 if failed else 0


def axis(text: str) -> Axis:
  """Reads `NAME=[VALUE, VALUE]`, as gin reads it.

  Raises:
    UserError: it is no gin, no list, an empty one, or has a value twice.
  """
  name, equals, values = text.removeprefix("--gin.").partition("=")
  example = "--over 'MHR.rank=[2, 4]'"
  try:
    (statement,) = parse(f"{name.strip()} = {values}\n")
  except (SyntaxError, ValueError, tokenize.TokenError) as error:
    raise UserError(f"--over {text!r} can not be read as gin.", hint=f"quote strings; for example {example}") from error
  if not equals or not isinstance(statement.value, (list, tuple)):
    raise UserError(f"--over {text!r} is no list of values.", hint=f"for example {example}")
  found = tuple(statement.value)
  if not found:
    raise UserError(f"--over {text!r} has no values.", hint=f"for example {example}")
  written = [repr(value) for value in found]
  if twice := [value for value in written if written.count(value) > 1]:
    raise UserError(f"--over {text!r} has {twice[0]} twice.")
  return Axis(name.strip(), found)


def jobs(
  files: Sequence[str], axes: Sequence[Axis], bindings: Sequence[str], out: Path
) -> Iterable[tuple[Job, dict[str, Any]]]:
  """Every combination as a job, with its values by name. All are read before one is run."""
  made = []
  for values in itertools.product(*(each.values for each in axes)):
    cell = {each.name: value for each, value in zip(axes, values, strict=True)}
    name = run_name(cell)
    over = [f"{parameter}={value!r}" for parameter, value in cell.items()]
    made.append((train_job(name, out / name, files, [*bindings, *over]), cell))
  return made


def run_name(cell: Mapping[str, Any]) -> str:
  """A folder's name that tells the values where they are short, and is never that of two combinations.

  It depends on the combination alone, so that a sweep may get more values later.
  """
  parts = [f"{re.split('[./]', name)[-1]}={value}" for name, value in cell.items()]
  plain = re.sub(r"[^\w.=,+-]+", "_", ",".join(parts))[:80]
  digest = hashlib.blake2b(repr(sorted((n, repr(v)) for n, v in cell.items())).encode(), digest_size=3).hexdigest()
  return f"{plain}-{digest}" if plain else digest


def write_table(out: Path, cells: Mapping[str, Mapping[str, Any]]) -> int:
  """Writes the results of all runs that have some, in one rename; the number of rows.

  A row has the run's name, the swept values, and what the result row has. A column holds what all its values fit.
  """
  rows: list[dict[str, Any]] = []
  names: dict[str, None] = {"run": None}
  for folder, cell in cells.items():
    values = {name: _plain(value) for name, value in cell.items()}
    for row in read_results(folder):
      clash = {f"swept {name}" if name in row else name: value for name, value in values.items()}
      rows.append({"run": Path(folder).name, **clash, **row})
  if not rows:
    return 0
  for row in rows:
    names |= dict.fromkeys(row)
  columns = {name: _column([row.get(name) for row in rows], COLUMNS.get(name)) for name in names}
  temporary = out / f".{TABLE}.{os.getpid()}"
  try:
    pq.write_table(pa.table(columns), temporary)
    os.replace(temporary, out / TABLE)
  finally:
    temporary.unlink(missing_ok=True)
  return len(rows)


def _plain(value: Any) -> Any:
  """A number, truth or text as it is; else its gin text."""
  return value if isinstance(value, (bool, int, float, str)) and not list(marks(value)) else repr(value)


def _column(values: Sequence[Any], kind: type | None) -> pa.Array:
  """Values as one type: theirs, floats where integers and floats mix, else text."""
  kinds = {type(value) for value in values if value is not None}
  if kinds <= {int, float} and kinds:
    kind = float if float in kinds and kind is not int else kind or max(kinds, key=lambda k: k is float)
  elif len(kinds) == 1:
    kind = kinds.pop()
  if kind not in KINDS or (kind is int and any(isinstance(value, float) for value in values)):
    kind = float if kind is int else str
  convert = lambda value: None if value is None else str(value) if kind is str else kind(value)
  return pa.array([convert(value) for value in values], KINDS[kind])


def summary(ended: Sequence[Job], cells: Mapping[str, Mapping[str, Any]]) -> Table:
  """One line a run: its values, how it ended, and means over tasks of what it was judged on last."""
  means = {job.folder: _means(read_results(job.folder)) for job in ended}
  shown = list(dict.fromkeys(name for by_name in means.values() for name in by_name))[-SHOWN:]
  table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
  for name in next(iter(cells.values()), {}):
    table.add_column(Text(name.replace(".", ".\n")), overflow="fold")
  for name in ("state", "time"):
    table.add_column(name, no_wrap=True)
  for name in shown:
    table.add_column(Text(name), justify="right")
  for job in ended:
    values = [Text(str(value)) for value in cells[job.folder].values()]
    numbers = [f"{means[job.folder][name]:.1f}" if name in means[job.folder] else "-" for name in shown]
    state = Text(job.state, {DONE: "green", FAILED: "red"}.get(job.state, ""))
    table.add_row(*values, state, duration(job.seconds), *numbers)
  return table


def _means(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
  """Of each method, split and metric in the last stage that has it; those before it were judged, too."""
  groups: dict[str, list[float]] = {}
  last: dict[str, str] = {}
  for row in rows:
    name = f"{row['method']}\n{row['split']}\n{row['metric']}"
    if last.get(name) != row["stage"]:
      last[name], groups[name] = row["stage"], []
    groups[name].append(row["value"])
  return {name: sum(values) / len(values) for name, values in groups.items()}


def _tell(progress: Progress, cells: Mapping[str, Mapping[str, Any]], out: Path, done: list[int], job: Job) -> None:
  if job.state in (RUNNING, QUEUED):
    progress.note(f"{job.name}: {job.state}; {job.log}")
    return
  progress.note(f"{job.name}: {job.state} after {duration(job.seconds)}")
  if job.state == STOPPED:  # it will be gone on with
    return
  done[0] += 1
  progress.update(done[0])
  if job.state == DONE:
    write_table(out, cells)  # what there is, should the sweep be stopped


def _check(axes: Sequence[Axis], bindings: Sequence[str]) -> None:
  """Raises UserError for values that would overwrite each other."""
  if not axes:
    raise UserError("`mtx sweep` needs values to sweep over.", hint="--over 'MHR.rank=[2, 4]'")
  names = [each.name for each in axes]
  bound = {text.partition("=")[0].strip() for text in bindings}
  for name in names:
    if names.count(name) > 1 or name in bound:
      where = "--over twice" if names.count(name) > 1 else "--over and --gin."
      raise UserError(f"{name!r} is given by {where}.", hint="give it once")
  if "train.run_dir" in (*names, *bound):
    raise UserError("train.run_dir is the sweep's to choose: every run has its own folder.", hint="--out FOLDER")
