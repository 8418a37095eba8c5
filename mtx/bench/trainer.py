"""A training step of a model of given sizes: what the benches time, weigh and feed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from mtx.adapters.poly import MHR
from mtx.adapters.site import inject
from mtx.data.convert import padded
from mtx.models.build import Model, build
from mtx.models.sizes import PRESETS
from mtx.objectives.cross_entropy import cross_entropy
from mtx.parallel.mesh import make_mesh
from mtx.parallel.rules import place, replicated
from mtx.training.optimizer import optimizer
from mtx.training.parameters import blueprint, partition
from mtx.training.state import abstract_state, initial_state, state_shardings
from mtx.training.step import make_step

Batch = Mapping[str, np.ndarray]
ADAPTED = r"(encoder|decoder)/layers/.*"  # every projection of every block
ADAPTERS = {".*/adapter/router": 0.1, ".*/adapter/.*": 1e-3}
EVERYTHING = {".*": 1e-3}


@dataclass(frozen=True)
class Shape:
  """Sizes of the routed training step. The default is the one that targets are stated for."""

  preset: str = "t5_small"
  vocabulary: int = 32128
  batch: int = 8
  inputs: int = 256
  targets: int = 64
  skills: int = 8
  splits: int = 4
  rank: int = 4
  tasks: int = 8

  @property
  def tokens(self) -> int:
    """Of a batch whose rows are full."""
    return self.batch * (self.inputs + self.targets)

  def __str__(self) -> str:
    rows = f"batch {self.batch}, {self.inputs} in / {self.targets} out"
    return f"{self.preset} encdec float32, {self.vocabulary} pieces, {rows}"

  def config(self) -> ConfigDict:
    config = PRESETS[self.preset]()
    config.update(vocab_size=self.vocabulary, architecture="encdec")
    return config

  def examples(self) -> list[dict[str, np.ndarray]]:
    """Random tokens, no padding: every contestant gets these."""
    rng = np.random.default_rng(0)
    tokens = lambda length: rng.integers(3, self.vocabulary, length, np.int32)
    return [{"inputs": tokens(self.inputs), "targets": tokens(self.targets)} for _ in range(self.batch)]

  def task_ids(self) -> list[int]:
    return [row % self.tasks for row in range(self.batch)]

  def random_batch(self) -> Batch:
    return padded(self.examples(), "encdec", self.inputs, self.targets, self.task_ids(), rows=self.batch)


T5_SMALL = Shape()


class Trainer:
  """The step of `mtx.training.step` on a mesh over all devices.

  Args:
    config: sizes, with `vocab_size` and `architecture`.
    tasks: that routers and losses tell apart.
    rates: regex over parameter paths -> learning rate; the rest is frozen.
    adapter: adapter class for every projection of every block, or None.
    mesh: None: over all devices. One over TPUs that are not at hand is compiled for, and not run.
  """

  def __init__(
    self,
    config: ConfigDict,
    tasks: int,
    rates: Mapping[str, float],
    adapter: Callable | None = None,
    mesh: Mesh | None = None,
  ):
    def make(rngs: nnx.Rngs) -> Model:
      model = build(config, rngs=rngs)
      if adapter is not None:
        inject(model, tasks, rngs, pattern=ADAPTED, method=adapter)
      return model

    self.mesh = make_mesh() if mesh is None else mesh
    self.model = blueprint(make)
    self.rates = rates
    self.shapes, self.frozen_shapes = partition(self.model.shapes, rates)
    self.tx = optimizer(self.shapes, rates, 10_000)
    self.abstract = abstract_state(self.shapes, self.tx)
    parameters = self.model.shardings(self.mesh)
    self.shardings = state_shardings(self.abstract, parameters, self.mesh)
    self.frozen_shardings = {p: parameters[p] for p in self.frozen_shapes}
    objective = partial(cross_entropy, tasks=tasks)
    self.step = make_step(self.model, objective, self.tx, self.shardings, self.frozen_shardings, self.mesh)
    self._compiled: dict[tuple, jax.stages.Compiled] = {}

  @cached_property
  def key(self) -> PRNGKeyArray:
    """Randomness of every step."""
    return jax.device_put(jax.random.key(1), replicated(self.mesh))

  @cached_property
  def parameters(self) -> list:
    """[state, frozen]; the state is replaced by every step."""
    params = self.model.initialise(jax.random.key(0), self.mesh)
    train, frozen = partition(params, self.rates)
    return [initial_state(train, self.tx, self.shardings), frozen]

  def compiled(self, batch: Batch) -> jax.stages.Compiled:
    """The step for batches shaped like this one, from shapes alone: nothing is allocated."""
    shapes = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in batch.items()}
    key = tuple((name, s.shape) for name, s in sorted(shapes.items()))
    if key not in self._compiled:
      traced = self.step.trace(self.abstract, self.frozen_shapes, shapes, jax.eval_shape(lambda: jax.random.key(1)))
      tpu = self.mesh.devices.flat[0].platform == "tpu"
      self._compiled[key] = traced.lower(lowering_platforms=("tpu",) if tpu else None).compile()
    return self._compiled[key]

  def __call__(self, batch: Batch) -> None:
    """One update, done when it returns."""
    state, frozen = self.parameters
    state, metrics = self.compiled(batch)(state, frozen, place(dict(batch), self.mesh), self.key)
    self.parameters[0] = state
    jax.block_until_ready((state, metrics))

  def bytes(self, batch: Batch) -> int:
    """Most device memory that one step needs, by the compiler's own account."""
    m = self.compiled(batch).memory_analysis()
    assert m is not None, "this backend has no memory analysis"
    return m.argument_size_in_bytes + m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes


@cache
def routed(shape: Shape) -> Trainer:
  """MHR on a frozen base; made and compiled once for all benches."""
  method = partial(MHR, skills=shape.skills, splits=shape.splits, rank=shape.rank)
  return Trainer(shape.config(), shape.tasks, ADAPTERS, method)
