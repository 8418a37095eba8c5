"""One stage of a run: a mixture, a trainable set, an adapter, a number of steps."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial

import gin
import jax
import numpy as np

from mtx.data.cache import CachedMixture
from mtx.data.feed import Feed, feed, validation_batches
from mtx.errors import UserError
from mtx.models.flops import training_per_row
from mtx.objectives.cross_entropy import cross_entropy
from mtx.objectives.normalise import WEIGHTS, Reweigh, normalisation
from mtx.parallel.mesh import check_batch
from mtx.parallel.rules import place
from mtx.training.checkpoint import Checkpoints, Record
from mtx.training.loop import Every, fit
from mtx.training.optimizer import check_rules, optimizer
from mtx.training.parameters import Blueprint, Params, count, partition, rule_for
from mtx.training.session import Carried, Session, Start
from mtx.training.shares import shares_table, write_shares
from mtx.training.state import State, abstract_state, initial_state, state_shardings
from mtx.training.step import make_loss, make_step
from mtx.training.throughput import peak_flops

LOG_EVERY = 10
VALIDATION_EXAMPLES = 8  # a task


@gin.configurable("stage", denylist=["name"])
@dataclass(frozen=True)
class Stage:
  """Trains on one mixture. Written `@NAME/stage()` in gin: the scope is the stage's name.

  Attributes:
    steps: updates.
    learning_rates: regex of parameter paths -> rate; what none matches is frozen.
    mixture: "train", "heldout", or the name of a SeqIO mixture.
    adapter: None, or `@adapter` to inject adapters before training.
    optimizer: the update rule; `@NAME/optimizer` gives a stage its own settings.
    feed: what makes batches; `@NAME/feed` gives a stage its own settings.
    after: None, or the stage whose model this one starts from, where that is not the stage before it: several stages
      that start from one model are compared without training it several times.
    accumulate: microbatches an update.
    rates: None, or a callback such as `@linear_rates`: `(step, metrics, mixture)` -> task name -> rate, or None for no
      change. It is called every LOG_EVERY steps with that step's metrics (`make_step`), and must depend on its
      arguments alone. What it returns holds from step + PREFETCH + 3 on.
  """

  steps: int = gin.REQUIRED
  learning_rates: Mapping[str, float] = gin.REQUIRED
  mixture: str = "train"
  adapter: Callable | None = None
  optimizer: Callable = optimizer
  feed: Callable[..., Feed] = feed
  after: str | None = None
  accumulate: int = 1
  rates: Callable | None = None
  name: str = ""

  def __post_init__(self):
    if not self.name:
      scope = gin.current_scope()
      if not scope:
        raise UserError("a stage without a name.", hint="write it with a scope, for example `@finetune/stage()`.")
      object.__setattr__(self, "name", scope[-1])

  def run(self, session: Session, before: Carried | None) -> Carried:
    """Trains, or goes on from the newest checkpoint, or only loads it if the stage is complete."""
    mixture = session.mixture(self.mixture)
    tasks = tuple(t.name for t in mixture.tasks)
    # Capture the adapter's scope now: it is called again whenever the model is traced.
    model = session.blueprint(self.adapter, len(tasks))
    # Rates of adapters may stand in a file whose adapter is chosen elsewhere, or not at all.
    check_rules([r for r in self.learning_rates if self.adapter or "adapter" not in r], model.shapes)
    shardings = model.shardings(session.mesh)
    shapes, frozen_shapes = partition(model.shapes, self.learning_rates)
    tx = self.optimizer(shapes, self.learning_rates, self.steps)
    abstract = abstract_state(shapes, tx)
    state_sh = state_shardings(abstract, shardings, session.mesh)
    self._announce(session, shapes, frozen_shapes)

    checkpoints = Checkpoints(session.folder(self.name) / "checkpoints")
    done = checkpoints.latest() or 0
    # What a checkpoint of this stage holds need not be made first.
    wanted = frozen_shapes.keys() if done else model.shapes.keys()
    train, frozen = partition(self._initial(session, model, before, tasks, wanted), self.learning_rates)
    assert frozen.keys() == frozen_shapes.keys() and (done or train.keys() == shapes.keys())
    after = partial(Carried, model, adapter=self.adapter, tasks=tasks, trained=True)
    if done >= self.steps:
      session.reporter.note(f"{self.name}: complete at step {done}, loaded from {checkpoints.folder}")
      train = checkpoints.restore_train(done, abstract.train, state_sh.train)
      checkpoints.close()
      return after({**frozen, **train})

    data = self._feed(session, mixture)
    batches = iter(data)
    if done:
      record = checkpoints.record(done)
      if record.seed != session.seed:
        raise UserError(
          f"checkpoint {checkpoints.folder} was made with seed {record.seed}, this run has seed {session.seed}.",
          hint="run with the same seed, or choose another `train.run_dir`.",
        )
      batches.set_state(record.data)
      state = checkpoints.restore(done, abstract, state_sh)
      session.reporter.note(f"{self.name}: going on from step {done}")
    else:
      state = initial_state(train, tx, state_sh)
      self._evaluate(session, after({**frozen, **train}), 0, quick=False, trained=before is not None and before.trained)
    del train

    objective, reweigh = partial(cross_entropy, tasks=len(tasks)), normalisation(tasks)
    frozen_sh = {p: shardings[p] for p in frozen}
    step = make_step(
      model, objective, tx, state_sh, frozen_sh, session.mesh, accumulate=self.accumulate, reweigh=reweigh
    )
    validate = self._validation(session, model, mixture, objective, reweigh, data.loss)
    log = session.reporter.log(self.name)
    log.resume(done)
    row_flops = training_per_row(
      session.config, session.inputs_length, session.targets_length, frozen_base=self.adapter is not None
    )
    rows = next(iter(data.spec.values()))[0][0]

    with session.reporter.progress(self.name, self.steps, done) as progress:

      def write(n: int, metrics: Mapping) -> None:
        values = {k: float(v) for k, v in metrics.items() if np.ndim(v) == 0}
        mfu = values.pop("steps_per_second") * rows * row_flops / peak_flops()[0]
        log.scalars(n, {**values, "mfu": mfu})
        progress.update(n, loss=values["loss"], tokens_per_second=values["tokens_per_second"], mfu=mfu)

      def adjust(n: int, metrics: Mapping) -> None:
        asked = self.rates(n, metrics, mixture) if self.rates else None
        if asked is not None:
          batches.change_rates(asked, n)

      def evaluate(state: State, n: int) -> None:
        carried = after({**frozen, **state.train})
        scores = {"eval/loss": validate(carried.params)} if validate else {}
        rows = self._evaluate(session, carried, n, quick=n < self.steps)
        log.scalars(n, scores | _means(rows))
        progress.note(f"step {n}: " + ", ".join(f"{k} {v:.3g}" for k, v in (scores | _means(rows)).items()))

      def save(state: State, n: int, position) -> None:
        if n == self.steps:  # before the checkpoint that says that nothing is left to do
          write_shares(session.folder(self.name), batches.shares())
        checkpoints.save(state, Record(n, session.seed, position, session.gin(), list(tasks)))

      state = fit(
        state,
        frozen,
        step,
        batches,
        start=done,
        steps=self.steps,
        every=Every(LOG_EVERY, session.evaluate_every, session.save_every),
        key=session.key(self.name, "step"),
        mesh=session.mesh,
        log=write,
        evaluate=evaluate,
        save=save,
        adjust=adjust,
      )
    session.reporter.note(f"{self.name}: examples by task\n{shares_table(batches.shares())}")
    log.close()
    batches.close()
    checkpoints.close()
    return after({**frozen, **state.train})

  def _feed(self, session: Session, mixture: CachedMixture):
    data = self.feed(
      mixture,
      architecture=session.config.architecture,
      seed=session.seed,
      inputs_length=session.inputs_length,
      targets_length=session.targets_length,
    )
    check_batch(next(iter(data.spec.values()))[0][0], self.accumulate, session.mesh)
    if data.overlong:
      worst = sorted(data.overlong.items(), key=lambda kv: -kv[1])
      session.reporter.note(
        f"{self.name}: {sum(data.overlong.values())} examples of {len(data.overlong)} tasks are longer than "
        f"{session.inputs_length} input or {session.targets_length} target tokens (feed.overlong says what happens); "
        "most in " + ", ".join(f"{t} ({n})" for t, n in worst[:3])
      )
    return data

  def _initial(
    self,
    session: Session,
    model: Blueprint,
    before: Carried | None,
    tasks: tuple[str, ...],
    wanted: Collection[str],
  ) -> Params:
    """Those parameters that are `wanted`: from the stage before or the pre-trained model, fresh where they have none.

    What is trained is float32; what is frozen keeps the dtype that it came with.
    """
    if before is not None:
      shapes = model.shapes
      carried = {p: v for p, v in before.params.items() if p in shapes and v.shape == shapes[p].shape}
      if lost := sorted(before.params.keys() - carried.keys()):
        session.reporter.note(
          f"{self.name}: {len(lost)} parameters of the stage before have no place here: {lost[0]} ..."
        )
      here = {p: v.astype(shapes[p].dtype) if self._trains(p) else v for p, v in carried.items() if p in wanted}
    else:
      here = {} if session.start is None else self._pretrained(session, session.start, model, tasks, wanted)
    return here | model.initialise(session.key("parameters"), session.mesh, only=set(wanted) - here.keys())

  def _trains(self, path: str) -> bool:
    return rule_for(self.learning_rates, path) is not None

  def _pretrained(
    self, session: Session, start: Start, model: Blueprint, tasks: tuple[str, ...], wanted: Collection[str]
  ) -> Params:
    """The parameters that a pre-trained model has, without adapters of other shapes and rows of other tasks."""
    chosen: dict[str, jax.ShapeDtypeStruct] = {}
    anew: list[str] = []
    stored = start.stored(model.shapes)
    for path, kept in stored.items():
      shape = model.shapes[path]
      if kept.shape != shape.shape and "/adapter/" not in path:
        raise UserError(
          f"{start.path}: parameter {path} has shape {kept.shape}, this run's model {shape.shape}.",
          hint="`model.overrides` may not change sizes of a pre-trained model",
        )
      if kept.shape != shape.shape or ("task" in model.axes[path] and start.tasks != tasks):
        anew.append(path)
      elif path in wanted:
        chosen[path] = jax.ShapeDtypeStruct(shape.shape, shape.dtype if self._trains(path) else kept.dtype)
    session.reporter.note(f"{self.name}: starts from {start.path}")
    if anew:
      session.reporter.note(f"{self.name}: {len(anew)} adapter parameters are made anew: {anew[0]} ...")
    shardings = model.shardings(session.mesh)
    params = start.read(chosen, {path: shardings[path] for path in chosen})
    if start.unused:
      session.reporter.note(f"{self.name}: tensors of {start.path} that are not used: {', '.join(start.unused)}")
    return params

  def _announce(self, session: Session, shapes: Mapping, frozen: Mapping) -> None:
    groups = []
    for pattern, rate in self.learning_rates.items():
      members = {p: s for p, s in shapes.items() if rule_for(self.learning_rates, p) == pattern}
      groups.append((pattern, count(members), rate))
    session.reporter.trainable(self.name, groups, count(frozen))

  def _validation(
    self, session: Session, model: Blueprint, mixture: CachedMixture, objective, reweigh: Reweigh, loss_on: str
  ) -> Callable[[Params], float] | None:
    """The loss over the validation split, normalised as in training, as a function of parameters; read once.

    None where no task has such a split.
    """
    if not any(len(t.splits.get("validation", ())) for t in mixture.tasks):
      return None
    loss = make_loss(model, objective, session.mesh)
    batches = list(
      validation_batches(
        mixture,
        architecture=session.config.architecture,
        batch=64,
        inputs_length=session.inputs_length,
        targets_length=session.targets_length,
        limit=VALIDATION_EXAMPLES,
        loss=loss_on,
      )
    )
    # Over all batches at once: a task, unlike a token, can be in several.
    names = ("decoder_loss_weights", "decoder_segment_ids", "decoder_task_ids")
    whole = jax.jit(reweigh)({name: np.concatenate([batch[name] for batch in batches]) for name in names})
    if WEIGHTS in whole:
      parts = np.split(np.asarray(whole[WEIGHTS]), len(batches))
      batches = [batch | {WEIGHTS: weights} for batch, weights in zip(batches, parts, strict=True)]

    def mean(params) -> float:
      parts = jax.device_get([loss(params, place(b, session.mesh)) for b in batches])
      weight = sum(float(p.weight) for p in parts)
      return sum(float(p.sum) for p in parts) / weight if weight else float("nan")

    return mean

  def _evaluate(
    self, session: Session, carried: Carried, step: int, *, quick: bool, trained: bool = True
  ) -> list[dict]:
    carried = replace(carried, trained=trained)
    rows = session.evaluate(session, carried, self.name, step, quick)
    if not quick:
      session.reporter.rows(rows)
    return rows


def _means(rows: list[dict]) -> dict[str, float]:
  """Mean over tasks of every metric, by split."""
  groups: dict[str, list[float]] = {}
  for row in rows:
    groups.setdefault(f"eval/{row['split']}/{row['metric']}", []).append(row["value"])
  return {name: float(np.mean(values)) for name, values in groups.items()}
