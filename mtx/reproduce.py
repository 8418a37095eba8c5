"""`mtx reproduce`: runs the small experiment of a method sheet, arm by arm, and judges what it promised."""

import argparse
import datetime
import functools
import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from mtx import ginfile
from mtx.atomic import write
from mtx.check import versions
from mtx.errors import UserError, did_you_mean
from mtx.eval.recipe import Recipe, Run, judge
from mtx.gintext import ROOTS
from mtx.launch import (
  DONE,
  FAILED,
  RUNNING,
  STOPPED,
  Job,
  bound_settings,
  differences,
  one_by_one,
  prepare,
  read,
  train_job,
)
from mtx.report.log import read_results, write_results
from mtx.report.progress import Progress, duration
from mtx.report.verdict import recipe_table, verdict_table
from mtx.seeds import parse_seeds

FOLDER, OUT, VERDICT, SEED = "configs/recipe", "runs/recipes", "verdict.json", "SEED"
IDLE = ("train", "model")  # need no values where only the declaration is read


def add_commands(commands: argparse._SubParsersAction) -> None:
  """Adds `reproduce` to the command line."""
  text = "run the small experiment of a method sheet and judge what it promised; the same command goes on"
  command = commands.add_parser("reproduce", help=text, description=text)
  command.add_argument("recipes", nargs="*", metavar="NN", help=f"in {FOLDER}: 10a, 10 for all of 10, or a gin file")
  command.add_argument("--list", action="store_true", help="every recipe with its last verdict")
  command.add_argument("--seeds", metavar="S,S", help="in place of the recipe's")
  command.add_argument("--dry_run", action="store_true", help="print what would be run")
  command.add_argument("--anew", action="store_true", help="move runs with other settings to old/, and run again")
  command.add_argument("--out", default=OUT, metavar="FOLDER", help=f"where runs lie; default {OUT}")
  command.add_argument("--debug", action="store_true", help="show tracebacks")
  command.epilog = "Bindings, --gin.NAME=VALUE, go to every arm. Exit code 1: a run failed or a promise was missed."


def run(arguments: argparse.Namespace, bindings: Sequence[str] = ()) -> int:
  """Does what a parsed command line asks for. Returns the exit code.

  Args:
    bindings: `NAME=VALUE`, for every arm.
  """
  console = Console(highlight=False)
  out = Path(arguments.out)
  if arguments.list:
    console.print(recipe_table(_line(file, out) for file in recipe_files().values()))
    return 0
  if not arguments.recipes:
    raise UserError("`mtx reproduce` needs a recipe.", hint=did_you_mean("", recipe_files()))
  codes = []
  for name, file in chosen_files(arguments.recipes).items():
    codes.append(Reproduction(name, file, out / name, arguments.seeds, bindings, console)(arguments))
    if codes[-1] not in (0, 1):
      break
  return max(codes)


def recipe_files() -> dict[str, str]:
  """Name -> gin file of every recipe that ships or lies in the working directory."""
  found: dict[str, str] = {}
  for root in (Path(), *ROOTS):
    for path in sorted((root / FOLDER).glob("*.gin")):
      found.setdefault(path.stem, f"{FOLDER}/{path.name}")
  return dict(sorted(found.items()))


def chosen_files(written: Sequence[str]) -> dict[str, str]:
  """The recipes that are asked for: by name, all parts of one (10 is 10a and 10b), or a file."""
  known = recipe_files()
  chosen: dict[str, str] = {}
  for word in written:
    pattern = re.escape(word) + ("[a-z]?" if word[-1:].isdigit() else "")
    parts = {name: file for name, file in known.items() if re.fullmatch(pattern, name)}
    if word.endswith(".gin"):
      parts = {Path(word).stem: word}
    if not parts:
      raise UserError(f"there is no recipe {word!r}.", hint=did_you_mean(word, known))
    chosen |= parts
  return chosen


def declared(file: str, bindings: Sequence[str] = ()) -> Recipe:
  """What a gin file binds to `recipe`.

  Raises:
    UserError: a mistake in the file, or it declares no recipe.
  """
  ginfile.load([file], bindings, called=["recipe"], idle=IDLE)
  return Recipe()


class Reproduction:
  """One recipe with its runs.

  Args:
    seeds: `10,11` in place of the recipe's; None: the recipe's.
    bindings: for every arm, after its own.
  """

  def __init__(self, name: str, file: str, folder: Path, seeds: str | None, bindings: Sequence[str], console: Console):
    self.name, self.file, self.folder, self.bindings, self.console = name, file, folder, bindings, console
    self.recipe = declared(file)
    self.seeds = tuple(self.recipe.seeds) if seeds is None else parse_seeds(seeds, "10,11,12")

  def __call__(self, arguments: argparse.Namespace) -> int:
    """Runs what is not done, judges, and keeps the verdict. Returns the exit code."""
    jobs = self.jobs()
    if arguments.dry_run:
      self._show(jobs)
      return 0
    kept = self._kept if arguments.anew else None
    ready = [(prepare(job, kept), work) for job, work in jobs]
    self.console.print(f"{self.name}: {self.recipe.title} ({self.recipe.source})", soft_wrap=True)
    done = sum(job.state == DONE for job, _ in ready)
    with Progress(self.name, len(ready), done, console=self.console) as progress:
      ended, through = one_by_one(ready, functools.partial(_tell, progress, len(ready), [done]))
    if not through:
      self.console.print(f"{self.name}: stopped; the same command goes on from what is done")
      return 143
    if failed := [job.name for job in ended if job.state == FAILED]:
      self.console.print(f"{self.name}: no verdict, {len(failed)} of {len(ended)} runs failed: {', '.join(failed)}")
      return 1
    return self._judge(sum(job.seconds for job in ended))

  def jobs(self) -> list[tuple[Job, Callable[[], Any] | None]]:
    """Every arm with every seed, and the function that does its work here; all are read before one is run."""
    made: list[tuple[Job, Callable[[], Any] | None]] = []
    for arm in self.recipe.arms:
      for seed in self.seeds:
        name, folder, bindings = f"{arm}-{seed}", self._folder(arm, seed), self._bindings(arm, seed)
        if self.recipe.run is None:
          made.append((train_job(name, folder, [self.file], bindings), None))
        else:
          settings = bound_settings([self.file], bindings, []) | {"seed": str(seed)}
          work = functools.partial(self._call, arm, seed, folder, bindings)
          made.append((Job(name, str(folder), [], settings), work))
    return made

  def _folder(self, arm: str, seed: int) -> Path:
    return self.folder / f"{arm}-{seed}"

  def _bindings(self, arm: str, seed: int) -> list[str]:
    before = list(self.recipe.arms)[: list(self.recipe.arms).index(arm)]

    def other(found: re.Match) -> str:
      if found[1] not in before:
        hint = did_you_mean(found[1], before) if before else "it is the first arm"
        raise UserError(f"recipe {self.name}, arm {arm!r}: {found[0]} is no arm before it.", hint=hint)
      return str(self._folder(found[1], seed))

    bindings = [re.sub(r"\{([A-Za-z_]\w*)\}", other, each) for each in self.recipe.arms[arm]]
    if self.recipe.run is None:
      try:
        ginfile.macro(SEED)
      except UserError as error:
        hint = f"write `{SEED} = 0` and bind it: `train.seed = %{SEED}`"
        raise UserError(f"recipe {self.name}: {self.file} defines no macro {SEED}.", hint=hint) from error
      bindings.append(f"{SEED}={seed}")
    return [*bindings, *self.bindings]

  def _call(self, arm: str, seed: int, folder: Path, bindings: Sequence[str]) -> None:
    """The work of an arm that is a function: its rows go where those of `mtx train` do."""
    function = declared(self.file, bindings).run
    assert function is not None
    write_results(folder, [{"seed": seed, **row} for row in function(arm, seed, folder)])

  def _kept(self, there: Path) -> None:
    self.console.print(f"run with other settings: kept as {there}", markup=False, soft_wrap=True)

  def _show(self, jobs: Sequence[tuple[Job, Any]]) -> None:
    for job, _ in jobs:
      there = read(Path(job.folder))
      state = "not run" if there is None else there.state
      if there is not None and (changed := differences(there.settings, job.settings)):
        state = f"run with other settings: {changed[0]}"
      self.console.print(f"{job.name}: {state}", soft_wrap=True)
      flags = [f"--gin.{binding}" for binding in self._bindings(*_arm_and_seed(job))]
      what = shlex.join(["mtx", "train", f"--gin_file={self.file}", *flags])
      what = what if job.command else f"recipe.run of {self.file}, here"
      self.console.print(f"  {what}", soft_wrap=True, markup=False)

  def _judge(self, seconds: float) -> int:
    runs = {
      arm: {seed: Run(read_results(folder), folder) for seed in self.seeds if (folder := self._folder(arm, seed))}
      for arm in self.recipe.arms
    }
    verdict = judge(self.recipe, runs, self.seeds)
    record = {
      "recipe": self.name,
      "met": verdict.met,
      "seeds": list(self.seeds),
      "seconds": seconds,
      "when": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
      "findings": [asdict(finding) for finding in verdict.findings],
      "measured": verdict.measured,
      "declared": _declaration(self.recipe),
      "bindings": list(self.bindings),
      "versions": versions(),
    }
    write(self.folder / VERDICT, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    self.console.print(verdict_table(verdict, f"{self.name}: {self.recipe.title}"))
    told = f"{sum(f.met for f in verdict.findings)} of {len(verdict.findings)} criteria met"
    many = f"{len(self.recipe.arms)} arms, seeds {', '.join(map(str, self.seeds))}, {duration(seconds)} in all"
    self.console.print(f"{self.name}: {told}; {many}; {self.folder / VERDICT}", soft_wrap=True)
    return 0 if verdict.met else 1


def _tell(progress: Progress, total: int, done: list[int], job: Job) -> None:
  if job.state == RUNNING:
    progress.note(f"{job.name}: running; {job.log if job.command else 'here'}")
    return
  what = {DONE: "done", STOPPED: "stopped"}.get(job.state, f"failed with code {job.code}:\n  {job.said()}")
  progress.note(f"{job.name}: {what} after {duration(job.seconds)}" if job.state != FAILED else f"{job.name}: {what}")
  done[0] += 1
  progress.update(min(done[0], total))


def _arm_and_seed(job: Job) -> tuple[str, int]:
  arm, _, seed = job.name.rpartition("-")
  return arm, int(seed)


def _declaration(recipe: Recipe) -> dict[str, Any]:
  """What a verdict is about, as JSON reads it back."""
  about = {name: getattr(recipe, name) for name in ("arms", "measures", "accept")}
  return json.loads(json.dumps(about))


def _line(file: str, out: Path) -> dict[str, Any]:
  """What `--list` says of a recipe; one that can not be read says why."""
  name = Path(file).stem
  try:
    recipe = declared(file)
  except UserError as error:
    return {"recipe": name, "title": error.message, "plan": "", "note": "can not be read"}
  seeds = ", ".join(map(str, recipe.seeds))
  plan = f"{len(recipe.arms)} arms, seeds {seeds}\n{recipe.minutes:g} min"
  path, last, note = out / name / VERDICT, None, ""
  if path.is_file():
    try:
      last = json.loads(path.read_text(encoding="utf-8"))
      if last["declared"] != _declaration(recipe):
        note = "the recipe has changed since"
      elif last["bindings"]:
        note = f"with {' '.join(last['bindings'])}"
    except (ValueError, KeyError) as error:
      last, note = None, f"{path} is damaged: {error}"
  return {"recipe": name, "title": recipe.title, "plan": plan, "last": last, "note": note}
