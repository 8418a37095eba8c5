"""What a run says while it runs: console, logs, results. Stages see it through `mtx.training.session.Reporter`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from rich.console import Console

from mtx.report.log import RunLog, forget_results, read_results, write_results
from mtx.report.progress import Progress
from mtx.report.record import memory_record, read_record, write_record
from mtx.report.table import ParameterGroup, trainable_table


class Reporter:
  """Console and files of one run; in a run of several processes only the first makes one that speaks."""

  def __init__(self, run_dir: Path, console: Console | None = None):
    self.run_dir = run_dir
    self.console = console or Console(highlight=False)
    self._logs: dict[str, RunLog] = {}
    # Of run.json, until a stage goes ahead: a start that is refused leaves what an earlier one noted.
    self._held: dict[str, Any] = {}

  def progress(self, stage: str, total: int, start: int) -> Progress:
    if self._held:
      self.record()
    return Progress(stage, total, start, console=self.console)

  def log(self, stage: str) -> RunLog:
    """The one log of a stage: the stage writes numbers to it, evaluations routes and samples."""
    return self._logs.setdefault(stage, RunLog(self.run_dir, stage))

  def routes(self, stage: str, step: int, tasks: Sequence[str], weights: Float[np.ndarray, "task split skill"]) -> None:
    self.log(stage).routes(step, tasks, weights)

  def samples(self, stage: str, step: int, name: str, lines: Sequence[dict]) -> None:
    self.log(stage).samples(step, name, lines)

  def begin(self, **fields: Any) -> None:
    """Sets fields of run.json as soon as a stage goes ahead."""
    self._held |= fields

  def record(self, **fields: Any) -> None:
    """Sets fields of run.json, with the most memory used so far."""
    memory = memory_record(read_record(self.run_dir).get("memory", {}))
    write_record(self.run_dir, **self._held | fields, memory=memory)
    self._held = {}

  def note(self, text: str) -> None:
    self.console.print(text, markup=False, soft_wrap=True)

  def trainable(self, stage: str, groups: Sequence[tuple[str, int, float]], frozen: int) -> None:
    members = [ParameterGroup(*g) for g in groups]
    known = (read_record(self.run_dir) | self._held).get("trainable", {})
    self.begin(trainable=known | {stage: {"groups": [list(g) for g in members], "frozen": frozen}})
    self.console.print(trainable_table(members, frozen, title=f"{stage}: trainable parameters"))

  def rows(self, rows: Sequence[dict]) -> None:
    write_results(self.run_dir, rows)

  def saved_rows(self, stage: str) -> list[dict]:
    return [r for r in read_results(self.run_dir) if r["stage"] == stage]

  def forget(self, stage: str) -> None:
    """Removes a stage's rows from the results."""
    forget_results(self.run_dir, stage)
