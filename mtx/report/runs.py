"""Run folders as they are found, finished or not."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mtx.analysis.gradients import FILE as GRADIENTS
from mtx.errors import UserError
from mtx.report.log import METRICS, RESULTS, ROUTING, read_metrics, read_results
from mtx.report.predictions import Evaluated, find_evaluated
from mtx.report.record import RECORD, read_record

GIN = "operative.gin"
LOOKED_FOR = (RECORD, METRICS, RESULTS, GIN)


@dataclass(frozen=True)
class Routing:
  """Mixing weights of every task, means over sites and layers."""

  tasks: tuple[str, ...]
  weights: Float[np.ndarray, "task split skill"]


@dataclass(frozen=True)
class Alignment:
  """Cosines between the tasks' gradients, as often as they were measured in a stage.

  Attributes:
    steps: of the measurements, increasing.
    cosine: at each.
  """

  stage: str
  tasks: tuple[str, ...]
  steps: tuple[int, ...]
  cosine: Float[np.ndarray, "step task task"]


@dataclass(frozen=True)
class Run:
  """What one run has left.

  Attributes:
    folder, name: its folder, and what it is called on the page.
    rows, metrics: of results.json and metrics.jsonl.
    record: run.json.
    gin: the operative config; empty if there is none yet.
  """

  folder: Path
  name: str
  rows: list[dict[str, Any]]
  metrics: list[dict[str, Any]]
  record: dict[str, Any]
  gin: str

  @property
  def seed(self) -> int | None:
    seeds = {row["seed"] for row in self.rows}
    return seeds.pop() if len(seeds) == 1 else self.record.get("seed")

  @cached_property
  def evaluated(self) -> list[Evaluated]:
    return find_evaluated(self.folder, self.rows)

  @cached_property
  def stages(self) -> list[str]:
    """Those that have begun, in order."""
    return list(dict.fromkeys([*(m["stage"] for m in self.metrics), *(row["stage"] for row in self.rows)]))

  @property
  def finished(self) -> bool:
    """A run that says nothing of itself (no run.json) is taken as it is."""
    return not self.record or bool(self.record.get("finished"))

  @property
  def missing(self) -> list[str]:
    """What an unfinished run lacks, a line a stage."""
    if self.finished:
      return []
    lines = []
    for stage in self.record.get("stages", []):
      name, steps = stage["name"], stage.get("steps")
      done = max((m["step"] for m in self.metrics if m["stage"] == name), default=0)
      if name not in self.stages:
        lines.append(f"{name} has not begun")
      elif steps and done < steps:
        lines.append(f"{name} is at step {done:,} of {steps:,}")
    return lines

  @property
  def categories(self) -> dict[str, str]:
    """task -> category."""
    known = {row["task"]: row["category"] for row in self.rows}
    for mixture in self.record.get("data", {}).values():
      known |= {name: task["category"] for name, task in mixture["tasks"].items()}
    return known

  @cached_property
  def routing(self) -> Routing | None:
    """Of the last evaluation; of the model that the run ends with, where none has left any."""
    for stage in reversed(self.stages):
      path = self.folder / stage / ROUTING
      if path.is_file():
        (saved,) = _matrices(path, "weights")
        return Routing(tuple(saved["tasks"]), np.array(saved["weights"]))
    return _of_model(self.folder / "model")

  @cached_property
  def alignment(self) -> Alignment | None:
    """Of the last stage that measured it."""
    for stage in reversed(self.stages):
      path = self.folder / stage / GRADIENTS
      if path.is_file() and (lines := _matrices(path, "cosine")):
        tasks = tuple(lines[-1]["tasks"])
        kept = [line for line in lines if tuple(line["tasks"]) == tasks]
        cosine = np.array([line["cosine"] for line in kept], float)
        return Alignment(stage, tasks, tuple(line["step"] for line in kept), cosine)
    return None


def _matrices(path: Path, name: str) -> list[dict[str, Any]]:
  """The lines of a file, each a JSON object with `step`, `tasks` and an array with a row a task.

  Raises:
    UserError: one is not; names the line.
  """
  lines = []
  for number, line in enumerate(path.read_bytes().splitlines(), 1):
    try:
      saved = json.loads(line.decode("utf-8"))
      rows = np.array(saved[name], float)
      if rows.ndim < 2 or len(rows) != len(saved["tasks"]) or not isinstance(saved["step"], int):
        raise ValueError(f"an array {rows.shape} for {len(saved['tasks'])} tasks")
      lines.append(saved)
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f"{path}:{number} can not be read: {error!r}", hint="move the file away to go on") from error
  return lines


def _of_model(folder: Path) -> Routing | None:
  if not (folder / "model.json").is_file():
    return None
  import jax

  from mtx.adapters.routes import routing
  from mtx.pretrained.model import find_model

  found = find_model(folder)
  if not found.tasks:
    return None
  model = found.blueprint()
  routers = {path: shape for path, shape in model.shapes.items() if "task" in model.axes[path]}
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  weights = routing(found.read(routers, dict.fromkeys(routers, device)), model.axes)
  return None if weights is None else Routing(tuple(found.tasks), weights)


def open_runs(folders: Sequence[str | Path]) -> list[Run]:
  """Opens run folders; names are as short as tells them apart.

  Raises:
    UserError: one is no run folder, or is there twice; a file of it is damaged.
  """
  paths = [Path(folder) for folder in folders]
  for path in paths:
    _check(path)
  real = [path.resolve() for path in paths]
  if twice := [str(path) for i, path in enumerate(paths) if real[i] in real[:i]]:
    raise UserError(f"run {twice[0]} is named twice.", hint="a comparison is between different runs")
  return [_open(path, name) for path, name in zip(paths, _names(real), strict=True)]


def _open(path: Path, name: str) -> Run:
  gin = path / GIN
  text = gin.read_text(encoding="utf-8") if gin.is_file() else ""
  return Run(path, name, read_results(path), read_metrics(path), read_record(path), text)


def _names(paths: Sequence[Path]) -> list[str]:
  for parts in range(1, max((len(path.parts) for path in paths), default=1) + 1):
    names = ["/".join(path.parts[-parts:]) for path in paths]
    if len(set(names)) == len(names):
      break
  return names


def _check(path: Path) -> None:
  if any((path / name).is_file() for name in LOOKED_FOR):
    return
  looked = f"a run has one of: {', '.join(LOOKED_FOR)}"
  if not path.exists():
    raise UserError(f"{path} is not there.", hint=looked)
  if not path.is_dir():
    raise UserError(f"{path} is a file, not a run folder.", hint=looked)
  inside = sorted(each.name for each in path.iterdir() if any((each / name).is_file() for name in LOOKED_FOR))
  if inside:
    more = ", ..." if len(inside) > 5 else ""
    looked = f"{looked}; the folders in it are runs: {', '.join(inside[:5])}{more}"
  raise UserError(f"{path} is not a run folder: it has none of {', '.join(LOOKED_FOR)}.", hint=looked)


def arms(runs: Sequence[Run]) -> dict[str, dict[int, Run]]:
  """arm -> seed -> run. Folders NAME-SEED are runs of the arm NAME, if all arms then have the same several seeds.

  Otherwise each run is an arm, with no more than its one seed.
  """
  found: dict[str, dict[int, Run]] = {}
  for run in runs:
    match = re.fullmatch(r"(.+?)[-_](?:seed)?(\d+)", run.name)
    if match is None or run.seed is None or int(match[2]) != run.seed:
      break
    found.setdefault(match[1], {})[run.seed] = run
  alike = len({frozenset(seeds) for seeds in found.values()}) == 1 and sum(map(len, found.values())) == len(runs)
  return found if alike and 1 < len(found) < len(runs) else {run.name: {0: run} for run in runs}
