"""The command line: parse gin, build, call one function."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gin

from mtx import ginfile
from mtx.errors import UserError, did_you_mean

PROVIDERS = ("procedural", "superni", "registered")
COMMANDS = {
  "train": "run the stages of a gin file; the same command goes on where it was stopped",
  "check": "print versions and devices, train five steps on a mesh, say OK or what to mend",
}


@gin.configurable("train")
def train(
  source: Any = None,
  stages: Sequence[Any] = gin.REQUIRED,
  run_dir: str = gin.REQUIRED,
  cache_dir: str = ".cache/mtx",
  seed: int = 0,
  inputs_length: int = 128,
  targets_length: int = 32,
  evaluate_every: int = 0,
  save_every: int = 100,
) -> Path:
  """Runs all stages and writes the report.

  Args:
    source: a provider of tasks (`@superni`, `@procedural`, `@registered`), called to register them; where SeqIO is
      not installed the caches that were built elsewhere are used.
    stages: in order, each `@NAME/stage()` or `@fewshot()`; each gets the model of the one before.
    run_dir: checkpoints, logs, results and report.html; a run that was stopped goes on from what is there.
    cache_dir: tokenised tasks, shared by all runs.
    seed: of everything random.
    inputs_length, targets_length: most tokens of an example, EOS included.
    evaluate_every, save_every: steps; 0 = only at the end of a stage.

  Returns:
    The path of report.html.
  """
  from mtx.eval.evaluate import Evaluation
  from mtx.models.sizes import model_config
  from mtx.parallel.mesh import make_mesh
  from mtx.report.reporter import Reporter
  from mtx.training.session import Session

  names = [s.name for s in stages]
  if len(set(names)) < len(names):
    raise UserError(f"binding `train.stages`: two stages are called {max(names, key=names.count)!r}.")
  folder = Path(run_dir)
  folder.mkdir(parents=True, exist_ok=True)
  reporter = Reporter(folder)
  mesh = make_mesh()
  config = model_config()
  open_mixture = Mixtures(source, cache_dir, reporter)
  config.vocab_size = _padded(open_mixture("train").vocabulary.size)
  session = Session(
    run_dir=folder,
    config=config.lock(),
    mesh=mesh,
    seed=seed,
    mixture=open_mixture,
    inputs_length=inputs_length,
    targets_length=targets_length,
    evaluate_every=evaluate_every,
    save_every=save_every,
    evaluate=Evaluation(),
    reporter=reporter,
    gin=ginfile.operative,
  )
  carried, routed = None, None
  for stage in stages:
    carried = stage.run(session, carried)
    (folder / "operative.gin").write_text(ginfile.operative(), encoding="utf-8")
  return report(session, carried)


class Mixtures:
  """Opens caches by name, building what is stale if a provider is there."""

  def __init__(self, source, cache_dir: str, reporter):
    self._cache_dir, self._note, self._open = cache_dir, reporter.note, {}
    self._source = source() if callable(source) else source

  def __call__(self, name: str):
    if name not in self._open:
      self._open[name] = self._load(name)
    return self._open[name]

  def _load(self, name: str):
    if self._source is None:
      from mtx.data.cache import open_mixture

      return open_mixture(self._cache_dir, name)
    from mtx.data.build import build_mixture

    full = {"train": self._source.train, "heldout": self._source.heldout}.get(name, name)
    return build_mixture(self._source, full, self._cache_dir, log=self._note)


def _padded(size: int, multiple: int = 128) -> int:
  """Vocabulary rows rounded up: divisible by any mesh, and aligned for accelerators."""
  return -(-size // multiple) * multiple


def report(session, carried) -> Path:
  """Prints the final table and writes the HTML page."""
  import jax

  from mtx.adapters.routes import routing
  from mtx.check import versions
  from mtx.report.log import read_metrics, read_results
  from mtx.report.page import write_page
  from mtx.report.table import result_table

  rows = read_results(session.run_dir)
  weights = routing(carried.params, carried.model.axes)
  routes = None
  if weights is not None:
    tasks = session.mixture("train").tasks
    routes = {"weights": weights, "tasks": list(carried.tasks), "categories": {t.name: t.category for t in tasks}}
  page = write_page(
    session.run_dir,
    session.run_dir.name,
    rows,
    read_metrics(session.run_dir),
    routes,
    ginfile.operative(),
    {**versions(), "devices": f"{len(jax.devices())} x {jax.devices()[0].device_kind}", "mesh": str(dict(session.mesh.shape))},
    trainable=session.reporter.trainables,
  )
  session.reporter.console.print(result_table(rows))
  session.reporter.note(f"report: {page}")
  return page


def parser() -> argparse.ArgumentParser:
  top = argparse.ArgumentParser(prog="mtx", description="Multitask fine-tuning: one gin file, one model, every task.")
  commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
  for name, text in COMMANDS.items():
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument("--debug", action="store_true", help="show tracebacks")
    if name != "check":
      command.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="may be repeated")
      command.epilog = "Bindings: --gin.NAME=VALUE, after all files; NAME is a macro or configurable.parameter."
  return top


def main(argv: Sequence[str] | None = None) -> int:
  """Entry point of the `mtx` script. Exit code 2 and one clear message for what the user can mend."""
  arguments, rest = parser().parse_known_args(argv)
  try:
    return _call(arguments, rest)
  except UserError as error:
    if arguments.debug:
      raise
    print(f"mtx: {error}", file=sys.stderr)
    return 2


def _call(arguments: argparse.Namespace, rest: list[str]) -> int:
  bindings = []
  for word in rest:
    if not word.startswith("--gin.") or "=" not in word:
      raise UserError(f"argument {word!r} is not known.", hint="bindings are written --gin.NAME=VALUE")
    bindings.append(word.removeprefix("--gin."))
  if arguments.command == "check":
    from mtx.check import check

    return check()
  if not arguments.gin_file:
    raise UserError(f"`mtx {arguments.command}` needs a gin file.", hint="--gin_file=configs/run/quickstart.gin")
  register()
  ginfile.load(arguments.gin_file, bindings)
  from mtx.training.loop import Preempted

  try:
    train()
  except Preempted as stopped:
    print(f"mtx: {stopped}", file=sys.stderr)
    return 143
  return 0


def register() -> None:
  """Imports every module whose configurables a gin file may name."""
  import importlib

  for name in ("adapters.site", "adapters.lora", "adapters.poly", "eval.evaluate", "eval.fewshot", "merge.average",
               "models.sizes", "parallel.mesh", "training.stage"):
    importlib.import_module(f"mtx.{name}")
  from importlib.util import find_spec

  if find_spec("seqio"):
    for name in PROVIDERS:
      importlib.import_module(f"mtx.tasks.{name}")


if __name__ == "__main__":
  sys.exit(main())
