"""A grid of cells, one by one: what a model answers in each, with its scores, kept so that it can be gone on with."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import gin

from mtx.atomic import write
from mtx.decode.settings import Settings
from mtx.errors import UserError
from mtx.eval.answer import Answer, Answerer, routed
from mtx.eval.cells import PLAIN, Cell
from mtx.eval.earlier import identity
from mtx.eval.evaluate import judged_split, score_tasks, scored_examples, uniform
from mtx.eval.fewshot import FewShot, shots
from mtx.eval.levels import Judged
from mtx.eval.predictions import read_predictions
from mtx.eval.prompts import Asked, Prompt, asked, reworded
from mtx.eval.scoring import write_lines
from mtx.training.session import Carried, Row, Session

CELL = "cell.json"
ANEW = "write to another folder, or remove this one to judge anew"


class Grid:
  """One model in the cells of a protocol; each is settled, answered, scored and kept for itself.

  Args:
    name: of the protocol: the stage of its rows, and its folder in a run's.
    sessions: of one model and one set of tasks, that differ in seed and folder.
    judged: the tasks.
    prompts: by name.
    tuned: of cells that are tuned.
    pool, pool_examples, examples: see `mtx.eval.protocol.Protocol`.
  """

  def __init__(
    self,
    name: str,
    sessions: Sequence[Session],
    carried: Carried,
    judged: Sequence[Judged],
    *,
    prompts: Mapping[str, Prompt],
    tuned: FewShot | None,
    pool: str,
    pool_examples: int | None,
    examples: int,
  ):
    self.name, self.sessions, self.carried, self.judged = name, sessions, carried, judged
    self.prompts, self.tuned, self.pool, self.pool_examples = prompts, tuned, pool, pool_examples
    self.examples = examples
    self.vocabulary = sessions[0].mixture("train").vocabulary
    self.answerer = Answerer(sessions[0])
    self.items = {each.task.name: [e["id"] for e in scored_examples(each.task, examples)] for each in judged}
    self._uniform: Carried | None = None

  @cached_property
  def model(self) -> str:
    return identity(self.sessions[0], self.carried)

  @cached_property
  def hung(self) -> str:
    """Tells the adapters that tuning hangs on the model from others: a hash of their places and shapes."""
    assert self.tuned is not None
    shapes = self.sessions[0].blueprint(self.tuned.adapter, 1).shapes
    text = "".join(f"{path} {shape.shape}\n" for path, shape in sorted(shapes.items()))
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

  def __call__(self, cell: Cell) -> Iterator[list[Row]]:
    """The cell's rows of every session in turn. What does not depend on the seed is answered once."""
    answered: dict[str, list[Answer]] = {}
    tuner = Tuner(self, cell) if cell.tuned else None
    for session in self.sessions:
      folder = session.folder(self.name) / cell.method
      self._settle(folder, cell, session)
      if cell.seeded:
        answered = {}
      there = {(row["task"], row["metric"]) for row in self._rows(session, cell)}
      todo = []
      for each in self.judged:
        saved = self._saved(folder / f"{each.task.name}.jsonl", each)
        if saved is not None:
          answered[each.task.name] = saved
        if saved is None or not {(each.task.name, metric) for metric in each.metrics} <= there:
          todo.append((each, self._asked(cell, each, session)))
      fresh = [(each, examples) for each, examples in todo if each.task.name not in answered]
      if fresh and tuner is None:
        answered |= self._answers(session, fresh)
      for each, examples in todo:
        name = each.task.name
        if name not in answered:
          assert tuner is not None
          answered[name] = tuner(session, each, examples)
        self._score(cell, session, each, examples, answered[name], folder)
      rows = {(row["task"], row["metric"]): row for row in self._rows(session, cell)}
      wanted = [(each.task.name, metric) for each in self.judged for metric in each.metrics]
      yield [rows[key] for key in wanted if key in rows]  # a metric may be undefined for a task

  def _rows(self, session: Session, cell: Cell) -> list[Row]:
    return [row for row in session.reporter.saved_rows(self.name) if row["method"] == cell.method]

  def _asked(self, cell: Cell, each: Judged, session: Session) -> list:
    return asked(
      each.task,
      self.prompts[cell.prompt],
      self.vocabulary,
      self.examples,
      k=0 if cell.tuned else cell.shots,
      selector=cell.selector,
      pool=self.pool,
      pool_examples=self.pool_examples,
      inputs_length=session.inputs_length,
      seed=session.seed,
    )

  def _answers(self, session: Session, todo: Sequence[tuple[Judged, list]]) -> dict[str, list[Answer]]:
    """Tasks that the model has router rows for by these; others by a row that mixes all skills alike."""
    has_rows = routed(self.carried)
    own = [pair for pair in todo if not has_rows or pair[0].task.name in self.carried.tasks]
    others = [pair for pair in todo if has_rows and pair[0].task.name not in self.carried.tasks]
    found: dict[str, list[Answer]] = {}
    if others and self._uniform is None:
      self._uniform = uniform(session, self.carried)
    for model, pairs in ((self.carried, own), (self._uniform, others)):
      if not pairs:
        continue
      assert model is not None
      row = lambda name, model=model: model.tasks.index(name) if has_rows and model is self.carried else 0
      examples = [example for _, mine in pairs for example in mine]
      answers = iter(self.answerer(model, examples, [row(each.task.name) for each, mine in pairs for _ in mine]))
      found |= {each.task.name: [next(answers) for _ in mine] for each, mine in pairs}
    return found

  def _score(self, cell: Cell, session: Session, each: Judged, examples: list, answers: list[Answer], folder: Path):
    """Writes predictions, then rows: a task with rows is done."""
    common: Row = {
      "stage": self.name,
      "method": cell.method,
      "split": each.split,
      "step": self.tuned.steps if cell.tuned and self.tuned else 0,
      "seed": session.seed,
      "level": each.level,
      "shots": cell.shots,
      "selector": cell.selector,
      "prompt": "/".join(filter(None, (each.prompt, "" if each.prompt and cell.prompt == PLAIN else cell.prompt))),
      "dataset": each.dataset,
      "benchmark": each.benchmark,
    }
    task = replace(each.task, metrics=each.scored, splits={judged_split(each.task): Asked(examples)})
    lines: list[Row] = []
    given = lambda params, examples, ids: [answer.text for answer in answers]
    ranked = lambda params, examples, ids: [answer.ranked for answer in answers]
    rows = score_tasks(given, {}, [task], [0], len(examples), common, None, lines.extend, rank=ranked)
    scores = ({} if a.option_scores is None else {"option_scores": a.option_scores} for a in answers)
    write_lines(folder / f"{task.name}.jsonl", [line | more for line, more in zip(lines, scores, strict=True)])
    session.reporter.rows(rows)

  def _saved(self, file: Path, each: Judged) -> list[Answer] | None:
    """Answers of an earlier run.

    Raises:
      UserError: the file is damaged, or of other items.
    """
    if not file.is_file():
      return None
    here = [identity for _, identity in read_predictions(file)]
    wanted = self.items[each.task.name]
    if here != wanted:
      differs = next((i for i, pair in enumerate(zip(here, wanted, strict=False)) if len(set(pair)) > 1), None)
      what = f"item {here[differs]!r} in place of {wanted[differs]!r}" if differs is not None else f"{len(here)} items"
      raise UserError(f"{file} has {what}; task {each.task.name} is judged on {len(wanted)}.", hint=ANEW)
    lines = [json.loads(text) for text in file.read_bytes().split(b"\n") if text.strip()]
    return [Answer(line["prediction"], line.get("option_scores")) for line in lines]

  def check(self, cells: Sequence[Cell]) -> None:
    """Raises UserError where a cell has results of other settings, data or another model."""
    for cell in cells:
      for session in self.sessions:
        self._settings(session.folder(self.name) / cell.method, cell, session)

  def _settle(self, folder: Path, cell: Cell, session: Session) -> None:
    """Keeps what a cell's results depend on beside them."""
    settings = self._settings(folder, cell, session)
    write(folder / CELL, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")

  def _settings(self, folder: Path, cell: Cell, session: Session) -> dict[str, Any]:
    """What a cell's results depend on, with the data of tasks that it has results of already.

    Raises:
      UserError: results of other settings are there.
    """
    prompt = asdict(self.prompts[cell.prompt])
    settings: dict[str, Any] = {
      "shots": cell.shots,
      "selector": cell.selector,
      "prompt": prompt if cell.shots and not cell.tuned else {"query": prompt["query"]},
      "examples": self.examples,
      "inputs_length": session.inputs_length,
      "targets_length": session.targets_length,
      "decode": {k: v for k, v in asdict(Settings()).items() if k not in ("eos_ids", "pad_id", "stop_ids", "length")},
      "rank": dict(gin.get_bindings("rank")),
      "model": self.model,
    }
    if cell.shots:
      settings |= {"pool": self.pool, "pool_examples": self.pool_examples}
    if cell.seeded:
      settings["seed"] = session.seed
    if cell.tuned and self.tuned:
      settings |= {"steps": self.tuned.steps, "learning_rates": dict(self.tuned.learning_rates)}
      if self.tuned.adapter is not None:
        settings["adapters"] = self.hung
    splits = lambda task: [judged_split(task), *([self.pool] if cell.shots else [])]
    data = {e.task.name: [e.task.splits[split].folder.name for split in splits(e.task)] for e in self.judged}
    settings = json.loads(json.dumps({**settings, "data": data}))
    path = folder / CELL
    if path.is_file():
      try:
        before = json.loads(path.read_text(encoding="utf-8"))
        known = before.pop("data")
      except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{path} can not be read: {error!r}.", hint=ANEW) from error
      now = {name: value for name, value in settings.items() if name != "data"}
      for name in dict.fromkeys((*before, *now)):
        if before.get(name) != now.get(name):
          what = f"other settings: {name} was {before.get(name)!r} and is {now.get(name)!r}"
          what = "another model" if name == "model" else what
          raise UserError(f"{folder} has results of {what}.", hint=ANEW)
      if other := next((task for task in data if known.get(task, data[task]) != data[task]), None):
        raise UserError(f"{folder} has results of other data: task {other} has changed.", hint=ANEW)
      settings["data"] = known | data
    return settings


class Tuner:
  """Few-shot tuning of one cell: compiled for the first task of the first seed that needs it."""

  def __init__(self, grid: Grid, cell: Cell):
    self._grid, self._cell = grid, cell
    assert grid.tuned is not None
    self._few = replace(grid.tuned, shots=cell.shots, methods=(cell.selector,), name=grid.name)
    self._prompt = grid.prompts[cell.prompt]
    self._tuned: dict[int, Carried] = {}
    self._adapt: Any = None

  def __call__(self, session: Session, each: Judged, examples: list) -> list[Answer]:
    few, grid = self._few, self._grid
    if session.seed not in self._tuned:
      self._tuned = {session.seed: few.prepared(session, grid.carried)}
    tuned = self._tuned[session.seed]
    if self._adapt is None:
      drawn = [self._drawn(of, each) for of in grid.sessions for each in grid.judged]
      self._adapt = few.tuning(session, tuned, self._cell.selector, drawn)
    key = session.key(few.name, self._cell.selector, self._cell.shots, each.task.name)
    carried, _ = self._adapt.carried(self._drawn(session, each), key, each.task.name, tuned.params)
    return grid.answerer(carried, examples, [0] * len(examples))

  def _drawn(self, session: Session, each: Judged) -> list:
    grid = self._grid
    avoid = {example["text"].strip() for example in scored_examples(each.task, grid.examples)}
    found = shots(each.task, self._cell.shots, session.seed, pool=grid.pool, avoid=avoid)
    return [reworded(example, self._prompt, grid.vocabulary, each.task.name) for example in found]
