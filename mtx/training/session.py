"""What all stages of a run share, and what one stage hands to the next."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding
from jaxtyping import PRNGKeyArray
from ml_collections import ConfigDict

from mtx.data.cache import CachedMixture
from mtx.models.build import Model, build
from mtx.training.parameters import Blueprint, Params, blueprint

Row = dict[str, Any]


class Reporter(Protocol):
  """Where a run says what it does; `mtx.report.reporter` implements it."""

  def progress(self, stage: str, total: int, start: int) -> AbstractContextManager[Any]: ...
  def log(self, stage: str) -> Any: ...
  def note(self, text: str) -> None: ...
  def trainable(self, stage: str, groups: Sequence[tuple[str, int, float]], frozen: int) -> None: ...
  def begin(self, **fields: Any) -> None: ...
  def record(self, **fields: Any) -> None: ...
  def routes(self, stage: str, step: int, tasks: Sequence[str], weights: np.ndarray) -> None: ...
  def samples(self, stage: str, step: int, name: str, lines: Sequence[Row]) -> None: ...
  def rows(self, rows: Sequence[Row]) -> None: ...
  def saved_rows(self, stage: str) -> list[Row]: ...
  def forget(self, stage: str) -> None: ...


@dataclass(frozen=True)
class Carried:
  """A model with parameters.

  Attributes:
    model, params: all parameters, trainable and frozen.
    adapter: how adapters were injected, `adapter(model, tasks, rngs)`; None without.
    tasks: names in the order of router rows.
    trained: updates have been made.
  """

  model: Blueprint
  params: Params
  adapter: Callable | None
  tasks: tuple[str, ...]
  trained: bool


def copied(carried: Carried) -> Carried:
  """The model with arrays of its own: a stage's steps donate those that they are given."""
  return replace(carried, params={path: value.copy() for path, value in carried.params.items()})


class Start(Protocol):
  """A pre-trained model whose arrays were not read yet; `mtx.pretrained.model` finds it.

  Attributes:
    path: its folder.
    tasks: names of its routers' rows.
    unused: tensors of which nothing was made; known after reading.
  """

  @property
  def path(self) -> Path: ...

  @property
  def tasks(self) -> tuple[str, ...]: ...

  @property
  def unused(self) -> tuple[str, ...]: ...

  def stored(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]: ...
  def read(self, shapes: Mapping[str, jax.ShapeDtypeStruct], shardings: Mapping[str, Sharding]) -> Params: ...


# (session, carried, stage name, step, quick) -> rows; quick = a sample, for use during training.
Evaluate = Callable[["Session", Carried, str, int, bool], list[Row]]


@dataclass(frozen=True)
class Session:
  """Attributes:
  run_dir: everything the run writes lies under it.
  config: sizes of the model, with `vocab_size`.
  mixture: "train", "heldout" or the name of a mixture -> its cache.
  inputs_length, targets_length: most tokens of an example, EOS included.
  evaluate_every, save_every: steps; 0 = only at the end of a stage.
  gin: the operative config so far.
  start: the model that the first stage starts from; None: fresh parameters.
  """

  run_dir: Path
  config: ConfigDict
  mesh: Mesh
  seed: int
  mixture: Callable[[str], CachedMixture]
  inputs_length: int
  targets_length: int
  evaluate_every: int
  save_every: int
  evaluate: Evaluate
  reporter: Reporter
  gin: Callable[[], str]
  start: Start | None = None

  def key(self, *names: str | int) -> PRNGKeyArray:
    """A key of the run's seed for one purpose: equal names, equal key, whatever else a run does."""
    key = jax.random.key(self.seed)
    for name in names:
      key = jax.random.fold_in(key, name if isinstance(name, int) else _number(name))
    return key

  def blueprint(self, adapter: Callable | None, tasks: int) -> Blueprint:
    """The run's model, with adapters that tell `tasks` tasks apart."""

    def make(rngs: nnx.Rngs) -> Model:
      model = build(self.config, rngs=rngs)
      if adapter is not None:
        adapter(model, tasks, rngs)
      return model

    return blueprint(make)

  def folder(self, stage: str) -> Path:
    return self.run_dir / stage


def _number(name: str) -> int:
  # Python's hash of a string changes from process to process.
  return int.from_bytes(name.encode(), "little") % (2**31 - 1)


def rerouted(
  params: Mapping[str, jax.Array], source: Blueprint, target: Blueprint, route: Callable, key: PRNGKeyArray
) -> Params:
  """Parameters of `source` for `target`, the same model with another number of tasks.

  Every array with a task axis is replaced by `route(array, tasks, key)`; the rest is carried as it is.
  """
  moved = {}
  for i, path in enumerate(sorted(target.shapes)):
    if "task" in target.axes[path]:
      axis = len(target.shapes[path].shape) - len(target.axes[path]) + target.axes[path].index("task")
      tasks = target.shapes[path].shape[axis]
      moved[path] = route(params[path], tasks, jax.random.fold_in(key, i))
    else:
      moved[path] = params[path]
  return moved
