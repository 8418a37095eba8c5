"""The one jitted training step."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from mtx.objectives.loss import Loss
from mtx.objectives.normalise import Reweigh
from mtx.parallel.activations import within
from mtx.parallel.rules import batch_sharding, replicated
from mtx.training.parameters import Blueprint, Params
from mtx.training.state import State

Metrics = dict[str, Array]


def make_step(
  model: Blueprint,
  objective: Callable[..., Loss],
  tx: optax.GradientTransformation,
  shardings: State,
  frozen_shardings: dict,
  mesh: Mesh,
  *,
  accumulate: int = 1,
  reweigh: Reweigh | None = None,
):
  """Compiles nothing yet; returns `step(state, frozen, batch, key) -> (state, metrics)`, donating the state.

  Args:
    objective: (outputs, batch) -> Loss of sums.
    accumulate: microbatches a step; the gradient equals the full batch's, since sums are divided only at the end.
    reweigh: batch -> batch, applied to the whole batch before it is split (`mtx.objectives.normalise`).
  """

  def loss_sum(train: Params, frozen: Params, batch, key, step):
    outputs = model.merge({**frozen, **train})(batch, key=key, step=step)
    loss = objective(outputs, batch)
    return loss.sum, loss

  gradients = jax.grad(loss_sum, has_aux=True)

  @within(mesh)
  def step(state: State, frozen: Params, batch: dict[str, Array], key: PRNGKeyArray) -> tuple[State, Metrics]:
    key = jax.random.fold_in(key, state.step)
    batch = batch if reweigh is None else reweigh(batch)
    f = partial(gradients, state.train, frozen, step=state.step)
    grads, loss = f(batch, key) if accumulate == 1 else _accumulate(f, batch, key, accumulate)
    weight = jnp.where(loss.weight > 0, loss.weight, 1)  # a batch of nothing but padding changes nothing
    grads = jax.tree.map(lambda g: g / weight, grads)
    updates, opt = tx.update(grads, state.opt, state.train)
    state = State(state.step + 1, optax.apply_updates(state.train, updates), opt)
    metrics = {
      "loss": loss.sum / weight,
      "weight": loss.weight,
      "tokens": sum(jnp.sum(ids > 0) for name, ids in batch.items() if name.endswith("segment_ids")),
      "gradient_norm": optax.global_norm(grads),
      "update_norm": optax.global_norm(updates),
      "task_sum": loss.task_sum,
      "task_weight": loss.task_weight,
    }
    return state, metrics

  whole = replicated(mesh)
  return jax.jit(
    step,
    donate_argnums=0,
    in_shardings=(shardings, frozen_shardings, batch_sharding(mesh), whole),
    out_shardings=(shardings, whole),
  )


def _accumulate(f, batch, key, n: int):
  # Row i goes to microbatch i % n, so that every microbatch keeps an equal part on every device.
  micro = jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1), batch)
  keys = jax.random.split(key, n)
  first = jax.tree.map(lambda x: x[0], micro)
  zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f, first, keys[0]))

  def add(total, micro_key):
    return jax.tree.map(jnp.add, total, f(*micro_key)), None

  return jax.lax.scan(add, zero, (micro, keys))[0]


def make_loss(model: Blueprint, objective: Callable[..., Loss], mesh: Mesh):
  """Returns jitted `loss(params, batch) -> Loss` without dropout, for validation."""

  @within(mesh)
  def loss(params: Params, batch: dict[str, Array]) -> Loss:
    return objective(model.merge(params)(batch), batch)

  return jax.jit(loss, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))
