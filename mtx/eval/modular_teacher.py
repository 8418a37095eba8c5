"""The modular teacher of Multi-Head Adapter Routing's sheet: tasks that differ by which option each block takes.

A linear map is frozen; task t adds a low-rank update whose q-th block is one of a few options, drawn for every task and
block. Adapters are trained on many tasks at once, then adapted to new combinations from a few examples (Caccia et al.
2023, arXiv 2211.03831, section 3). The teacher is modular by construction: it shows that routing by block is learned
where there are blocks, not that language has them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray

from mtx.adapters.poly import ADAPTATIONS, new_router
from mtx.adapters.site import inject
from mtx.errors import UserError, did_you_mean
from mtx.models.context import Context
from mtx.models.layers import Dense
from mtx.parallel.mesh import AXES
from mtx.training.optimizer import optimizer
from mtx.training.parameters import Blueprint, Params, blueprint, count, partition, rule_for

TEST = 512  # examples of a new task


class Examples(NamedTuple):
  """Inputs and noisy outputs of tasks."""

  x: Float[Array, "task example dim"]
  y: Float[Array, "task example dim"]


class Student(nnx.Module):
  """One frozen projection with an adapter on it."""

  def __init__(self, dim: int, rngs: nnx.Rngs):
    self.projection = Dense(dim, dim, (None, None), std=dim**-0.5, rngs=rngs)

  def __call__(self, x: Float[Array, "task example dim"]) -> Float[Array, "task example dim"]:
    rows = jnp.arange(x.shape[0], dtype=jnp.int32)
    where = jnp.zeros(x.shape[:2], jnp.int32)
    return self.projection(x, Context(task_ids=rows, segment_ids=where + 1, positions=where))


@gin.configurable(allowlist=[
  "method", "adaptation", "dim", "blocks", "options", "rank", "train_tasks", "new_tasks", "examples", "shots", "noise",
  "steps", "fewshot_steps", "batch", "learning_rates", "fewshot_learning_rates",
])  # fmt: skip
def modular_teacher(
  arm: str,
  seed: int,
  folder: Path,
  *,
  method: Callable = gin.REQUIRED,
  adaptation: str = "MHR",
  dim: int = 64,
  blocks: int = 4,
  options: int = 3,
  rank: int = 2,
  train_tasks: int = 16,
  new_tasks: int = 6,
  examples: int = 256,
  shots: int = 24,
  noise: float = 0.05,
  steps: int = 1000,
  fewshot_steps: int = 1000,
  batch: int = 32,
  learning_rates: dict[str, float] = {".*/adapter/router": 0.1, ".*/adapter/.*": 1e-2},  # noqa: B006
  fewshot_learning_rates: dict[str, float] = {".*/adapter/router": 0.1, ".*/adapter/.*": 1e-3},  # noqa: B006
) -> list[dict[str, Any]]:
  """Mean squared test error on every new task, and how many parameters the adapter has, as result rows.

  Args:
    arm: name of the method in the rows.
    seed: of teacher, data, parameters and batches; equal for all arms, so that they can be paired.
    folder: not used; nothing is left on disk beside the rows.
    method: adapter class, `@LoRA` or `@MHR`.
    adaptation: of ADAPTATIONS: what is trained for a new task. Every adapter is adapted to each task by itself.
    dim: of inputs and outputs. blocks, options, rank: of the teacher's updates.
    examples: of a training task. shots: of a new task.
    noise: standard deviation of what is added to outputs; its square is the least error that can be had.
    steps, batch: updates, each on `batch` examples of every training task. fewshot_steps: updates on all shots.
    learning_rates, fewshot_learning_rates: regex over parameter paths -> rate; the schedule is cosine.

  Raises:
    UserError: an unknown adaptation, or one that leaves nothing to train; blocks that do not divide `dim`.
  """
  if adaptation not in ADAPTATIONS:
    raise UserError(
      f"binding `modular_teacher.adaptation`: no adaptation {adaptation!r}.", hint=did_you_mean(adaptation, ADAPTATIONS)
    )
  if dim % blocks:
    raise UserError(f"binding `modular_teacher.blocks`: {blocks} does not divide {dim}.")
  keys = dict(zip(("teacher", "train", "new", "test", "student", "batches", "routers"),
                  jax.random.split(jax.random.key(seed), 7), strict=True))  # fmt: skip
  model = blueprint(lambda rngs: _adapted(dim, train_tasks, method, rngs))
  params = model.initialise(keys["student"], Mesh(np.array(jax.devices()[:1]).reshape((1,) * len(AXES)), AXES))
  update = updates(keys["teacher"], train_tasks + new_tasks, dim, blocks, options, rank)
  kernel = params["projection/kernel"] + update
  train = draw(keys["train"], kernel[:train_tasks], examples, noise)
  new = draw(keys["new"], kernel[train_tasks:], shots, noise)
  test = draw(keys["test"], kernel[train_tasks:], TEST, noise)

  trained = fit(model, params, train, learning_rates, steps, batch, keys["batches"])
  how = ADAPTATIONS[adaptation]
  small = blueprint(lambda rngs: _adapted(dim, 1, method, rngs))
  rates = _rates(small, fewshot_learning_rates, how.trainable)
  if not rates:
    raise UserError(f"adaptation {adaptation!r} trains nothing of this adapter: {' '.join(sorted(small.shapes))}.")

  def one(key: PRNGKeyArray, new: Examples, test: Examples) -> Float[Array, " example"]:
    start = {path: new_router(v, 1, how.router, key) if path.endswith("router") else v for path, v in trained.items()}
    alone = Examples(new.x[None], new.y[None])
    adapted = fit(small, start, alone, rates, fewshot_steps, shots, key)
    return jnp.square(small.merge(adapted)(test.x[None])[0] - test.y).mean(-1)

  errors = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(keys["routers"], new_tasks), new, test))
  size = count({path: s for path, s in model.shapes.items() if path.endswith(("/a", "/b"))})
  common = {"stage": "fewshot", "method": arm, "split": "heldout", "step": fewshot_steps, "seed": seed}
  rows = [
    {**common, "task": f"new{i}", "category": "modular", "metric": "mse", "value": float(e.mean()), "count": len(e)}
    for i, e in enumerate(errors)
  ]
  about = {"task": "adapter", "category": "size", "metric": "parameters", "value": float(size), "count": 1}
  return [*rows, {**common, "split": "train", **about}]


def updates(
  key: PRNGKeyArray, tasks: int, dim: int, blocks: int, options: int, rank: int
) -> Float[Array, "task dim dim"]:
  """The teacher's updates A_t B_t: rows of A_t and columns of B_t come in blocks, and block q of both is one option.

  A_t and B_t are drawn so that an update changes outputs about as much as the frozen map makes them.
  """
  a_key, b_key, choice_key = jax.random.split(key, 3)
  a = jax.random.normal(a_key, (blocks, options, dim // blocks, rank)) / dim**0.5
  b = jax.random.normal(b_key, (blocks, options, rank, dim // blocks)) / rank**0.5
  chosen = jax.random.randint(choice_key, (tasks, blocks), 0, options)
  block = jnp.arange(blocks)
  of_task = lambda options: a[block, options].reshape(dim, rank) @ b[block, options].swapaxes(0, 1).reshape(rank, dim)
  return jax.vmap(of_task)(chosen)


def draw(key: PRNGKeyArray, kernel: Float[Array, "task dim dim"], number: int, noise: float) -> Examples:
  """`number` examples of every task."""
  x_key, noise_key = jax.random.split(key)
  x = jax.random.normal(x_key, (kernel.shape[0], number, kernel.shape[1]))
  y = x @ kernel
  return Examples(x, y + noise * jax.random.normal(noise_key, y.shape))


def fit(
  model: Blueprint,
  params: Params,
  examples: Examples,
  learning_rates: dict[str, float],
  steps: int,
  batch: int,
  key: PRNGKeyArray,
) -> Params:
  """All parameters after `steps` updates of those that have a rate, each on `batch` examples of every task."""
  train, frozen = partition(params, learning_rates)
  tx = optimizer({p: jax.ShapeDtypeStruct(v.shape, v.dtype) for p, v in train.items()}, learning_rates, steps,
                 schedule="cosine", clip=0.0)  # fmt: skip

  def loss(train: Params, part: Examples) -> Float[Array, ""]:
    return jnp.square(model.merge({**frozen, **train})(part.x) - part.y).mean()

  def step(carry, key):
    train, opt = carry
    rows = jax.random.permutation(key, examples.x.shape[1])[:batch]
    grads = jax.grad(loss)(train, Examples(examples.x[:, rows], examples.y[:, rows]))
    changes, opt = tx.update(grads, opt, train)
    return (optax.apply_updates(train, changes), opt), None

  run = jax.jit(lambda train, keys: jax.lax.scan(step, (train, tx.init(train)), keys)[0][0])
  return {**frozen, **run(train, jax.random.split(key, steps))}


def _adapted(dim: int, tasks: int, method: Callable, rngs: nnx.Rngs) -> Student:
  model = Student(dim, rngs)
  inject(model, tasks, rngs, pattern="projection", method=method)
  return model


def _rates(model: Blueprint, learning_rates: dict[str, float], trainable: str) -> dict[str, float]:
  """Path -> rate of what an adaptation trains."""
  chosen, _ = partition(model.shapes, {trainable: 1.0})
  ruled, _ = partition(chosen, learning_rates)
  return {path: learning_rates[str(rule_for(learning_rates, path))] for path in ruled}
