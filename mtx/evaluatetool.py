"""`mtx evaluate`: models that are there, on a protocol: shots x selectors x prompts x seeds, all on the same items."""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from rich.console import Console

from mtx import ginfile, startmodel
from mtx.check import versions
from mtx.data.cache import CachedMixture
from mtx.errors import UserError
from mtx.eval.averages import MEDIAN
from mtx.eval.evaluate import Evaluation
from mtx.eval.protocol import Protocol
from mtx.eval.statistics import align
from mtx.parallel.mesh import make_mesh
from mtx.pretrained.model import Found, Opened, find_model, open_model
from mtx.report.protocol import protocol_tables
from mtx.report.record import code_record, data_record
from mtx.report.reporter import Reporter
from mtx.report.runs import open_runs
from mtx.seeds import parse_seeds
from mtx.sources import Mixtures
from mtx.training.session import Carried, Row, Session

OUT, CACHE_DIR, GIN = "runs/protocols", ".cache/mtx", "operative.gin"


@dataclass(frozen=True)
class Model:
  """A model that is named on the command line; it is opened when its turn comes."""

  name: str
  path: Path
  found: Found


def add_commands(commands: argparse._SubParsersAction) -> None:
  """Adds `evaluate` to the command line."""
  text = "judge models zero-shot, few-shot in context or few-shot tuned, on the same items; the same command goes on"
  command = commands.add_parser("evaluate", help=text, description=text)
  command.add_argument(
    "models", nargs="+", metavar="[NAME=]MODEL", help="a run's folder, an imported one, or a checkpoint"
  )
  command.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="default: the first run's own")
  command.add_argument("--seeds", default="0", metavar="S,S", help="of the shots that are drawn; default 0")
  command.add_argument("--out", default=OUT, metavar="FOLDER", help=f"a run NAME-SEED in it for each; default {OUT}")
  command.add_argument("--debug", action="store_true", help="show tracebacks")
  command.epilog = "The grid: --gin.protocol.shots='(0, 5)', and what `python -m pydoc mtx.eval.protocol` lists."


def run(arguments: argparse.Namespace, bindings: Sequence[str] = ()) -> int:
  """Does what a command line asks for. Returns the exit code.

  Args:
    bindings: `NAME=VALUE`.
  """
  console = Console(highlight=False)
  seeds = parse_seeds(arguments.seeds, "0,1,2")
  ginfile.load(_files(arguments), bindings, called=["protocol"], idle=["train", "model"])
  protocol = Protocol()
  named = _named(arguments.models)
  found = [Model(name, path, find_model(path)) for name, path in named.items()]
  for model in found:
    if model.found.vocabulary is None:
      raise UserError(f"{model.path} has no vocabulary.", hint="put its tokenizer's files into its folder")
  free = startmodel.needs_vocabulary(), ginfile.value("mixture.extra_ids", None)
  mesh, out = make_mesh(), Path(arguments.out)
  rows: dict[str, list[Row]] = {}
  folders: dict[str, dict[int, Path]] = {}
  for model in found:
    console.print(f"{model.name}: {model.path}", markup=False, soft_wrap=True)
    folders[model.name] = {seed: out / f"{model.name}-{seed}" for seed in seeds}
    rows[model.name] = _judge(protocol, model, folders[model.name], mesh, console, free)
  console.print(protocol_tables(rows))
  _check_pairs(rows, folders, protocol.name)
  runs = [str(folder) for of in folders.values() for folder in of.values()]
  console.print(f"mtx report {' '.join(runs)}", markup=False, soft_wrap=True)
  return 0


def _judge(
  protocol: Protocol,
  model: Model,
  folders: Mapping[int, Path],
  mesh: Mesh,
  console: Console,
  free: tuple[bool, int | None],
) -> list[Row]:
  """The rows of one model with all seeds.

  Args:
    free: whether the data takes the model's vocabulary, and the number of sentinels that the config gives it.
  """
  if free[0]:
    startmodel.bind_vocabulary_of(model.found, sentinels=free[1])
  reporters = {seed: Reporter(folder, console) for seed, folder in folders.items()}
  first = next(iter(reporters.values()))
  source, cache = ginfile.value("train.source", None), ginfile.value("train.cache_dir", CACHE_DIR)
  mixtures = Mixtures(source, cache, first.note)
  if not mixtures.has(protocol.mixture):
    mixtures.check(protocol.mixture, "protocol.mixture")
  opened = open_model(model.path, mesh)
  mixture = partial(_mixture, mixtures, opened)
  startmodel.check_vocabulary(model.found, mixture(protocol.mixture).vocabulary)
  sessions = []
  for seed, folder in folders.items():
    folder.mkdir(parents=True, exist_ok=True)
    sessions.append(_session(folder, seed, opened, mesh, mixture, reporters[seed]))
    reporters[seed].begin(
      seed=seed,
      model=str(model.path.resolve()),
      stages=[{"name": protocol.name, "steps": None}],
      versions=versions(),
      devices=f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
      mesh=dict(mesh.shape),
      code=code_record(),
      data=data_record([mixture("train"), mixture(protocol.mixture)]),
      finished=False,
    )
  found = protocol.grid(sessions, carried(opened))
  for session in sessions:
    (session.run_dir / GIN).write_text(ginfile.operative(), encoding="utf-8")
    session.reporter.record(finished=True)
  return [row for of_seed in found for row in of_seed]


def _session(
  folder: Path,
  seed: int,
  opened: Opened,
  mesh: Mesh,
  mixture: Callable[[str], CachedMixture],
  reporter: Reporter,
) -> Session:
  return Session(
    run_dir=folder,
    config=opened.config,
    mesh=mesh,
    seed=seed,
    mixture=mixture,
    inputs_length=ginfile.value("train.inputs_length", 128),  # by default as `train`
    targets_length=ginfile.value("train.targets_length", 32),
    evaluate_every=0,
    save_every=0,
    evaluate=Evaluation(),
    reporter=reporter,
    gin=ginfile.operative,
  )


def carried(opened: Opened) -> Carried:
  """A model that was opened, as a stage would hand it on."""
  injections = opened.found.injections

  def adapter(model: Any, tasks: int, rngs: Any) -> None:
    for each in injections:
      each.inject(model, rngs, tasks)

  return Carried(opened.blueprint, opened.params, adapter if injections else None, opened.tasks, True)


def _mixture(mixtures: Mixtures, opened: Opened, name: str) -> CachedMixture:
  """A source that only has held-out tasks has nothing to train on."""
  if name == "train" and not mixtures.has(name):
    assert opened.vocabulary is not None
    return CachedMixture(name, (), (), opened.vocabulary)
  return mixtures(name)


def _check_pairs(rows: Mapping[str, Sequence[Row]], folders: Mapping[str, Mapping[int, Path]], stage: str) -> None:
  """Every cell of every model has the same items with all seeds; what was read on the way is not damaged.

  Raises:
    UserError: items differ; names them. A damaged predictions file; names the line.
  """
  everyone = [row for of in rows.values() for row in of if row["prompt"] != MEDIAN]
  tasks = {row["task"] for row in everyone}  # others may lie there from an earlier, larger grid
  runs = {(model, seed): open_runs([folder])[0] for model, of in folders.items() for seed, folder in of.items()}
  for cell in dict.fromkeys((stage, row["method"], row["split"]) for row in everyone):
    scores: dict[str, dict[int, dict]] = {model: {} for model in rows}
    for (model, seed), each in runs.items():
      for evaluated in each.evaluated:
        if (evaluated.stage, evaluated.method, evaluated.split) == cell:
          answers = ((item, answer) for item, answer in evaluated.answers.items() if item[0] in tasks)
          # What only has a score of all answers together is paired all the same.
          scores[model][seed] = {item: next(iter(answer.scores.values()), 0.0) for item, answer in answers}
    align(scores)


def _files(arguments: argparse.Namespace) -> list[str]:
  """The gin files that are named; else what the first model's run was made with."""
  if arguments.gin_file:
    return arguments.gin_file
  path = Path(arguments.models[0].rpartition("=")[2])
  for folder in (path, path.parent):
    if (folder / GIN).is_file():
      return [str(folder / GIN)]
  raise UserError(
    f"`mtx evaluate` needs a gin file: {path} is no run that has one.", hint="--gin_file=configs/run/quickstart.gin"
  )


def _named(written: Sequence[str]) -> dict[str, Path]:
  """Name -> path of every model; names are as short as tells them apart.

  Raises:
    UserError: two of one name, or a name that is none.
  """
  given = [word.rpartition("=") for word in written]
  paths = [Path(path) for _, _, path in given]
  shown = [path.resolve().parent if path.name == "model" else path.resolve() for path in paths]
  parts = next((n for n in range(1, 8) if len({path.parts[-n:] for path in shown}) == len(shown)), 1)
  named: dict[str, Path] = {}
  for (name, equals, _), path, long in zip(given, paths, shown, strict=True):
    name = name if equals else re.sub(r"[^\w.-]+", "-", "-".join(long.parts[-parts:]))
    if not re.fullmatch(r"\w[\w.-]*", name) or name in named:
      what = "names two models" if name in named else "is no name for a model"
      raise UserError(f"{name!r} {what}.", hint="write NAME=MODEL, with letters, digits, _, . and -")
    named[name] = path
  return named
