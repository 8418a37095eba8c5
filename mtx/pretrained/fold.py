"""Adapters folded into the projections that they hang on."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from mtx.adapters.site import sites
from mtx.errors import UserError, did_you_mean
from mtx.models.context import Context
from mtx.training.parameters import Blueprint, Params

TOLERANCE = 1e-3  # of the largest number that an adapter adds


def folded(model: Blueprint, params: Mapping[str, Array], tasks: Sequence[str], task: str | None = None) -> Params:
  """Parameters of the model without adapters that computes the same: W + what the adapter adds for the identity.

  Sums are made in float32; a kernel keeps its dtype.

  Args:
    tasks: names of the routers' rows.
    task: whose routing counts, where adapters are routed.

  Raises:
    UserError: routed adapters without a task, an unknown task, or an adapter that is not linear in its input.
  """
  row = _row(model, tasks, task)
  merged = {path: value for path, value in params.items() if "/adapter/" not in path}
  for name, dense in sites(model.merge(params)).items():
    if dense.adapter is None:
      continue
    path = f"{name}/kernel"
    one = lambda adapter, din=dense.din, name=name: _delta(adapter, din, row)
    added = jax.lax.map(one, dense.adapter) if params[path].ndim == 3 else one(dense.adapter)
    delta, error = added
    if float(jnp.max(error)) > TOLERANCE:
      raise UserError(f"the adapter at {name} is not linear in its input, so no kernel does the same.")
    kernel = params[path]
    merged[path] = (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)
  return merged


def _row(model: Blueprint, tasks: Sequence[str], task: str | None) -> int:
  routed = any("task" in axes for axes in model.axes.values())
  if not routed or (task is None and len(tasks) == 1):
    return 0
  if task is None:
    raise UserError("these adapters are routed: every task has a model of its own.", hint="name one with --task NAME")
  if task not in tasks:
    raise UserError(f"--task {task!r} is no row of the routers.", hint=did_you_mean(task, tasks))
  return list(tasks).index(task)


def _delta(adapter: nnx.Module, din: int, row: int) -> tuple[Float[Array, "din dout"], Float[Array, ""]]:
  """What the adapter adds for every unit vector, and how far off that is for four random ones, relatively."""
  adds = lambda x: adapter(x[None], _context(len(x), row))[0]  # type: ignore[operator]
  delta = adds(jnp.eye(din, dtype=jnp.float32))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(4, din)), jnp.float32)
  y = adds(x)
  return delta, jnp.max(jnp.abs(y - x @ delta)) / jnp.maximum(jnp.max(jnp.abs(y)), 1e-9)


def _context(length: int, row: int) -> Context:
  ones = jnp.ones((1, length), jnp.int32)
  return Context(jnp.full((1,), row, jnp.int32), segment_ids=ones, positions=jnp.arange(length)[None])
