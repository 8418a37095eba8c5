"""`mtx data` and `mtx cache`: build, look at and check what a model will read, before it reads it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mtx import ginfile, startmodel
from mtx.data.audit import CHECKS, audit
from mtx.data.cache import CachedMixture
from mtx.errors import UserError, did_you_mean
from mtx.report.audit import audit_tables, length_figure
from mtx.report.caches import cache_table
from mtx.report.examples import show
from mtx.report.figures import save
from mtx.sources import Mixtures

CACHE_DIR = ".cache/mtx"
FIGURES = (".png", ".svg")


def add_commands(commands: argparse._SubParsersAction) -> None:
  """Adds `data build`, `data show`, `data check` and `cache` to the command line."""
  data = commands.add_parser("data", help="build, look at and check tasks and mixtures")
  actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")

  def action(name: str, text: str) -> argparse.ArgumentParser:
    made = actions.add_parser(name, help=text, description=text)
    made.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="whose train.source is read")
    made.add_argument("--cache_dir", metavar="FOLDER", help=f"in place of train.cache_dir; default {CACHE_DIR}")
    made.add_argument("--debug", action="store_true", help="show tracebacks")
    return made

  build = action("build", "tokenise the tasks of a gin file into the cache, here or as an Apache Beam pipeline")
  build.add_argument("--beam", action="store_true", help="as a Beam pipeline; further options go to its runner")

  look = action("show", "print examples as a model will see them, with rates, caps and lengths above")
  look.add_argument("mixture", nargs="?", default="train", help="train, heldout, or the name of a mixture")
  look.add_argument("-n", type=int, default=2, help="rows to print")
  look.add_argument("--split", help="default: train, or test where nothing is learned from")
  look.add_argument("--tokens", type=int, default=120, help="of a row that are shown; 0 shows all")
  look.add_argument("--batches", type=int, default=8, help="to draw for the realised shares")

  check = action("check", "report overlap with evaluation sets, duplicates, empty or cut targets, imbalance, lengths")
  check.add_argument("mixture", nargs="?", default="train")
  check.add_argument("--against", nargs="*", default=["heldout"], metavar="MIXTURE", help="evaluation sets")
  check.add_argument("--fail_on", nargs="+", default=[], metavar="CHECK", help=f"exit with 1 on: {', '.join(CHECKS)}")
  check.add_argument("--figure", metavar="FILE", help="where histograms of lengths go: .png or .svg")

  cache = commands.add_parser("cache", help="list what is cached")
  cache.add_argument("--list", action="store_true", required=True, help="mixtures with their sizes")
  cache.add_argument("--cache_dir", default=CACHE_DIR, metavar="FOLDER")
  cache.add_argument("--debug", action="store_true", help="show tracebacks")


def run(arguments: argparse.Namespace, runner: Sequence[str] = ()) -> int:
  """Does what a parsed command line asks for; gin is bound already. Returns the exit code.

  Args:
    runner: options of a Beam runner.
  """
  console = Console(highlight=False)
  if arguments.command == "cache":
    console.print(cache_table(arguments.cache_dir))
    return 0
  _check(arguments)
  mixtures = _mixtures(arguments, console, runner)
  if arguments.action == "build":
    for name in mixtures.names:
      if mixtures.has(name):
        made = mixtures(name)
        examples = sum(len(split) for task in made.tasks for split in task.splits.values())
        console.print(f"{made.name}: {len(made.tasks)} tasks, {examples:,} examples")
    return 0
  lengths = {
    "inputs_length": ginfile.value("train.inputs_length", 128),
    "targets_length": ginfile.value("train.targets_length", 32),
  }
  mixture = _named(mixtures, arguments.mixture)
  if arguments.action == "show":
    show(
      mixture,
      arguments.n,
      architecture=startmodel.architecture(),
      split=arguments.split or _split(mixture),
      tokens=arguments.tokens or None,
      batches=arguments.batches,
      console=console,
      **lengths,
    )
    return 0
  against = [_named(mixtures, name) for name in arguments.against if mixtures.has(name) or name != "heldout"]
  if not against and "leaks" in arguments.fail_on:
    raise UserError(
      f"leaks of {mixture.name} can not be found: there is no evaluation set.", hint="name one with --against MIXTURE"
    )
  with console.status("reading"):
    found = audit(mixture, against, **lengths)
  problems = found.problems(arguments.fail_on) if arguments.fail_on else found.problems()
  console.print(audit_tables(found, problems))
  if not against:
    console.print("leaks were not looked for: there is no evaluation set, name one with --against MIXTURE")
  if arguments.figure:
    try:
      console.print(f"lengths: {save(length_figure(found), arguments.figure)}", soft_wrap=True)
    except OSError as error:
      raise UserError(f"--figure {arguments.figure} can not be written: {error.strerror}.") from error
  return 1 if arguments.fail_on and problems else 0


def _check(arguments: argparse.Namespace) -> None:
  """Raises UserError for what is written wrong, before anything is read or built."""
  for name, least in (("n", 0), ("tokens", 0), ("batches", 1)):
    value = getattr(arguments, name, least)
    if value < least:
      raise UserError(f"{'-' if name == 'n' else '--'}{name} is {value}.", hint=f"{least} or more")
  for name in getattr(arguments, "fail_on", ()):
    if name not in CHECKS:
      raise UserError(f"--fail_on names {name!r}, which is no check.", hint=did_you_mean(name, CHECKS))
  figure = getattr(arguments, "figure", None)
  if figure and Path(figure).suffix not in FIGURES:
    raise UserError(f"--figure {figure} ends with {Path(figure).suffix!r}.", hint=f"endings: {', '.join(FIGURES)}")


def _split(mixture: CachedMixture) -> str:
  """What is shown of a mixture: training rows if all its tasks have some, else what they are judged on."""
  has = lambda split: all(split in task.splits for task in mixture.tasks)
  return next(filter(has, ("train", "test", "validation")), "train")


def _mixtures(arguments: argparse.Namespace, console: Console, runner: Sequence[str]) -> Mixtures:
  cache_dir = arguments.cache_dir or ginfile.value("train.cache_dir", CACHE_DIR)
  jobs = None
  if getattr(arguments, "beam", False):
    from mtx.data.beam import pipeline  # an extra: pip install mtx[beam]

    jobs = pipeline(runner)
  elif runner:
    raise UserError(f"argument {runner[0]!r} is not known.", hint="options of a Beam runner go with --beam")
  note = lambda text: console.print(text, markup=False, soft_wrap=True)
  if not arguments.gin_file:
    if arguments.action == "build":
      raise UserError("`mtx data build` needs a gin file.", hint="--gin_file=configs/run/quickstart.gin")
    return Mixtures.cached(cache_dir, note, getattr(arguments, "mixture", ""))
  return Mixtures(ginfile.value("train.source", None), cache_dir, note, jobs)


def _named(mixtures: Mixtures, name: str) -> CachedMixture:
  mixtures.check(name)
  return mixtures(name)
