"""A protocol: a grid of shots x selector x prompt on fixed items, in which any two cells of any two models are paired.

    train.stages = [@finetune/stage(), @protocol()]          # or `mtx evaluate MODEL MODEL --gin_file=FILE`
    protocol.shots = (0, 5)
    protocol.selectors = ('random', 'bm25')
    protocol.prompts = {'plain': '{inputs}', 'question': 'Question: {inputs}\\nAnswer:'}
    protocol.tuned = @fewshot()

A cell is zero-shot, few-shot in context, or few-shot tuned. Every cell asks the same items: the first `examples` of the
split that a task is judged on. Tasks whose examples have options are scored by their likelihood, others by what the
model says. Predictions lie in RUN/<protocol>/<cell>/<task>.jsonl with the scores of every item, rows in results.json
with the fields `level`, `shots`, `selector`, `prompt`, `dataset` and `benchmark` beside those that all rows have.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import gin

from mtx.errors import UserError, did_you_mean
from mtx.eval.averages import MEDIAN, averages, leading, medians
from mtx.eval.cells import NONE, PLAIN, Cell
from mtx.eval.earlier import earlier_rows
from mtx.eval.evaluate import scored_examples
from mtx.eval.fewshot import FewShot
from mtx.eval.grid import Grid
from mtx.eval.levels import LEVELS, Judged, judged_tasks
from mtx.eval.prompts import Prompt, check_pool
from mtx.eval.scoring import check_examples
from mtx.tasks.shots import SELECTORS, shows_examples
from mtx.training.session import Carried, Row, Session


@gin.configurable("protocol", denylist=["name"])
@dataclass(frozen=True)
class Protocol:
  """A stage that changes nothing it hands on: judges the model of the stage before it.

  Written `@NAME/protocol()`, the scope is the stage's name; without one it is "protocol".

  Attributes:
    shots: numbers of solved examples; 0 is zero-shot. A larger number contains a smaller one.
    selectors: of `mtx.tasks.shots.SELECTORS`, how they are chosen.
    prompts: name -> how an instance is asked (`mtx.eval.prompts.Prompt`); None: in the task's own words, as "plain".
    tuned: None, or `@fewshot()`: each of its methods also learns from the same numbers of shots, drawn by seed. Its
      own number of shots, mixture and name do not count.
    levels, tasks, metrics, own_prompts, benchmarks: which tasks, see `mtx.eval.levels.judged_tasks`.
    mixture: of the held-out tasks. What is trained on is what `train` has.
    pool: split that shots are from, of the same task; never the one that is judged.
    pool_examples: of a pool, the first ones that shots in context are chosen from; None: all.
    examples: of each task, the first ones that are judged.
    inputs_length: most tokens of a prompt; None: as in training. Shots that do not fit are left out, which is told.
  """

  shots: Sequence[int] = (0,)
  selectors: Sequence[str] = ("random",)
  prompts: Mapping[str, str | Mapping[str, str]] | None = None
  tuned: FewShot | None = None
  levels: Sequence[str] = LEVELS
  tasks: Sequence[str] = ()
  metrics: Sequence[str] = ()
  own_prompts: str = ""
  benchmarks: Mapping[str, str] | None = None
  mixture: str = "heldout"
  pool: str = "train"
  pool_examples: int | None = 1000
  examples: int = 100
  inputs_length: int | None = None
  name: str = "protocol"

  def __post_init__(self):
    if scope := gin.current_scope():
      object.__setattr__(self, "name", scope[-1])
    if not self.shots or any(not isinstance(k, int) or k < 0 for k in self.shots):
      raise UserError(f"binding `protocol.shots` is {self.shots!r}.", hint="numbers of examples, (0, 5) for example")
    for binding, number in (("examples", self.examples), ("inputs_length", self.inputs_length)):
      if number is not None and number < 1:
        raise UserError(f"binding `protocol.{binding}` is {number}.", hint="1 or more")
    for selector in self.selectors:
      if selector not in SELECTORS:
        raise UserError(f"binding `protocol.selectors`: no {selector!r}.", hint=did_you_mean(selector, SELECTORS))
    for prompt in self.prompts or {}:
      if not re.fullmatch(r"[\w.]+", prompt) or prompt == MEDIAN:
        hint = "letters, digits, _ and ., and not 'median': it names files and rows"
        raise UserError(f"binding `protocol.prompts`: a prompt can not be called {prompt!r}.", hint=hint)

  @property
  def worded(self) -> dict[str, Prompt]:
    return {name: Prompt.of(each) for name, each in (self.prompts or {PLAIN: Prompt.query}).items()}

  def cells(self) -> list[Cell]:
    """The grid, zero-shot first; without shots nothing is selected or tuned."""
    made: dict[Cell, None] = {}
    for k in sorted(set(self.shots)):
      for selector in self.selectors if k else (NONE,):
        made |= {Cell(k, selector, prompt): None for prompt in self.worded}
      for method in self.tuned.methods if self.tuned and k else ():
        made |= {Cell(k, method, prompt, tuned=True): None for prompt in self.worded}
    return list(made)

  def run(self, session: Session, before: Carried | None) -> Carried:
    if before is None:
      raise UserError(
        "`protocol` judges the model of the stage before it, and there is none.",
        hint="judge models that are there by `mtx evaluate MODEL --gin_file=FILE`",
      )
    earlier_rows(session, self.name, before)  # a model that was trained on is judged anew
    self.grid([session], before)
    return before

  def grid(self, sessions: Sequence[Session], carried: Carried) -> list[list[Row]]:
    """The rows of all cells, of every session in turn; what is done already is only read.

    Args:
      sessions: of one model and one set of tasks, that differ in seed and folder.

    Raises:
      UserError: see `judged_tasks`, `check_pool` and `mtx.tasks.shots.shots`; a metric that needs what an example has
        not; shots that are judged, or too few of them; a prompt that is longer than the model's positions; results of
        other settings, or of another model, in the folder; a damaged predictions file.
    """
    sessions = [replace(each, inputs_length=self.inputs_length or each.inputs_length) for each in sessions]
    first = sessions[0]
    judged, left_out = judged_tasks(
      first.mixture("train"),
      first.mixture(self.mixture),
      levels=self.levels,
      tasks=self.tasks,
      metrics=self.metrics,
      own_prompts=self.own_prompts,
      benchmarks=self.benchmarks,
    )
    if left_out:
      first.reporter.note(f"{self.name}: {len(left_out)} tasks have no test or validation split: {left_out[0]} ...")
    if own := [each.task.name for each in judged if shows_examples(each.task.name)]:
      text = f"the prompts of {len(own)} tasks begin with shots of their own, to which cells add: {own[0]} ..."
      first.reporter.note(f"{self.name}: {text}")
    self._check(first, judged)
    if self.tuned and max(self.shots):
      self.tuned.check(carried)
    grid = Grid(
      self.name,
      sessions,
      carried,
      judged,
      prompts=self.worded,
      tuned=self.tuned,
      pool=self.pool,
      pool_examples=self.pool_examples,
      examples=self.examples,
    )
    cells = self.cells()
    grid.check(cells)
    for session in sessions:
      session.reporter.record()  # nothing is refused any more
    found: list[list[Row]] = [[] for _ in sessions]
    with first.reporter.progress(self.name, len(cells) * len(sessions), 0) as progress:
      for i, cell in enumerate(cells):
        for j, rows in enumerate(grid(cell)):
          found[j] += rows
          seed = f", seed {sessions[j].seed}" if cell.seeded and len(sessions) > 1 else ""
          if rows and (cell.seeded or not j):
            of_cell = averages(leading(rows))
            scores = f"macro {of_cell.macro:.1f}, micro {of_cell.micro:.1f}"
            progress.note(f"{cell.method}{seed}: {scores}")
          progress.update(i * len(sessions) + j + 1)
    for session, rows in zip(sessions, found, strict=True):
      over = [{**row, "method": Cell(row["shots"], row["selector"], MEDIAN).method} for row in medians(rows)]
      session.reporter.rows(over)
      rows += over
    return found

  def _check(self, session: Session, judged: Sequence[Judged]) -> None:
    """What can be known before anything is decoded."""
    config, most = session.config, max(self.shots)
    longest = session.inputs_length + (session.targets_length if config.architecture != "encdec" else 0)
    if config.absolute_positions and longest > config.absolute_positions:
      raise UserError(
        f"binding `protocol.inputs_length`: prompts of {session.inputs_length} tokens need {longest} positions, and "
        f"the model has {config.absolute_positions}.",
        hint="bind it to less; shots that do not fit are left out",
      )
    for each in judged:
      check_examples(each.task.name, scored_examples(each.task, self.examples), each.scored)
    for each in judged if most else ():
      check_pool(each.task, self.pool)
      pool = each.task.splits[self.pool]
      read = min(len(pool), len(pool) if self.pool_examples is None else self.pool_examples)
      if read < most:
        raise UserError(
          f"binding `protocol.shots`: task {each.task.name} has {read} examples in {self.pool!r}, and {most} are asked "
          "for.",
          hint=f"at most {read}, or leave the task out by `protocol.tasks`",
        )
      ids = {example["id"] for example in scored_examples(each.task, self.examples)}
      if both := next((e for e in (pool[i]["id"] for i in range(read)) if e in ids), None):
        raise UserError(
          f"binding `protocol.pool` = {self.pool!r}: item {both!r} of task {each.task.name} is judged, so it can not "
          "be a shot.",
          hint="give the task splits that have nothing in common",
        )
