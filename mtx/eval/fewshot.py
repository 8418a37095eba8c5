"""Few-shot adaptation to held-out tasks, one task at a time: MHR-z, MHR and MHR-mu. Caccia et al. 2023, section 5."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import gin
import jax
import numpy as np

from mtx.adapters.poly import ADAPTATIONS, Adaptation, new_router
from mtx.data import convert
from mtx.data.cache import CachedTask, Example
from mtx.errors import UserError, did_you_mean
from mtx.eval.evaluate import Evaluation, score_tasks
from mtx.objectives.cross_entropy import cross_entropy
from mtx.objectives.normalise import normalisation
from mtx.parallel.mesh import batch_ways
from mtx.parallel.rules import place
from mtx.training.optimizer import optimizer
from mtx.training.parameters import Blueprint, count, partition, rule_for
from mtx.training.session import Carried, Session, rerouted
from mtx.training.state import abstract_state, initial_state, state_shardings
from mtx.training.step import make_step


@gin.configurable("fewshot", denylist=["name"])
@dataclass(frozen=True)
class FewShot:
  """A stage that changes nothing it hands on: each held-out task gets a copy of the adapters, trained on few examples.

  Attributes:
    mixture: the held-out tasks; their train split is the pool of shots.
    methods: names in `ADAPTATIONS`.
    shots: examples a task, drawn by seed; a larger number contains a smaller one.
    steps: updates a task and method, each on all shots.
    learning_rates: regex over parameter paths -> rate, for what a method trains.
  """

  mixture: str = "heldout"
  methods: Sequence[str] = tuple(ADAPTATIONS)
  shots: int = 32
  steps: int = 60
  learning_rates: Mapping[str, float] = gin.REQUIRED
  name: str = "fewshot"

  def run(self, session: Session, before: Carried | None) -> Carried:
    if before is None or before.adapter is None or not any("task" in axes for axes in before.model.axes.values()):
      raise UserError(
        "`fewshot` adapts the routed adapters of the stage before it, and there are none.",
        hint="give that stage `stage.adapter = @adapter` with `adapter.method = @MHR`.",
      )
    tasks = session.mixture(self.mixture).tasks
    model = session.blueprint(before.adapter, 1)
    # The run's own evaluation: it has compiled decoding for one router row already.
    evaluation = session.evaluate if isinstance(session.evaluate, Evaluation) else Evaluation()
    for name in self.methods:
      if name not in ADAPTATIONS:
        raise UserError(f"binding `fewshot.methods`: no method {name!r}.", hint=did_you_mean(name, ADAPTATIONS))
      self._adapt_all(session, before, model, tasks, name, ADAPTATIONS[name], evaluation)
    return before

  def _adapt_all(self, session, before, model, tasks, name, adaptation, evaluation) -> None:
    done = {r["task"]: r for r in session.reporter.saved_rows(self.name) if r["method"] == name}
    if all(t.name in done for t in tasks):
      session.reporter.note(f"{self.name}: {name} complete, {len(tasks)} tasks loaded")
      return
    rates = {pattern: rate for pattern, rate in self.learning_rates.items()}
    chosen = {p: s for p, s in model.shapes.items() if rule_for({adaptation.trainable: 1.0}, p)}
    shapes, _ = partition(chosen, rates)
    if not shapes:
      raise UserError(
        f"binding `fewshot.learning_rates`: no pattern matches what {name} trains ({adaptation.trainable}).",
        hint="its parameters are: " + " ".join(sorted(chosen)),
      )
    groups = [(p, count({k: s for k, s in shapes.items() if rule_for(rates, k) == p}), r) for p, r in rates.items()]
    session.reporter.trainable(f"{self.name} {name}, one task", groups, count(model.shapes) - count(shapes))
    drawn = {task.name: shots(task, self.shots, session.seed) for task in tasks}
    lengths = [
      min(limit, round_up(max(len(e[side]) for examples in drawn.values() for e in examples)))
      for side, limit in (("inputs", session.inputs_length), ("targets", session.targets_length))
    ]
    adapt = Adapter(session, before, model, shapes, rates, self.steps, adaptation, lengths)
    with session.reporter.progress(f"{self.name} {name}", len(tasks), 0) as progress:
      for i, task in enumerate(tasks, 1):
        if task.name not in done:
          params, loss = adapt(drawn[task.name], session.key(self.name, name, task.name))
          carried = Carried(model, params, before.adapter, (task.name,), True)
          generator = evaluation.generator(session, carried)
          common = {"stage": self.name, "method": name, "split": "heldout", "step": self.steps, "seed": session.seed}
          file = session.folder(self.name) / name / f"{task.name}.jsonl"
          session.reporter.rows(score_tasks(generator, params, [task], [0], evaluation.examples, common, file))
          progress.update(i, loss=loss)
        else:
          progress.update(i)


class Adapter:
  """The compiled adaptation of one method, used for every task: full-batch steps on the shots."""

  def __init__(
    self,
    session: Session,
    before: Carried,
    model: Blueprint,
    shapes: dict,
    rates: Mapping[str, float],
    steps: int,
    adaptation: Adaptation,
    lengths: Sequence[int],
  ):
    self._inputs_length, self._targets_length = lengths
    self._session, self._before, self._model = session, before, model
    self._shapes, self._steps, self._adaptation = shapes, steps, adaptation
    shardings = model.shardings(session.mesh)
    self._tx = optimizer(shapes, rates, steps)
    self._shardings = state_shardings(abstract_state(shapes, self._tx), shardings, session.mesh)
    frozen = {p: s for p, s in shardings.items() if p not in shapes}
    objective = partial(cross_entropy, tasks=1)
    reweigh = normalisation(("the held-out task",), task_weights=None)
    self._step = make_step(model, objective, self._tx, self._shardings, frozen, session.mesh, reweigh=reweigh)

  def __call__(self, examples: list[Example], key) -> tuple[dict, float]:
    """(all parameters after adaptation, last training loss)."""
    session = self._session
    route = lambda router, tasks, k: new_router(router, tasks, self._adaptation.router, k)
    params = rerouted(self._before.params, self._before.model, self._model, route, key)
    frozen = {p: v for p, v in params.items() if p not in self._shapes}
    # Copies: the step donates its state, and the inventory is needed again for the next task.
    train = {p: jax.device_put(np.array(params[p]), self._shardings.train[p]) for p in self._shapes}
    state = initial_state(train, self._tx, self._shardings)
    batch = place(self._batch(examples), session.mesh)
    metrics = None
    for _ in range(self._steps):
      state, metrics = self._step(state, frozen, batch, key)
    return {**frozen, **state.train}, float("nan") if metrics is None else float(metrics["loss"])

  def _batch(self, examples: list[Example]) -> dict[str, np.ndarray]:
    s = self._session
    vocabulary = s.mixture("train").vocabulary
    return convert.padded(
      examples,
      s.config.architecture,
      self._inputs_length,
      self._targets_length,
      [0] * len(examples),
      eos_id=vocabulary.eos_id,
      start_id=vocabulary.start(s.config.architecture),
      rows=-(-len(examples) // batch_ways(s.mesh)) * batch_ways(s.mesh),
    )


def round_up(length: int, multiple: int = 8) -> int:
  """The length that all tasks' shots are padded to: one shape, one compile, little padding."""
  return -(-length // multiple) * multiple


def shots(task: CachedTask, number: int, seed: int) -> list[Example]:
  """The first `number` of the task's training examples in an order drawn by seed and task name."""
  pool = task.splits.get("train", ())
  if len(pool) < number:
    raise UserError(
      f"binding `fewshot.shots` = {number}: task {task.name} has {len(pool)} training examples.",
      hint=f"valid choices: 1 to {len(pool)}.",
    )
  rng = np.random.default_rng([seed, *task.name.encode()])
  return [pool[int(i)] for i in rng.permutation(len(pool))[:number]]
