"""Whether tasks pull the same parameters the same way: cosines between their gradients, while a model is trained.

Caccia et al. 2023 (arXiv 2211.03831, section 5) explain what routing gains by it.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gin
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mtx.atomic import write
from mtx.data.cache import CachedMixture
from mtx.data.feed import validation_batches
from mtx.errors import UserError
from mtx.objectives.cross_entropy import cross_entropy
from mtx.training.parameters import Params, partition
from mtx.training.session import Carried, Row, Session
from mtx.training.stage import Stage

# Values of rows are in hundredths, as scores are.
METRIC, FILE = "gradient_cosine", "gradients.jsonl"
SHARED = r".*/adapter/(a|b)"


def cosines(loss: Callable[[Params, Any], Float[Array, ""]], params: Params, batches: Any) -> Float[Array, "task task"]:
  """Cosine between the gradients of every two tasks, over all entries of `params`.

  A task without a gradient (all zeros) has cosine 0 with every other. One task at a time is in memory, beside T vectors
  of as many entries as there are parameters.

  Args:
    loss: of parameters on one task's batch; pure.
    params: those whose gradients are compared. What no other task shares, such as a task's own router, belongs to the
      rest of the model: it would only make the cosines smaller.
    batches: any tree of arrays with a leading axis of tasks.
  """

  def gradient(batch: Any) -> Float[Array, " entry"]:
    leaves = jax.tree.leaves(jax.grad(loss)(params, batch))
    return jnp.concatenate([leaf.astype(jnp.float32).ravel() for leaf in leaves])

  gradients = jax.lax.map(gradient, batches)
  norms = jnp.linalg.norm(gradients, axis=1, keepdims=True)
  unit = gradients / jnp.where(norms > 0, norms, 1)
  return unit @ unit.T


def others(cosine: Float[np.ndarray, "task task"]) -> Float[np.ndarray, " task"]:
  """Mean cosine of each task with all others; their mean is the mean over pairs."""
  tasks = len(cosine)
  return (cosine.sum(1) - np.diagonal(cosine)) / max(tasks - 1, 1)


@gin.configurable("aligned")
@dataclass(frozen=True)
class Aligned:
  """A stage that is another one, and measures cosines whenever that one evaluates: `train.stages = [@aligned()]`.

  Rows of metric "gradient_cosine", one a training task: 100 times its mean cosine with the others, at the end (method
  "trained") and as the mean over all measurements (method "while training"). All matrices of cosines are in
  RUN/STAGE/gradients.jsonl, a line a measurement: {"step", "tasks", "cosine"}.

  Attributes:
    stage: what is trained, `@route/stage()`.
    pattern: regex over paths of the parameters that tasks share.
    examples: of each task's training split, the first ones: a task's batch.
  """

  stage: Stage = gin.REQUIRED
  pattern: str = SHARED
  examples: int = 16

  @property
  def name(self) -> str:
    return self.stage.name

  @property
  def mixture(self) -> str:
    return self.stage.mixture

  def run(self, session: Session, before: Carried | None) -> Carried:
    """Trains; the wrapped stage's evaluations come first."""
    measure = Measure(self.pattern, self.examples, session.mixture(self.mixture))

    def evaluate(current: Session, carried: Carried, stage: str, step: int, quick: bool) -> list[Row]:
      rows = session.evaluate(current, carried, stage, step, quick)
      return rows + measure(current, carried, stage, step, quick) if step else rows

    return self.stage.run(replace(session, evaluate=evaluate), before)


class Measure:
  """Cosines of one stage; compiled once. What was measured before a run was stopped is on disk."""

  def __init__(self, pattern: str, examples: int, mixture: CachedMixture):
    self._pattern, self._examples, self._mixture = pattern, examples, mixture
    self._batches: Any = None
    self._cosines: Callable | None = None

  def __call__(self, session: Session, carried: Carried, stage: str, step: int, quick: bool) -> list[Row]:
    """Rows of this step; at the end of the stage, also means over all steps."""
    shared, rest = partition(carried.params, {self._pattern: 1.0})
    if not shared:
      raise UserError(
        f"binding `aligned.pattern`: {self._pattern!r} matches no parameter.",
        hint="the parameters are: " + " ".join(sorted(carried.params)),
      )
    if self._cosines is None:
      self._batches = stacked(self._mixture, session, self._examples)
      self._cosines = jax.jit(functools.partial(_model_cosines, carried.model.merge))
    matrix = np.asarray(self._cosines(shared, rest, self._batches))
    tasks = [task.name for task in self._mixture.tasks]
    steps = remember(session.folder(stage) / FILE, step, tasks, matrix)
    means = {"trained": others(matrix)}
    if not quick:
      means["while training"] = np.mean([others(np.array(each)) for each in steps], axis=0)
    common = {"stage": stage, "split": "train", "step": step, "seed": session.seed, "metric": METRIC}
    return [
      {
        **common,
        "method": method,
        "task": t.name,
        "category": t.category,
        "value": 100 * float(v),
        "count": self._examples,
      }
      for method, values in means.items()
      for t, v in zip(self._mixture.tasks, values, strict=True)
    ]


def stacked(mixture: CachedMixture, session: Session, examples: int) -> dict[str, Array]:
  """Features [task, example, ...] of the first training examples of every task, in the feed's form of one task a row.

  Raises:
    UserError: a task has fewer.
  """
  for task in mixture.tasks:
    if len(task.splits.get("train", ())) < examples:
      raise UserError(
        f"binding `aligned.examples` = {examples}: task {task.name} has {len(task.splits.get('train', ()))}.",
        hint="give a number that every task has",
      )
  parts = list(
    validation_batches(
      mixture,
      architecture=session.config.architecture,
      split="train",
      batch=examples,
      inputs_length=session.inputs_length,
      targets_length=session.targets_length,
      limit=examples,
    )
  )
  return {name: jnp.stack([part[name] for part in parts]) for name in parts[0]}


def remember(file: Path, step: int, tasks: Sequence[str], matrix: Float[np.ndarray, "task task"]) -> list[list]:
  """Adds a step's matrix to a file of JSON lines, in place of what a stopped run left of that step or later ones.

  Returns:
    All matrices of the file.
  """
  lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
  kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < step]
  rounded = np.round(matrix.astype(float), 6).tolist()
  kept.append(json.dumps({"step": step, "tasks": list(tasks), "cosine": rounded}))
  write(file, "\n".join(kept) + "\n")
  return [json.loads(line)["cosine"] for line in kept]


def _model_cosines(merge: Callable, shared: Params, rest: Params, batches: Any) -> Float[Array, "task task"]:
  def loss(shared: Params, batch: Any) -> Float[Array, ""]:
    # Every batch is of one task, so its tokens are all counted under some id and the sum is theirs.
    found = cross_entropy(merge({**rest, **shared})(batch), batch, 1)
    return found.sum / jnp.maximum(found.weight, 1)

  return cosines(loss, shared, batches)
