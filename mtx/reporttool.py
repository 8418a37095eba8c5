"""`mtx report`: one HTML page of one run or of several; and what `mtx train` notes for it."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from mtx import ginfile
from mtx.check import versions
from mtx.data.cache import CachedMixture
from mtx.errors import UserError
from mtx.report.page import PAGE, write_page
from mtx.report.protocol import protocol_tables
from mtx.report.record import code_record, data_record, read_record
from mtx.report.runs import open_runs
from mtx.report.table import result_table
from mtx.training.session import Session
from mtx.training.stage import Stage

COMMANDS = ("report",)


def add_commands(commands: argparse._SubParsersAction) -> None:
  """Adds `report` to the command line."""
  text = "write one HTML page of a run, finished or not, or of several runs side by side"
  page = commands.add_parser("report", help=text, description=text)
  page.add_argument("runs", nargs="+", metavar="RUN", help="folders that `mtx train` wrote; the first is the base")
  page.add_argument("--out", metavar="FILE", help=f"default: {PAGE} in the run's folder; of several runs, here")
  page.add_argument("--debug", action="store_true", help="show tracebacks")
  page.epilog = "Folders NAME-0, NAME-1, ... with seeds 0, 1, ... are runs of one arm, if all arms have the same seeds."


def run(arguments: argparse.Namespace) -> int:
  """Does what a parsed command line asks for. Returns the exit code."""
  console = Console(highlight=False)
  runs = open_runs(arguments.runs)
  out = Path(arguments.out) if arguments.out else runs[0].folder / PAGE if len(runs) == 1 else Path(PAGE)
  if out.is_dir() or out.suffix not in (".html", ".htm"):
    raise UserError(f"--out {out} is no HTML file.", hint=f"--out {out / PAGE if out.is_dir() else f'{out}.html'}")
  with console.status("reading"):
    try:
      page, notes = write_page(runs, out)
    except OSError as error:
      raise UserError(f"{out} can not be written: {error.strerror}.") from error
  for note in notes:
    console.print(note, markup=False, soft_wrap=True)
  console.print(f"report: {page}", markup=False, soft_wrap=True)
  return 0


def begin(session: Session, stages: Sequence[Any], opened: Sequence[CachedMixture]) -> None:
  """Notes what is going to run, and with what, before anything is trained."""
  known = session.run_dir / "operative.gin"
  if not known.exists():  # of a finished run that is started again it is more than is known now
    known.write_text(ginfile.operative(), encoding="utf-8")
  session.reporter.begin(
    seed=session.seed,
    stages=[{"name": each.name, "steps": _steps(each)} for each in stages],
    versions=versions(),
    devices=f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
    mesh=dict(session.mesh.shape),
    code=code_record(),
    data=_data(session, opened),
    finished=False,
  )


def _steps(stage: Any) -> int | None:
  """Of a stage that logs each of its steps, or of the one that it wraps."""
  inner = getattr(stage, "stage", stage)
  return inner.steps if isinstance(inner, Stage) else None


def went_on(session: Session, opened: Sequence[CachedMixture], *, finished: bool = False) -> None:
  """Notes what was read so far, and the operative config."""
  session.reporter.record(data=_data(session, opened), finished=finished)
  (session.run_dir / "operative.gin").write_text(ginfile.operative(), encoding="utf-8")


def _data(session: Session, opened: Sequence[CachedMixture]) -> dict[str, Any]:
  """A run that is started again may read less: what it read before stays."""
  return read_record(session.run_dir).get("data", {}) | data_record(opened)


def finish(session: Session, console: Console) -> Path:
  """Prints the final tables and writes the page; returns its path.

  Raises:
    UserError: a file of the run is damaged.
  """
  (this,) = open_runs([session.run_dir])
  console.print(result_table(this.rows))
  if protocol := [row for row in this.rows if "level" in row]:
    console.print(protocol_tables({this.name: protocol}))
  page, _ = write_page([this], session.run_dir / PAGE)
  session.reporter.note(f"report: {page}")
  return page
