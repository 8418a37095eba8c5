"""`mtx decode`: a model's outputs for JSON lines or for a split of tasks, as JSON lines in the same order."""

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from mtx import ginfile
from mtx.data.vocabulary import Vocabulary
from mtx.decode.settings import Settings
from mtx.errors import UserError, did_you_mean
from mtx.eval.generate import ROWS, Generator, Prediction
from mtx.eval.jsonlines import PROMPTS, Output, read_lines
from mtx.parallel.mesh import make_mesh
from mtx.pretrained.model import Opened, open_model
from mtx.report.progress import Progress
from mtx.sources import Mixtures

CACHE_DIR = ".cache/mtx"
# Lines that are sorted by length at a time: more makes fuller batches, fewer loses less when a run is stopped.
WINDOW = 2048
Open = Callable[..., Opened]
# Flags in place of `decode.*`: name, type, what it does.
FLAGS: tuple[tuple[str, Callable[[str], Any], str], ...] = (
  ("length", int, "most tokens of an output"),
  ("samples", int, "outputs a prompt"),
  ("temperature", float, "0 takes the most probable token; otherwise tokens are drawn"),
  ("top_k", int, "draw from the k most probable tokens"),
  ("top_p", float, "draw from the fewest tokens whose probabilities sum to p"),
  ("min_p", float, "draw from tokens with at least p times the probability of the most probable one"),
  ("repetition_penalty", float, "over 1: less of what was there already"),
  ("beams", int, "width of beam search"),
  ("length_penalty", float, "of beam search: log-probability / tokens ** length_penalty"),
)


@dataclass(frozen=True)
class Item:
  """One prompt. `carried` is written before its outputs; `task` is the router's row."""

  carried: dict[str, Any]
  inputs: np.ndarray
  task: int


def add_commands(commands: argparse._SubParsersAction) -> None:
  """Adds `decode` to the command line."""
  text = "write a model's outputs for JSON lines or a split of tasks; the same command goes on where it stopped"
  command = commands.add_parser("decode", help=text, description=text)
  command.add_argument("model", metavar="MODEL", help="a Hugging Face folder, an imported one, or a run's folder")
  command.add_argument("--input", metavar="FILE", help=f"JSON lines, each with one of: {', '.join(PROMPTS)}")
  command.add_argument("--output", metavar="FILE", required=True, help="JSON lines, in the order of the input")
  command.add_argument("--mixture", metavar="NAME", help="instead of --input: train, heldout, or a mixture's name")
  command.add_argument("--split", default="test", help="of --mixture; default test")
  command.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="whose train.source is read")
  command.add_argument("--cache_dir", metavar="FOLDER", help=f"in place of train.cache_dir; default {CACHE_DIR}")
  command.add_argument("--architecture", help="prefix or causal, for a decoder that can be both")
  command.add_argument("--inputs_length", type=int, default=1024, metavar="N", help="most tokens of a prompt, 1024")
  command.add_argument("--rows", type=int, default=ROWS, metavar="N", help=f"most prompts a batch, {ROWS}")
  command.add_argument("--seed", type=int, default=0, help="of what is drawn")
  command.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends an output; may be repeated")
  for name, kind, what in FLAGS:
    command.add_argument(f"--{name}", type=kind, metavar="N" if kind is int else "X", help=what)
  command.add_argument("--debug", action="store_true", help="show tracebacks")
  command.epilog = "Also by gin: --gin.decode.temperature=0.7; flags come before gin."


def run(arguments: argparse.Namespace, *, opener: Open = open_model) -> int:
  """Does what a parsed command line asks for; gin is bound already. Returns the exit code."""
  console = Console(highlight=False)
  settings = chosen_settings(arguments)
  if (arguments.input is None) == (arguments.mixture is None):
    raise UserError("`mtx decode` reads either --input FILE or --mixture NAME.", hint="give one of them")
  for name in ("inputs_length", "rows"):
    if getattr(arguments, name) < 1:
      raise UserError(f"--{name} is {getattr(arguments, name)}.", hint="1 or more")
  source = JsonLines(arguments, settings) if arguments.input else Split(arguments, console)
  output = Output(Path(arguments.output), _record(arguments, settings, source.content))
  if output.done == source.count:
    console.print(f"{arguments.output}: all {output.done:,} lines are there", soft_wrap=True)
    return 0
  mesh = make_mesh()
  opened = opener(arguments.model, mesh, architecture=arguments.architecture)
  if opened.vocabulary is None:
    raise UserError(f"{arguments.model} has no vocabulary.", hint="put its tokenizer's files into its folder")
  items = source.items(opened, opened.vocabulary)
  if output.done > len(items):
    raise UserError(
      f"{arguments.output} has {output.done:,} lines, and the input has {len(items):,}.", hint="write to another file"
    )
  if cut := sum(len(item.inputs) > arguments.inputs_length for item in items):
    console.print(f"{cut:,} of {len(items):,} prompts are cut to {arguments.inputs_length:,} tokens (--inputs_length)")
  if late := _past_positions(opened, items, arguments.inputs_length, settings):
    console.print(
      f"{late:,} of {len(items):,} prompts can go on past the {opened.config.absolute_positions:,} positions that the "
      "model has learned; the last one then repeats (--inputs_length, --length)"
    )
  generator = Generator(
    opened.blueprint,
    opened.config,
    mesh,
    opened.vocabulary,
    inputs_length=arguments.inputs_length,
    settings=settings,
    rows=min(arguments.rows, 1 << max(len(items) - 1, 0).bit_length()),  # few prompts: no batch of filling
  )
  done = output.done
  with Progress("decode", len(items), done, console=console) as progress, output:
    for line in predict(generator, opened.params, items, done, arguments.seed):
      output.write(line)
      done += 1
      progress.update(done)
  console.print(f"{arguments.output}: {done:,} lines", soft_wrap=True)
  return 0


def _past_positions(opened: Opened, items: Sequence[Item], inputs_length: int, settings: Settings) -> int:
  """How many prompts and their outputs may be longer than a table of positions; an encoder has its own."""
  places = opened.config.absolute_positions
  lengths = [min(len(item.inputs), inputs_length) for item in items]
  if opened.config.architecture == "encdec":
    return sum(max(length, settings.length) > places for length in lengths) if places else 0
  return sum(length + settings.length > places for length in lengths) if places else 0


def predict(generator: Generator, params, items: Sequence[Item], done: int, seed: int) -> Iterator[dict[str, Any]]:
  """Lines of the output after the first `done`, in order, each as soon as all before it are known.

  What a line draws depends on its number, and windows begin at the same lines wherever a run was stopped.
  """
  key = jax.random.key(seed)
  for start in range(done // WINDOW * WINDOW, len(items), WINDOW):
    places = range(max(start, done), min(start + WINDOW, len(items)))
    window = [{"inputs": items[i].inputs, "id": f"line {i + 1}"} for i in places]
    tasks = [items[i].task for i in places]
    ready: dict[int, Prediction] = {}
    following = 0
    for place, prediction in generator.stream(params, window, tasks, key=key, rows=list(places)):
      ready[place] = prediction
      while following in ready:
        yield _line(items[places[following]].carried, ready.pop(following))
        following += 1


def _line(carried: dict[str, Any], prediction: Prediction) -> dict[str, Any]:
  values: Any = (list(prediction.texts), list(prediction.scores))
  if len(prediction.texts) == 1:
    values = (prediction.texts[0], prediction.scores[0])
  return {**carried, **dict(zip(_names(len(prediction.texts)), values, strict=True))}


def chosen_settings(arguments: argparse.Namespace) -> Settings:
  """What gin binds, and flags over it. Raises UserError for values that do not fit."""
  given = {name: value for name, _, _ in FLAGS if (value := getattr(arguments, name)) is not None}
  stop = {"stop": tuple(arguments.stop)} if arguments.stop else {}
  return Settings(**(given | stop))


class JsonLines:
  """The prompts of --input.

  Attributes:
    content: a hash of all that is read.
    count: prompts.
  """

  def __init__(self, arguments: argparse.Namespace, settings: Settings):
    self._path = Path(arguments.input)
    self._lines = read_lines(self._path)
    for written in _names(settings.samples):
      if any(written in line for line in self._lines):
        raise UserError(f"{self._path} has a field {written!r}, as the output will be called.", hint="rename it")
    self.content, self.count = _digest(self._path.read_bytes()), len(self._lines)

  def items(self, opened: Opened, vocabulary: Vocabulary) -> list[Item]:
    """A model with routers reads the router's row from the line's "task"."""
    opens = [] if vocabulary.opens_id is None else [vocabulary.opens_id]
    closes = [vocabulary.eos_id] if vocabulary.closes_inputs else []
    made = []
    for number, line in enumerate(self._lines, 1):
      if "turns" in line:
        ids = vocabulary.chat_ids(line["turns"], add_generation_prompt=True)
      else:
        ids = [*opens, *vocabulary.encode(line["inputs" if "inputs" in line else "prompt"]), *closes]
      row = _row(line.get("task"), f"{self._path}: prompt {number}", opened)
      made.append(Item(line, np.array(ids, np.int32), row))
    return made


class Split:
  """The prompts of --mixture and --split, task by task; attributes as of `JsonLines`."""

  def __init__(self, arguments: argparse.Namespace, console: Console):
    note = lambda text: console.print(text, markup=False, soft_wrap=True)
    cache = arguments.cache_dir or ginfile.value("train.cache_dir", CACHE_DIR)
    if arguments.gin_file:
      mixtures = Mixtures(ginfile.value("train.source", None), cache, note)
    else:
      mixtures = Mixtures.cached(cache, note, arguments.mixture)
    mixtures.check(arguments.mixture)
    self._mixture, self._split = mixtures(arguments.mixture), arguments.split
    for task in self._mixture.tasks:
      if self._split not in task.splits:
        raise UserError(f"task {task.name} has no split {self._split!r}.", hint=did_you_mean(self._split, task.splits))
    self.content = _digest(json.dumps([[task.name, task.fingerprint] for task in self._mixture.tasks]).encode())
    self.count = sum(len(task.splits[self._split]) for task in self._mixture.tasks)

  def items(self, opened: Opened, vocabulary: Vocabulary) -> list[Item]:
    """Raises UserError for tasks that were tokenised otherwise than the model reads."""
    if vocabulary.fingerprint != self._mixture.vocabulary.fingerprint:
      raise UserError(
        f"mixture {self._mixture.name} was tokenised with another vocabulary than the model has.",
        hint="build it with the model's vocabulary, or decode its texts with --input",
      )
    made = []
    for task in self._mixture.tasks:
      split, row = task.splits[self._split], _row(task.name, f"mixture {self._mixture.name}", opened)
      for example in (split[i] for i in range(len(split))):
        carried = {"task": task.name, "id": example["id"], "references": list(example["references"])}
        made.append(Item(carried, np.asarray(example["inputs"], np.int32), row))
    return made


def _row(name: Any, place: str, opened: Opened) -> int:
  """The router's row of a task. A model that routes in one way for all needs no name."""
  if len(opened.tasks) < 2:
    return 0
  if name is None:
    raise UserError(f"{place} has no 'task', and the model routes by task.", hint=did_you_mean("", opened.tasks))
  if name not in opened.tasks:
    raise UserError(f"{place}: the model has no row for task {name!r}.", hint=did_you_mean(str(name), opened.tasks))
  return opened.tasks.index(name)


def _record(arguments: argparse.Namespace, settings: Settings, content: str) -> dict[str, Any]:
  """All that the output depends on, as it is kept beside it."""
  names = ("model", "mixture", "split", "architecture", "inputs_length", "seed")
  wanted = {name: value for name, value in asdict(settings).items() if name not in ("eos_ids", "pad_id", "stop_ids")}
  made = {**{name: getattr(arguments, name) for name in names}, "input": content, **wanted}
  return json.loads(json.dumps(made))  # as it will be read


def _digest(content: bytes) -> str:
  return hashlib.blake2b(content, digest_size=16).hexdigest()


def _names(samples: int) -> tuple[str, str]:
  return ("prediction", "score") if samples == 1 else ("predictions", "scores")
