"""MHR as one kernel with its projection: the same model, gradients and training, on one device and on many."""

from functools import partial

import gin
import jax
import numpy as np
import pytest

from mtx.data.convert import padded
from mtx.errors import UserError
from mtx.objectives.cross_entropy import cross_entropy
from mtx.parallel.activations import within
from mtx.parallel.rules import batch_sharding, place, replicated
from mtx.training.optimizer import optimizer
from mtx.training.parameters import partition
from mtx.training.state import abstract_state, initial_state, state_shardings
from mtx.training.step import make_step
from pallas_kernels.lowrank.api import KERNELS

TASKS, ROWS = 3, 8


def bound(impl):
  gin.bind_parameter("routed_projection.impl", impl)


@pytest.fixture
def batch(examples):
  def make(form):
    made = padded(examples(ROWS, targets=5), "encdec", 8, 5, [i % TASKS for i in range(ROWS)], rows=ROWS)
    if form == "tokens":
      del made["task_ids"]
    return made

  return make


def computed(model, mesh, params, batch):
  """Loss and its gradients, on a mesh."""

  @within(mesh)
  def run(params, batch):
    def loss(params):
      found = cross_entropy(model.merge(params)(batch), batch, TASKS)
      return found.sum / found.weight

    return jax.value_and_grad(loss)(params)

  shardings = model.shardings(mesh)
  placed = {path: jax.device_put(value, shardings[path]) for path, value in params.items()}
  run = jax.jit(run, in_shardings=(shardings, batch_sharding(mesh)), out_shardings=replicated(mesh))
  return jax.tree.map(np.asarray, run(placed, place(batch, mesh)))


def assert_equal(found, wanted):
  for path, value in wanted[1].items():
    np.testing.assert_allclose(found[1][path], value, rtol=0, atol=1e-4 * np.abs(value).max(), err_msg=path)
  np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)


@pytest.mark.parametrize("impl, form", [("mosaic_tpu", "rows"), ("mosaic_tpu", "tokens"), ("triton", "tokens")])
def test_the_model_is_the_same(impl, form, tiny, routed, weights, batch, mesh1, mesh_of):
  """With and without the kernel; and with it on 8 devices that split rows."""
  config = tiny("encdec", encoder_layers=1, decoder_layers=1)
  plain = routed(config, tasks=TASKS)
  bound(impl)
  model = routed(config, tasks=TASKS)
  params = weights(model)
  wanted = computed(plain, mesh1, params, batch(form))
  assert_equal(computed(model, mesh1, params, batch(form)), wanted)
  assert_equal(computed(model, mesh_of(4, 2, 1), params, batch(form)), wanted)


def test_rows_that_the_mesh_does_not_divide(tiny, routed, weights, batch, mesh1, mesh_of):
  """Every device computes them all."""
  bound("mosaic_tpu")
  model = routed(tiny("encdec", encoder_layers=1, decoder_layers=1), tasks=TASKS, pattern="decoder.*self.*/v")
  params = weights(model)
  three = {name: value[:3] for name, value in batch("rows").items()}

  def logits(mesh):
    run = jax.jit(within(mesh)(lambda p, b: model.merge(p)(b).logits))
    return np.asarray(run(*jax.device_put((params, three), replicated(mesh))))

  np.testing.assert_allclose(logits(mesh_of(4, 2, 1)), logits(mesh1), rtol=0, atol=1e-4)


def test_training_is_the_same(tiny, routed, weights, batch, mesh1):
  """200 steps of T5 with trained adapters: the loss curves agree to rounding."""
  rates = {r".*/adapter/router": 0.1, r".*/adapter/.*": 1e-3}
  made = place(batch("tokens"), mesh1)

  def curve():
    model = routed(tiny("encdec", encoder_layers=1, decoder_layers=1), tasks=TASKS)
    shapes, _ = partition(model.shapes, rates)
    tx = optimizer(shapes, rates, 200, schedule="constant")
    shardings = state_shardings(abstract_state(shapes, tx), model.shardings(mesh1), mesh1)
    train, frozen = partition(weights(model), rates)
    state = initial_state(jax.tree.map(np.array, train), tx, shardings)
    kept = {path: model.shardings(mesh1)[path] for path in frozen}
    step = make_step(model, partial(cross_entropy, tasks=TASKS), tx, shardings, kept, mesh1)
    losses = []
    for _ in range(200):
      state, metrics = step(state, frozen, made, jax.random.key(0))
      losses.append(float(metrics["loss"]))
    return losses

  wanted = curve()
  bound("mosaic_tpu")
  found = curve()
  assert wanted[-1] < 0.7 * wanted[0]
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_what_can_not_be_is_said(tiny, routed, weights, batch, mesh8):
  bound("mosaic")
  with pytest.raises(UserError, match=r"`routed_projection.impl`: no backend 'mosaic'") as error:
    routed(tiny("encdec"))
  assert "mosaic_tpu" in error.value.hint
  for impl in KERNELS:
    bound(impl)
    model = routed(tiny("encdec"), tasks=TASKS)
    run = within(mesh8)(lambda p, b: model.merge(p)(b).logits)
    with pytest.raises(UserError, match="computes whole projections") as error:
      jax.eval_shape(run, weights(model), batch("rows"))
    assert "mesh.tensor = 1" in error.value.hint
