"""Single-task baselines: every task of a mixture gets a model of its own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gin
import jax
import numpy as np

from mtx.data.cache import CachedMixture, CachedTask
from mtx.errors import UserError
from mtx.eval.earlier import earlier_rows
from mtx.eval.evaluate import Evaluation
from mtx.objectives.cross_entropy import cross_entropy
from mtx.objectives.normalise import normalisation
from mtx.training.loop import Every, fit
from mtx.training.optimizer import check_rules
from mtx.training.parameters import partition
from mtx.training.session import Carried, Session
from mtx.training.stage import LOG_EVERY, Stage
from mtx.training.state import abstract_state, initial_state, state_shardings
from mtx.training.step import make_step


@gin.configurable("single_task", denylist=["name"])
@dataclass(frozen=True)
class SingleTask(Stage):
  """A stage of as many models as its mixture has tasks, each trained on one alone. Written `@NAME/single_task()`.

  All start from what the stage before hands on, else from the pre-trained model, or from the same fresh parameters;
  that start is what the stage itself hands on. Settings are those of `stage`, for every task: `steps` updates a task.
  Results have the stage's name and the method "trained", as those of a stage that learns the tasks together. A run that
  was stopped goes on with the first task that has no result.
  """

  def __post_init__(self):
    super().__post_init__()
    if self.rates is not None:
      raise UserError(f"binding `{self.name}/single_task.rates`: there is one task at a time, and nothing to mix.")

  def run(self, session: Session, before: Carried | None) -> Carried:
    """Trains and scores every task that has no result yet."""
    tasks = session.mixture(self.mixture).tasks
    model = session.blueprint(self.adapter, 1)
    check_rules([r for r in self.learning_rates if self.adapter or "adapter" not in r], model.shapes)
    shapes, frozen_shapes = partition(model.shapes, self.learning_rates)
    self._announce(session, shapes, frozen_shapes)
    start = self._initial(session, model, before, ("a single task",), model.shapes.keys())
    carried = Carried(model, start, self.adapter, ("a single task",), before is not None and before.trained)
    # The run's own evaluation: it has compiled decoding of this model already, if a stage before had the same.
    evaluation = session.evaluate if isinstance(session.evaluate, Evaluation) else Evaluation()
    train = self.trainer(session, carried)
    done = {row["task"] for row in earlier_rows(session, self.name, carried)}
    common = {"stage": self.name, "method": "trained", "split": "train", "step": self.steps, "seed": session.seed}
    with session.reporter.progress(self.name, len(tasks), 0) as progress:
      for number, task in enumerate(tasks, 1):
        loss = {}
        if task.name not in done:
          params, loss["loss"] = train(task)
          file = session.folder(self.name) / "trained" / f"{task.name}.jsonl"
          trained = replace(carried, params=params)
          session.reporter.rows(evaluation.score(session, trained, [task], [0], common, file))
        progress.update(number, **loss)
    return carried

  def trainer(self, session: Session, carried: Carried) -> Callable[[CachedTask], tuple[dict[str, jax.Array], float]]:
    """task -> (all parameters after training on it, last loss); compiled once for all tasks."""
    model, mixture = carried.model, session.mixture(self.mixture)
    shapes, frozen_shapes = partition(model.shapes, self.learning_rates)
    tx = self.optimizer(shapes, self.learning_rates, self.steps)
    all_shardings = model.shardings(session.mesh)
    shardings = state_shardings(abstract_state(shapes, tx), all_shardings, session.mesh)
    frozen = {p: carried.params[p] for p in frozen_shapes}
    step = make_step(
      model,
      partial(cross_entropy, tasks=1),
      tx,
      shardings,
      {p: all_shardings[p] for p in frozen},
      session.mesh,
      accumulate=self.accumulate,
      reweigh=normalisation(("a single task",), task_weights=None),
    )

    def train(task: CachedTask) -> tuple[dict[str, jax.Array], float]:
      # Copies: the step donates its state, and the next task starts from the same.
      own = {p: jax.device_put(np.array(carried.params[p]), shardings.train[p]) for p in shapes}
      alone = CachedMixture(f"{mixture.name}/{task.name}", (task,), (1.0,), mixture.vocabulary)
      batches = iter(self._feed(session, alone))
      losses = [float("nan")]
      state = fit(
        initial_state(own, tx, shardings),
        frozen,
        step,
        batches,
        start=0,
        steps=self.steps,
        every=Every(LOG_EVERY, 0, 0),
        key=session.key(self.name, task.name, "step"),
        mesh=session.mesh,
        log=lambda n, metrics: losses.append(float(metrics["loss"])),
        evaluate=_nothing,
        save=_nothing,
      )
      batches.close()
      return {**frozen, **state.train}, losses[-1]

    return train


def _nothing(*_: Any) -> None:
  """A task is trained and scored as a whole: nothing is kept in between."""
