"""What a run says while it runs: console, logs, results. Stages see it through `mtx.training.session.Reporter`."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mtx.report.log import RunLog, read_results, write_results
from mtx.report.progress import Progress
from mtx.report.table import ParameterGroup, trainable_table


class Reporter:
  """Console and files of one run; in a run of several processes only the first makes one that speaks."""

  def __init__(self, run_dir: Path, console: Console | None = None):
    self.run_dir = run_dir
    self.console = console or Console(highlight=False)
    self.trainables: dict[str, tuple[list[ParameterGroup], int]] = {}

  def progress(self, stage: str, total: int, start: int) -> Progress:
    return Progress(stage, total, start, console=self.console)

  def log(self, stage: str) -> RunLog:
    return RunLog(self.run_dir, stage)

  def note(self, text: str) -> None:
    self.console.print(text, markup=False, soft_wrap=True)

  def trainable(self, stage: str, groups: Sequence[tuple[str, int, float]], frozen: int) -> None:
    members = [ParameterGroup(*g) for g in groups]
    self.trainables[stage] = (members, frozen)
    self.console.print(trainable_table(members, frozen, title=f"{stage}: trainable parameters"))

  def rows(self, rows: Sequence[dict]) -> None:
    write_results(self.run_dir, rows)

  def saved_rows(self, stage: str) -> list[dict]:
    return [r for r in read_results(self.run_dir) if r["stage"] == stage]
