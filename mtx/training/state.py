"""What a training step changes."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mtx.parallel.rules import optimizer_shardings, replicated
from mtx.training.parameters import Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
  """Attributes (arrays; shapes or shardings in the trees that describe a state):
  step: int32 scalar, updates made so far.
  train: trainable parameters, path -> array; frozen ones are passed to the step beside the state.
  opt: optimizer state of the trainable parameters.
  """

  step: Any
  train: dict[str, Any]
  opt: Any


def abstract_state(shapes: dict[str, jax.ShapeDtypeStruct], tx: optax.GradientTransformation) -> State:
  """Shapes and dtypes of the state over trainable `shapes`."""
  return State(jax.ShapeDtypeStruct((), jnp.int32), shapes, jax.eval_shape(tx.init, shapes))


def state_shardings(abstract: State, parameters, mesh: Mesh) -> State:
  """Shardings shaped like the state."""
  train = {p: parameters[p] for p in abstract.train}
  return State(replicated(mesh), train, optimizer_shardings(abstract.opt, train, abstract.train, mesh))


def initial_state(train: Params, tx: optax.GradientTransformation, shardings: State) -> State:
  """Step zero. Optimizer state is born with its shardings, or the first step would compile twice."""
  opt = jax.jit(tx.init, out_shardings=shardings.opt)(train)
  return State(jax.device_put(jnp.zeros((), jnp.int32), shardings.step), train, opt)
