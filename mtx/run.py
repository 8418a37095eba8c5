"""The command line: parse gin, build, call one function."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gin

from mtx import (
  datatool,
  decodetool,
  evaluatetool,
  ginfile,
  modeltool,
  reporttool,
  reproduce,
  scoretool,
  startmodel,
  sweep,
)
from mtx.check import check
from mtx.errors import UserError, did_you_mean
from mtx.eval.evaluate import Evaluation
from mtx.parallel.mesh import make_mesh
from mtx.report.reporter import Reporter
from mtx.sources import Mixtures, cached_mixture, cached_registered, nothing_built
from mtx.training.loop import Preempted
from mtx.training.session import Carried, Session, copied

CONFIGURABLES = (
  "adapters.lora", "adapters.poly", "adapters.site", "analysis.gradients", "eval.fewshot", "eval.modular_teacher",
  "eval.protocol", "eval.recipe", "eval.sample_efficiency", "eval.single_task", "eval.tune", "merge.average",
  "tasks.chosen", "training.rates", "training.stage",
)  # fmt: skip
# In mtx/tasks: what a gin file may bind.
PROVIDERS = (
  "arithmetic", "bbh", "clinical", "facts", "flan_cot", "gsm8k", "language", "mgsm", "numbers", "nusax", "own",
  "procedural", "programs", "promptsource", "rates", "self_instruct", "shots", "superni", "tatoeba", "text", "tfds",
  "xcopa", "xquad", "xwinograd",
)  # fmt: skip
# These need SeqIO; where it is not installed, others take their bindings.
SEQIO = {
  "mixture": ("mtx.tasks.mixture", cached_mixture),
  "registered": ("mtx.tasks.registered", cached_registered),
  "build": ("mtx.data.build", nothing_built),
}
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
  keep_model: bool = True,
) -> Path:
  """Runs all stages and writes the report.

  Args:
    source: a provider of tasks, `@superni` for example, or `@mixture`, which joins several; or the name of one whose
      tasks are in the cache already, which needs no SeqIO (where it is not installed, `@superni` means just that).
    stages: in order, each `@NAME/stage()` or `@fewshot()`; each gets the model of the one before, or of the one that
      its `after` names.
    run_dir: checkpoints, logs, results and report.html; a run that was stopped goes on from what is there.
    cache_dir: tokenised tasks, shared by all runs.
    seed: of everything random.
    inputs_length, targets_length: most tokens of an example, EOS included.
    evaluate_every, save_every: steps; 0 = only at the end of a stage.
    keep_model: whether the run ends with its whole model in RUN_DIR/model, for `mtx decode` and `mtx export`.

  Returns:
    The path of report.html.
  """
  names = [s.name for s in stages]
  if len(set(names)) < len(names):
    raise UserError(f"binding `train.stages`: two stages are called {max(names, key=names.count)!r}.")
  after = {stage.name: getattr(stage, "after", None) for stage in stages}
  for i, (name, earlier) in enumerate(after.items()):
    if earlier is not None and earlier not in names[:i]:
      hint = did_you_mean(earlier, names[:i])
      raise UserError(f"binding `{name}/stage.after`: {earlier!r} is no stage before {name!r}.", hint=hint)
  folder = Path(run_dir)
  reporter = Reporter(folder)
  evaluation = Evaluation()
  open_mixture = Mixtures(source, cache_dir, reporter.note)
  for stage in stages:
    open_mixture.check(stage.mixture, f"{stage.name}/stage.mixture", "stage.mixture", f"{stage.name}.mixture")
  for name in evaluation.mixtures:
    open_mixture.check(name, "evaluation.mixtures")
  # Only now JAX starts: whatever is misspelt has been said.
  mesh = make_mesh()
  config, found = startmodel.chosen()
  folder.mkdir(parents=True, exist_ok=True)
  vocabulary = open_mixture("train").vocabulary
  if found is None:
    config.vocab_size = _padded(vocabulary.size)
  else:
    startmodel.check_vocabulary(found, vocabulary)
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
    evaluate=evaluation,
    reporter=reporter,
    gin=ginfile.operative,
    start=found,
  )
  reporttool.begin(session, stages, open_mixture.opened)
  carried = None
  kept: dict[str, Carried] = {}
  for stage in stages:
    earlier = after[stage.name]
    carried = stage.run(session, carried if earlier is None else copied(kept[earlier]))
    if stage.name in after.values():
      kept[stage.name] = copied(carried)
    reporttool.went_on(session, open_mixture.opened)
  if keep_model:
    _keep(session, carried, stages, found)
  reporttool.went_on(session, open_mixture.opened, finished=True)
  return reporttool.finish(session, reporter.console)


def _keep(session: Session, carried: Any, stages: Sequence[Any], found: Any) -> None:
  """Keeps the model; what can not be kept is told and costs nothing that the run has made."""
  try:
    session.reporter.note(f"model: {startmodel.keep(session, carried, stages, found)}")
  except (UserError, OSError) as error:
    session.reporter.note(f"the model was not kept: {error}")


def _padded(size: int, multiple: int = 128) -> int:
  """Vocabulary rows rounded up: divisible by any mesh, and aligned for accelerators."""
  return -(-size // multiple) * multiple


def parser() -> argparse.ArgumentParser:
  top = argparse.ArgumentParser(prog="mtx", description="Multitask fine-tuning: one gin file, one model, every task.")
  commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
  for name, text in COMMANDS.items():
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument("--debug", action="store_true", help="show tracebacks")
    if name != "check":
      command.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="may be repeated")
      command.epilog = "Bindings: --gin.NAME=VALUE, after all files; NAME is a macro or configurable.parameter."
  datatool.add_commands(commands)
  modeltool.add_commands(commands)
  decodetool.add_commands(commands)
  evaluatetool.add_commands(commands)
  reproduce.add_commands(commands)
  sweep.add_commands(commands)
  reporttool.add_commands(commands)
  scoretool.add_commands(commands)
  return top


def main(argv: Sequence[str] | None = None) -> int:
  """Entry point of the `mtx` script. Exit code 2 and one clear message for what the user can mend."""
  arguments, rest = parser().parse_known_args(argv)
  try:
    return _call(arguments, rest)
  except UserError as error:
    if arguments.debug:
      raise
    print(f"mtx: {error.text}", file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    if arguments.debug:
      raise
    print("mtx: stopped; the same command goes on from what is done.", file=sys.stderr)
    return 130


def _call(arguments: argparse.Namespace, rest: list[str]) -> int:
  bindings = [word.removeprefix("--gin.") for word in rest if word.startswith("--gin.") and "=" in word]
  others = [word for word in rest if not (word.startswith("--gin.") and "=" in word)]
  if others and not getattr(arguments, "beam", False):
    raise UserError(f"argument {others[0]!r} is not known.", hint="bindings are written --gin.NAME=VALUE")
  if arguments.command == "check":
    return check()
  no_gin = ("cache", *modeltool.COMMANDS, *reporttool.COMMANDS, *scoretool.COMMANDS)
  if arguments.command in no_gin and bindings:
    raise UserError(f"argument '--gin.{bindings[0]}' is not known.", hint=f"`mtx {arguments.command}` reads no gin")
  if arguments.command in modeltool.COMMANDS:
    return modeltool.run(arguments)
  if arguments.command in ("reproduce", "sweep"):
    register()
    return (reproduce if arguments.command == "reproduce" else sweep).run(arguments, bindings)
  if arguments.command in reporttool.COMMANDS:
    return reporttool.run(arguments)
  if arguments.command in scoretool.COMMANDS:
    return scoretool.run(arguments)
  if arguments.command == "evaluate":
    register()
    return evaluatetool.run(arguments, bindings)
  if arguments.command in ("data", "cache", "decode"):
    if bindings or getattr(arguments, "gin_file", None):
      register()
      ginfile.load(arguments.gin_file, bindings, idle=["train", "model"])
      startmodel.bind_vocabulary()
    return decodetool.run(arguments) if arguments.command == "decode" else datatool.run(arguments, others)
  if not arguments.gin_file:
    raise UserError(f"`mtx {arguments.command}` needs a gin file.", hint="--gin_file=configs/run/quickstart.gin")
  register()
  ginfile.load(arguments.gin_file, bindings, called=["train"])
  startmodel.bind_vocabulary()
  try:
    train()
  except Preempted as stopped:
    print(f"mtx: {stopped}", file=sys.stderr)
    return 143
  return 0


def register() -> None:
  """Imports every module whose configurables a gin file may name."""
  for name in CONFIGURABLES:
    importlib.import_module(f"mtx.{name}")
  for name in PROVIDERS:
    importlib.import_module(f"mtx.tasks.{name}")
  for name, (module, stand_in) in SEQIO.items():
    if find_spec("seqio"):
      importlib.import_module(module)
    else:
      gin.external_configurable(stand_in, name)


if __name__ == "__main__":
  sys.exit(main())
