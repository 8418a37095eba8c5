"""Few-shot tuning, one task at a time: of routed adapters (Caccia et al. 2023, section 5), of others, or of all."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import gin
import jax
import numpy as np

from mtx.adapters.poly import ADAPTATIONS, Adaptation, new_router
from mtx.data import convert
from mtx.data.cache import CachedTask, Example
from mtx.errors import UserError, did_you_mean
from mtx.eval.earlier import earlier_rows
from mtx.eval.evaluate import Evaluation
from mtx.objectives.cross_entropy import cross_entropy
from mtx.objectives.normalise import normalisation
from mtx.parallel.mesh import batch_ways
from mtx.parallel.rules import place
from mtx.training.optimizer import optimizer
from mtx.training.parameters import Blueprint, Params, count, partition, rule_for
from mtx.training.session import Carried, Session, rerouted
from mtx.training.state import abstract_state, initial_state, state_shardings
from mtx.training.step import make_step

# What a model without routers is tuned by; those of ADAPTATIONS need routers.
METHODS = {
  **ADAPTATIONS,
  "adapters": Adaptation(r".*/adapter/.*", "random"),
  "full": Adaptation(".*", "random"),
}


@gin.configurable("fewshot", denylist=["name"])
@dataclass(frozen=True)
class FewShot:
  """A stage that changes nothing it hands on: each held-out task gets a copy of the model, trained on few examples.

  Written `@NAME/fewshot()`, the scope is the stage's name; without one it is "fewshot".

  Attributes:
    mixture: the held-out tasks; their train split is the pool of shots.
    methods: names in `METHODS`: MHR-z, MHR and MHR-mu adapt routed adapters; "adapters" trains any, "full" all there
      is.
    shots: examples a task, drawn by seed; a larger number contains a smaller one.
    steps: updates a task and method, each on all shots.
    learning_rates: regex over parameter paths -> rate, for what a method trains.
    adapter: None, or `@adapter` to hang fresh adapters on a model that has none, before it is tuned.
  """

  mixture: str = "heldout"
  methods: Sequence[str] = tuple(ADAPTATIONS)
  shots: int = 32
  steps: int = 60
  learning_rates: Mapping[str, float] = gin.REQUIRED
  adapter: Callable | None = None
  name: str = "fewshot"

  def __post_init__(self):
    if scope := gin.current_scope():
      object.__setattr__(self, "name", scope[-1])

  def run(self, session: Session, before: Carried | None) -> Carried:
    tuned = self.prepared(session, before)
    assert before is not None
    tasks = session.mixture(self.mixture).tasks
    # The run's own evaluation: it has compiled decoding for one router row already.
    evaluation = session.evaluate if isinstance(session.evaluate, Evaluation) else Evaluation()
    earlier = earlier_rows(session, self.name, before)
    for name in self.methods:
      done = {row["task"] for row in earlier if row["method"] == name}
      self._adapt_all(session, tuned, tasks, name, evaluation, done)
    return before

  def prepared(self, session: Session, before: Carried | None) -> Carried:
    """The model that is tuned, with fresh adapters where it gets some; raises as `check` does."""
    before = self.check(before)
    if self.adapter is None:
      return before
    model = session.blueprint(self.adapter, 1)
    more = model.initialise(session.key(self.name, "adapter"), session.mesh, only=model.shapes.keys() - before.params)
    return replace(before, model=model, params=before.params | more, adapter=self.adapter, tasks=("any",))

  def check(self, before: Carried | None) -> Carried:
    """The model, if it can be tuned so.

    Raises:
      UserError: no model, an unknown method, one that needs adapters or routers that the model has not, or adapters
        for a model that has some.
    """
    for name in self.methods:
      if name not in METHODS:
        raise UserError(f"binding `fewshot.methods`: no method {name!r}.", hint=did_you_mean(name, METHODS))
    routed = before is not None and any("task" in axes for axes in before.model.axes.values())
    if before is None or (not routed and set(self.methods) & set(ADAPTATIONS)):
      raise UserError(
        "`fewshot` adapts the routed adapters of the stage before it, and there are none.",
        hint="give that stage `stage.adapter = @adapter` with `adapter.method = @MHR`, or bind "
        "`fewshot.methods = ('full',)`.",
      )
    has_adapters = any("/adapter/" in path for path in before.model.shapes)
    if self.adapter is None:
      if "adapters" in self.methods and not has_adapters:
        raise UserError(
          "`fewshot.methods` = 'adapters' tunes adapters, and the model has none.",
          hint="hang some on it: `fewshot.adapter = @adapter`",
        )
    elif has_adapters:
      raise UserError("`fewshot.adapter` is bound, and the model has adapters already.", hint="leave it out")
    return before

  def tuning(self, session: Session, tuned: Carried, name: str, drawn: Collection[Sequence[Example]]) -> "Adapter":
    """The compiled adaptation by one method, announced.

    Args:
      tuned: what `prepared` gave.
      drawn: the shots of every task, for their lengths.

    Raises:
      UserError: no learning rate for anything that the method trains.
    """
    model, adaptation = session.blueprint(tuned.adapter, 1), METHODS[name]
    rates = dict(self.learning_rates)
    chosen = {p: s for p, s in model.shapes.items() if rule_for({adaptation.trainable: 1.0}, p)}
    shapes, _ = partition(chosen, rates)
    if not shapes:
      raise UserError(
        f"binding `fewshot.learning_rates`: no pattern matches what {name} trains ({adaptation.trainable}).",
        hint="its parameters are: " + " ".join(sorted(chosen)),
      )
    groups = [(p, count({k: s for k, s in shapes.items() if rule_for(rates, k) == p}), r) for p, r in rates.items()]
    session.reporter.trainable(f"{self.name} {name}, one task", groups, count(model.shapes) - count(shapes))
    lengths = [
      min(limit, round_up(max(len(e[side]) for examples in drawn for e in examples)))
      for side, limit in (("inputs", session.inputs_length), ("targets", session.targets_length))
    ]
    return Adapter(session, tuned, model, shapes, rates, self.steps, adaptation, lengths)

  def _adapt_all(self, session, tuned, tasks, name, evaluation, done) -> None:
    if all(t.name in done for t in tasks):
      session.reporter.note(f"{self.name}: {name} complete, {len(tasks)} tasks loaded")
      return
    drawn = {task.name: shots(task, self.shots, session.seed) for task in tasks}
    adapt = self.tuning(session, tuned, name, drawn.values())
    with session.reporter.progress(f"{self.name} {name}", len(tasks), 0) as progress:
      for i, task in enumerate(tasks, 1):
        if task.name not in done:
          carried, loss = adapt.carried(drawn[task.name], session.key(self.name, name, task.name), task.name)
          common = {"stage": self.name, "method": name, "split": "heldout", "step": self.steps, "seed": session.seed}
          file = session.folder(self.name) / name / f"{task.name}.jsonl"
          session.reporter.rows(evaluation.score(session, carried, [task], [0], common, file))
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

  def __call__(self, examples: list[Example], key, start: Params | None = None) -> tuple[dict, float]:
    """(all parameters after adaptation, last training loss).

    Args:
      start: parameters to start from; None: those of the stage before.
    """
    session = self._session
    route = lambda router, tasks, k: new_router(router, tasks, self._adaptation.router, k)
    params = rerouted(self._before.params if start is None else start, self._before.model, self._model, route, key)
    frozen = {p: v for p, v in params.items() if p not in self._shapes}
    # Copies: the step donates its state, and the inventory is needed again for the next task.
    host = {p: np.array(params[p], s.dtype) for p, s in self._shapes.items()}
    train = {p: jax.device_put(value, self._shardings.train[p]) for p, value in host.items()}
    state = initial_state(train, self._tx, self._shardings)
    batch = place(self._batch(examples), session.mesh)
    metrics = None
    for _ in range(self._steps):
      state, metrics = self._step(state, frozen, batch, key)
    return {**frozen, **state.train}, float("nan") if metrics is None else float(metrics["loss"])

  def carried(self, examples: list[Example], key, task: str, start: Params | None = None) -> tuple[Carried, float]:
    """(the model after adaptation, last training loss)."""
    params, loss = self(examples, key, start)
    return Carried(self._model, params, self._before.adapter, (task,), True), loss

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


def shots(
  task: CachedTask, number: int, seed: int, *, pool: str = "train", avoid: Collection[str] = ()
) -> list[Example]:
  """The first `number` of a task's examples in an order drawn by seed and task name.

  Args:
    pool: split that they are from.
    avoid: inputs, as text, that are never among them.
  """
  examples = task.splits.get(pool, ())
  rng = np.random.default_rng([seed, *task.name.encode()])
  order = (examples[int(i)] for i in rng.permutation(len(examples)))
  found = list(itertools.islice((e for e in order if e["text"].strip() not in avoid), number))
  if len(found) < number:
    kind = "training" if pool == "train" else f"{pool!r}"
    raise UserError(
      f"binding `fewshot.shots` = {number}: task {task.name} has {len(found)} {kind} examples.",
      hint=f"valid choices: 1 to {len(found)}.",
    )
  return found
