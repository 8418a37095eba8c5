"""What a run leaves on disk: metrics.jsonl with TensorBoard events beside it, results.json, and its last routes."""

import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from tensorboardX import SummaryWriter
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import histogram, scalar, text

from mtx.atomic import write
from mtx.errors import UserError

METRICS = "metrics.jsonl"
RESULTS = "results.json"
ROUTING = "routing.json"
MOST_SAMPLES = 12  # of one evaluation
LONGEST_SAMPLE = 600  # characters of a text
ROUTE_BINS = np.linspace(0, 1.02, 52)  # the same at all steps; a weight of 1 is in the last
RESERVED = ("stage", "step", "time")
RESULT_KEY = ("stage", "method", "task", "split", "metric", "seed")
# JSON has no NaN and no infinities; these are the spellings of the protocol buffers' JSON mapping.
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class RunLog:
  """Scalars of one stage of a run, as JSON lines and as TensorBoard events.

  `run_dir/metrics.jsonl` is the record: every line is on its way to the disk when `scalars` returns, so a
  killed process loses none. The events in `run_dir/events/<stage>` are a view of it; TensorBoard's writer
  buffers them, so `resume` writes them anew from the lines. What evaluations add (routes, samples) is rare: it lies
  in `run_dir/events/<stage>-evaluation`, is on disk when `routes` and `samples` return, and stays.

  In a run of several processes only the first makes one.

  Args:
    run_dir: directory of the run, made if absent.
    stage: name of the stage, stored with every line.
  """

  def __init__(self, run_dir: str | os.PathLike, stage: str):
    self.path = Path(run_dir) / METRICS
    self.events = Path(run_dir) / "events" / stage
    self.stage = stage
    self._file: Any = None
    self._writer: Any = None
    self._seldom: Any = None

  def resume(self, step: int) -> None:
    """Forgets what this stage logged after `step`: the run goes on from a checkpoint of that step.

    Lines of other stages stay. A half-written last line goes. The file is replaced in one rename. The events
    start a new file that tells TensorBoard to forget the stage (`purge_step`), then repeats the kept lines.

    Args:
      step: last step to keep; -1 keeps none (the stage starts over).

    Raises:
      UserError: a line other than the last is not JSON.
    """
    self.close()
    kept = [m for m in _read_lines(self.path) if m["stage"] != self.stage or m["step"] <= step]
    if self.path.exists():
      write(self.path, "".join(_line(m) for m in kept))
    self._open(purge_step=0)
    if self.events.with_name(f"{self.stage}-evaluation").exists():
      self._evaluation(purge_step=step + 1)
    for metrics in kept:
      if metrics["stage"] == self.stage:
        self._add_events(metrics)

  def scalars(self, step: int, values: Mapping[str, Any]) -> None:
    """Logs numbers under one step.

    Args:
      step: optimizer steps done in this stage.
      values: name -> number (Python, numpy or a jax scalar; the last waits for its device).

    Raises:
      ValueError: a name is one of `stage`, `step`, `time`.
    """
    if taken := [name for name in RESERVED if name in values]:
      raise ValueError(f"a scalar can not be called {taken[0]!r}: every line has that field")
    if self._file is None:
      self._open()
    metrics = {"stage": self.stage, "step": int(step), "time": time.time()}
    metrics.update({name: float(value) for name, value in values.items()})
    self._file.write(_line(metrics))
    self._file.flush()
    self._add_events(metrics)

  def routes(self, step: int, tasks: Sequence[str], weights: Float[np.ndarray, "task split skill"]) -> None:
    """Logs routing weights: histograms for TensorBoard, one a split, and `run_dir/<stage>/routing.json`, the last ones.

    Args:
      step: optimizer steps done in this stage.
      tasks: names of the rows.
    """
    splits = range(weights.shape[1])
    self._add_evaluation(step, [histogram(f"routes/split_{i}", weights[:, i].ravel(), ROUTE_BINS) for i in splits])
    path = self.path.parent / self.stage / ROUTING
    rounded = np.round(weights.astype(float), 5).tolist()
    write(path, json.dumps({"step": int(step), "tasks": list(tasks), "weights": rounded}) + "\n")

  def samples(self, step: int, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
    """Logs some predictions as a table of text, the first of every task in turn.

    Args:
      step: optimizer steps done in this stage.
      name: of what was evaluated.
      lines: of a predictions file: `task`, `inputs`, `references`, `prediction`.
    """
    tasks: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
      tasks.setdefault(line["task"], []).append(line)
    turns = (of[i] for i in range(max(map(len, tasks.values()), default=0)) for of in tasks.values() if i < len(of))
    rows = ["| task | input | reference | prediction |", "|---|---|---|---|"]
    for line, _ in zip(turns, range(MOST_SAMPLES), strict=False):
      texts = (line["task"], line.get("inputs", ""), " / ".join(line["references"]), line["prediction"])
      rows.append("| " + " | ".join(map(_cell, texts)) + " |")
    self._add_evaluation(step, [text(f"samples/{name}", "\n".join(rows))])

  def close(self) -> None:
    """Writes out what TensorBoard's writer still holds. The log can be used again."""
    if self._file is not None:
      self._file.close()
    for writer in (self._writer, self._seldom):
      if writer is not None:
        writer.close()
    self._file = self._writer = self._seldom = None

  def __enter__(self) -> "RunLog":
    return self

  def __exit__(self, *exception) -> None:
    self.close()

  def _open(self, purge_step: int | None = None) -> None:
    self.path.parent.mkdir(parents=True, exist_ok=True)
    if self.path.exists() and not self.path.read_bytes().endswith(b"\n"):
      # A killed process left half a line; to append to it would lose the next one too.
      write(self.path, "".join(map(_line, _read_lines(self.path))))
    self._file = self.path.open("a", encoding="utf-8")
    self._writer = _writer(self.events, purge_step)

  def _evaluation(self, purge_step: int | None = None) -> EventsWriter:
    """Without a queue: `SummaryWriter` writes later, in a thread, and its flush does not wait for that."""
    if self._seldom is None:
      folder = self.events.with_name(f"{self.stage}-evaluation")
      folder.mkdir(parents=True, exist_ok=True)
      self._seldom = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
      if purge_step is not None:
        self._seldom.write_event(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))
    return self._seldom

  def _add_evaluation(self, step: int, summaries: Sequence[Summary]) -> None:
    values = [value for each in summaries for value in each.value]
    writer = self._evaluation()
    writer.write_event(Event(step=int(step), wall_time=time.time(), summary=Summary(value=values)))
    writer.flush()

  def _add_events(self, metrics: Mapping[str, Any]) -> None:
    # One event a step, not one a scalar: the checksum and the queue are what costs.
    values = [v for k, x in metrics.items() if k not in RESERVED for v in scalar(k, x).value]
    self._writer.file_writer.add_summary(Summary(value=values), metrics["step"], metrics["time"])


def _writer(folder: Path, purge_step: int | None) -> SummaryWriter:
  # File names have whole seconds, and TensorBoard reads them in order of name: a restart within one second
  # would overwrite its predecessor. A short queue would make `scalars` wait for the disk.
  return SummaryWriter(
    str(folder), purge_step=purge_step, max_queue=10_000, flush_secs=30, filename_suffix=f".{time.time_ns()}"
  )


def _cell(text: str) -> str:
  """A text as a cell of a Markdown table: marks that would end it, or make it HTML, as they are read."""
  short = text if len(text) <= LONGEST_SAMPLE else text[:LONGEST_SAMPLE] + "…"
  for mark, shown in (("&", "&amp;"), ("<", "&lt;"), ("|", "&#124;"), ("`", "&#96;"), ("*", "&#42;"), ("_", "&#95;")):
    short = short.replace(mark, shown)
  return "<br>".join(short.splitlines()) or " "


def read_metrics(run_dir: str | os.PathLike) -> list[dict]:
  """The lines of metrics.jsonl in order, without a half-written last one; empty if there is no file.

  Returns:
    dicts with `stage`, `step`, `time` (seconds since 1970) and the scalars.

  Raises:
    UserError: a line other than the last is not JSON.
  """
  return _read_lines(Path(run_dir) / METRICS)


def write_results(run_dir: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
  """Adds result rows to results.json in one rename.

  A row with the same stage, method, task, split, metric and seed is replaced in its place; all others stay.

  Args:
    run_dir: directory of the run, made if absent.
    rows: dicts with at least the fields of `RESULT_KEY` and `value`.

  Raises:
    UserError: results.json exists and is not a JSON list.
    KeyError: a row lacks a field of `RESULT_KEY`.
  """
  table = {_key(row): dict(row) for row in read_results(run_dir)}
  table.update({_key(row): dict(row) for row in rows})
  _write_results(run_dir, table.values())


def forget_results(run_dir: str | os.PathLike, stage: str) -> None:
  """Removes the rows of a stage from results.json in one rename.

  Raises:
    UserError: results.json exists and is not a JSON list.
  """
  _write_results(run_dir, [row for row in read_results(run_dir) if row["stage"] != stage])


def _write_results(run_dir: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
  lines = ",\n".join(json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) for row in rows)
  write(Path(run_dir) / RESULTS, f"[\n{lines}\n]\n")


def read_results(run_dir: str | os.PathLike) -> list[dict]:
  """The rows of results.json; empty if there is none.

  Raises:
    UserError: the file is not a JSON list of rows.
  """
  path = Path(run_dir) / RESULTS
  if not path.exists():
    return []
  try:
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [_numbers(row) for row in rows]
  except (ValueError, AttributeError, TypeError) as error:
    raise UserError(
      f"{path} is not a JSON list of result rows: {error}", hint="move it away and evaluate again"
    ) from error


def _key(row: Mapping[str, Any]) -> tuple:
  return tuple(row[name] for name in RESULT_KEY)


def _read_lines(path: Path) -> list[dict]:
  if not path.exists():
    return []
  # Bytes, because a line can be torn inside a character.
  lines = path.read_bytes().split(b"\n")
  metrics = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      metrics.append(_numbers(json.loads(line.decode("utf-8"))))
    except (ValueError, AttributeError) as error:
      if number == len(lines):
        break
      raise UserError(
        f"{path}:{number} is not a JSON object: {error}", hint="delete that line to go on without it"
      ) from error
  return metrics


def _line(metrics: Mapping[str, Any]) -> str:
  return json.dumps(_plain(metrics), ensure_ascii=False, allow_nan=False) + "\n"


def _plain(row: Mapping[str, Any]) -> dict:
  """Only types that JSON has: numpy's numbers become Python's, non-finite ones their names."""
  plain = {}
  for name, value in row.items():
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
      value = "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    plain[name] = value
  return plain


def _numbers(row: Mapping[str, Any]) -> dict:
  return {k: NON_FINITE.get(v, v) if isinstance(v, str) else v for k, v in row.items()}
