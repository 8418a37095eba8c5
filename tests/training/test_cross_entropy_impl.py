"""A T5 trained with logits in memory, and by chunks: one curve."""

from functools import partial

import jax
import numpy as np
import pytest

from mtx.data.convert import padded
from mtx.objectives.cross_entropy import cross_entropy
from mtx.parallel.rules import place
from mtx.training.optimizer import optimizer
from mtx.training.parameters import partition
from mtx.training.state import abstract_state, initial_state, state_shardings
from mtx.training.step import make_step

STEPS = 25


@pytest.fixture(scope="module")
def trained(tiny, routed, weights, examples, mesh1, mesh8):
  """trained(impl, rates, mesh): the loss of every step, and the sums of every task; one compile."""
  model = routed(tiny("encdec"), tasks=3)
  batches = [padded(examples(8, seed=seed), "encdec", 8, 5, [i % 3 for i in range(8)], rows=8) for seed in range(5)]

  def run(impl, rates, mesh):
    shapes, _ = partition(model.shapes, rates)
    placed = {p: jax.device_put(np.array(v), model.shardings(mesh)[p]) for p, v in weights(model).items()}
    train, frozen = partition(placed, rates)
    tx = optimizer(shapes, rates, STEPS)
    shardings = state_shardings(abstract_state(shapes, tx), model.shardings(mesh), mesh)
    state = initial_state(train, tx, shardings)
    objective = partial(cross_entropy, tasks=3, z_loss=1e-4, impl=impl)
    step = make_step(model, objective, tx, shardings, {p: model.shardings(mesh)[p] for p in frozen}, mesh)
    curve = []
    for i in range(STEPS):
      state, metrics = step(state, frozen, place(batches[i % 5], mesh), jax.random.key(0))
      curve.append(np.append(metrics["task_sum"], metrics["loss"]))
    assert step._cache_size() == 1
    return np.array(curve)

  return lambda impl, rates, devices=1: run(impl, rates, mesh8 if devices == 8 else mesh1)


@pytest.mark.parametrize("rates", [{".*": 3e-3}, {r".*/adapter/.*": 1e-2}], ids=["all", "adapters"])
def test_curves_are_equal(trained, rates):
  """Losses and sums per task of 25 steps, to rounding; and they fall."""
  one, other = trained("xla", rates), trained("xla_chunked", rates)
  np.testing.assert_allclose(one, other, rtol=1e-4)
  assert one[-5:, -1].mean() < one[:5, -1].mean()


def test_curves_are_equal_on_eight_devices(trained):
  one, other = trained("xla_chunked", {".*": 3e-3}), trained("xla_chunked", {".*": 3e-3}, 8)
  np.testing.assert_allclose(one, other, rtol=1e-3)
