"""Tuning a whole model on parts of the data of new tasks: one model a task, or one of all of them together.

The protocol of "Instruction Tuned Models are Quick Learners" (Gupta et al. 2023, arXiv 2306.05539): single-task and
multi-task learning on fractions of the training data. Unlike in its released split, test examples are never trained on;
a smaller fraction is part of a larger one.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import gin
import jax
import numpy as np

from mtx.data import convert
from mtx.data.cache import CachedTask, Example
from mtx.errors import UserError, did_you_mean
from mtx.eval.earlier import earlier_rows
from mtx.eval.evaluate import Evaluation
from mtx.eval.fewshot import round_up, shots
from mtx.objectives.cross_entropy import cross_entropy
from mtx.parallel.mesh import check_batch
from mtx.parallel.rules import place
from mtx.training.optimizer import check_rules, optimizer
from mtx.training.parameters import Params, count, partition, rule_for
from mtx.training.session import Carried, Session
from mtx.training.state import abstract_state, initial_state, state_shardings
from mtx.training.step import make_step

SETTINGS = ("single", "multi")


@gin.configurable("tune", denylist=["name"])
@dataclass(frozen=True)
class Tune:
  """A stage that changes nothing it hands on: copies of the model are tuned, judged and forgotten.

  Methods of its rows are `zero-shot`, `single 25%`, `multi 25%`; rows have `setting` and `fraction`, too. Written
  `@NAME/tune()`, the scope is the stage's name; without one it is "tune".

  Attributes:
    mixture: of the tasks; their train split is the data, their test split judges.
    settings: of SETTINGS: "single" tunes one model a task, "multi" one of all tasks.
    fractions: of each task's training examples, at least one; 0 judges the model as it is. Fractions are nested.
    epochs: passes over the fraction, so that less data means fewer updates.
    steps: updates whatever the fraction, in place of `epochs`.
    batch: examples an update.
    learning_rates: regex over parameter paths -> rate; what none matches is frozen. The rate is constant after the
      warm-up that `optimizer` is bound to.
  """

  learning_rates: Mapping[str, float] = gin.REQUIRED
  mixture: str = "heldout"
  settings: Sequence[str] = SETTINGS
  fractions: Sequence[float] = (0.0, 0.01, 0.06, 0.25, 0.5, 1.0)
  epochs: int = 2
  steps: int | None = None
  batch: int = 16
  name: str = "tune"

  def __post_init__(self):
    if scope := gin.current_scope():
      object.__setattr__(self, "name", scope[-1])
    for setting in self.settings:
      if setting not in SETTINGS:
        raise UserError(f"binding `tune.settings`: no setting {setting!r}.", hint=did_you_mean(setting, SETTINGS))
    for fraction in self.fractions:
      if not 0 <= fraction <= 1:
        raise UserError(f"binding `tune.fractions`: {fraction} is no share.", hint="it is from 0 to 1")

  def run(self, session: Session, before: Carried | None) -> Carried:
    if before is None or any("task" in axes for axes in before.model.axes.values()):
      raise UserError(
        f"`{self.name}` tunes the model of the stage before it, which has no routers.",
        hint="put a stage before it; `@fewshot()` adapts routed adapters",
      )
    tasks = session.mixture(self.mixture).tasks
    # The run's own evaluation: it has compiled decoding already.
    evaluation = session.evaluate if isinstance(session.evaluate, Evaluation) else Evaluation()
    done = {(row["method"], row["task"]) for row in earlier_rows(session, self.name, before)}
    plan = [each for each in self._plan(tasks) if any((each[0], task.name) not in done for task in each[3])]
    if not plan:
      session.reporter.note(f"{self.name}: complete")
      return before
    tuner = _Tuner(session, before, self, [e for task in tasks for e in shots(task, _examples(task), session.seed)])
    with session.reporter.progress(self.name, len(plan), 0) as progress:
      for i, (method, setting, fraction, members) in enumerate(plan, 1):
        data = [e for t in members for e in shots(t, _part(t, fraction), session.seed)] if fraction else []
        tuned, loss = tuner(data, f"{method} {members[0].name}")
        common = {"stage": self.name, "method": method, "split": "heldout", "step": tuner.steps(len(data)),
                  "seed": session.seed, "setting": setting, "fraction": fraction}  # fmt: skip
        # A file a task: a line of one model never mixes with that of another.
        for task in members:
          file = session.folder(self.name) / method / f"{task.name}.jsonl"
          session.reporter.rows(evaluation.score(session, tuned, [task], [0], common, file))
        progress.update(i, loss=loss)
    return before

  def _plan(self, tasks: Sequence[CachedTask]) -> Iterator[tuple[str, str, float, Sequence[CachedTask]]]:
    """(method, setting, fraction, tasks that one model is tuned on and judged by)."""
    if 0 in self.fractions:
      yield "zero-shot", "", 0.0, tasks
    for setting in self.settings:
      for fraction in self.fractions:
        for members in ([tasks] if setting == "multi" else [[task] for task in tasks]) if fraction else ():
          yield f"{setting} {100 * fraction:.4g}%", setting, float(fraction), members


class _Tuner:
  """The compiled training, one program for all tasks and fractions.

  Args:
    examples: all that there are, for their lengths.
  """

  def __init__(self, session: Session, before: Carried, tune: Tune, examples: Sequence[Example]):
    self._session, self._before, self._tune = session, before, tune
    check_batch(tune.batch, 1, session.mesh)
    check_rules(tune.learning_rates, before.model.shapes)
    self._shapes, frozen = partition(before.model.shapes, tune.learning_rates)
    # A schedule that ends would differ between fractions, in more than the number of updates.
    self._tx = optimizer(self._shapes, tune.learning_rates, 1, schedule="constant")
    shardings = before.model.shardings(session.mesh)
    self._shardings = state_shardings(abstract_state(self._shapes, self._tx), shardings, session.mesh)
    objective = partial(cross_entropy, tasks=1)
    self._step = make_step(
      before.model, objective, self._tx, self._shardings, {p: shardings[p] for p in frozen}, session.mesh
    )
    self._lengths = [
      min(limit, round_up(max(len(e[side]) for e in examples)))
      for side, limit in (("inputs", session.inputs_length), ("targets", session.targets_length))
    ]
    rule_of = {path: rule_for(tune.learning_rates, path) for path in self._shapes}
    groups = [
      (pattern, count({p: s for p, s in self._shapes.items() if rule_of[p] == pattern}), rate)
      for pattern, rate in tune.learning_rates.items()
    ]
    session.reporter.trainable(tune.name, groups, count(frozen))

  def steps(self, examples: int) -> int:
    """Updates on so many examples."""
    return (self._tune.steps or math.ceil(self._tune.epochs * examples / self._tune.batch)) if examples else 0

  def __call__(self, examples: Sequence[Example], name: str) -> tuple[Carried, float]:
    """(a tuned copy of the model, loss of the last update)."""
    params: Params = self._before.params
    frozen = {p: v for p, v in params.items() if p not in self._shapes}
    # Copies: the step donates its state, and the model is needed again.
    host = {p: np.array(params[p], s.dtype) for p, s in self._shapes.items()}
    train = {p: jax.device_put(value, self._shardings.train[p]) for p, value in host.items()}
    state = initial_state(train, self._tx, self._shardings)
    key = self._session.key(self._tune.name, name)
    drawn, loss = self._drawn(len(examples), name), None
    for rows in (next(drawn) for _ in range(self.steps(len(examples)))):
      batch = place(self._batch([examples[i] for i in rows]), self._session.mesh)
      state, metrics = self._step(state, frozen, batch, key)
      loss = metrics["loss"]
    tuned = Carried(self._before.model, {**frozen, **state.train}, self._before.adapter, self._before.tasks, True)
    return tuned, float("nan") if loss is None else float(loss)

  def _drawn(self, examples: int, name: str) -> Iterator[list[int]]:
    """Batches of rows without end: every epoch has each example once, in an order of its own."""
    rng = np.random.default_rng([self._session.seed, *name.encode()])
    waiting: list[int] = []
    while True:
      while len(waiting) < self._tune.batch:
        waiting += rng.permutation(examples).tolist()
      yield waiting[: self._tune.batch]
      waiting = waiting[self._tune.batch :]

  def _batch(self, examples: Sequence[Example]) -> dict[str, np.ndarray]:
    config, vocabulary = self._session.config, self._session.mixture("train").vocabulary
    inputs_length, targets_length = self._lengths
    return convert.padded(
      examples,
      config.architecture,
      inputs_length,
      targets_length,
      [0] * len(examples),
      rows=self._tune.batch,
      eos_id=vocabulary.eos_id,
      start_id=vocabulary.start(config.architecture),
    )


def _examples(task: CachedTask) -> int:
  return len(task.splits.get("train", ()))


def _part(task: CachedTask, fraction: float) -> int:
  """Examples of a fraction; at least one."""
  return max(1, round(fraction * _examples(task)))
