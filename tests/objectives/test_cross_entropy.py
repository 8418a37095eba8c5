"""Cross-entropy: sums, in all and per task, against numpy in float64."""

import jax
import numpy as np
import pytest

from mtx.models.outputs import Outputs
from mtx.objectives.cross_entropy import cross_entropy

ROWS, LENGTH, VOCABULARY, TASKS = 4, 6, 9, 5


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  segments = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 3, 3, 0, 0], [1] * 6, [0] * 6], np.int32)
  return {
    "decoder_target_tokens": rng.integers(0, VOCABULARY, (ROWS, LENGTH)).astype(np.int32),
    "decoder_loss_weights": ((segments > 0) * rng.choice([0.0, 0.5, 1.0], (ROWS, LENGTH))).astype(np.float32),
    "decoder_task_ids": np.where(segments > 0, rng.integers(0, TASKS - 1, (ROWS, LENGTH)), 0).astype(np.int32),
  }


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_sums_equal_numpy(batch, z_loss):
  """Sum of weight * (-log p + z log(Z)^2), and the same per task, to 1e-6; a task that is absent has zeros."""
  logits = 5 * np.random.default_rng(1).normal(size=(ROWS, LENGTH, VOCABULARY)).astype(np.float32)
  log_z = np.log(np.exp(logits.astype(np.float64)).sum(-1))
  scores = np.take_along_axis(logits, batch["decoder_target_tokens"][..., None], axis=-1)[..., 0]
  token_loss = (log_z - scores + z_loss * log_z**2) * batch["decoder_loss_weights"]
  loss = jax.jit(lambda o, b: cross_entropy(o, b, TASKS, z_loss=z_loss))(Outputs(logits), batch)
  np.testing.assert_allclose(loss.sum, token_loss.sum(), rtol=1e-6)
  assert loss.weight == batch["decoder_loss_weights"].sum()
  for task in range(TASKS):
    here = batch["decoder_task_ids"] == task
    np.testing.assert_allclose(loss.task_sum[task], token_loss[here].sum(), rtol=1e-6)
    assert loss.task_weight[task] == batch["decoder_loss_weights"][here].sum()
  assert loss.task_sum[TASKS - 1] == loss.task_weight[TASKS - 1] == 0
  assert loss.task_sum[1] > 0


def test_z_loss_pulls_log_z_to_zero(batch):
  """Its gradient alone is 2 z log Z p; shifting all logits changes it and nothing else."""
  logits = np.random.default_rng(1).normal(size=(ROWS, LENGTH, VOCABULARY)).astype(np.float32)
  total = lambda logits, z: cross_entropy(Outputs(logits), batch, TASKS, z_loss=z).sum
  plain, shifted = (float(total(logits + shift, 0.0)) for shift in (0.0, 3.0))
  np.testing.assert_allclose(plain, shifted, rtol=1e-5)
  both = jax.grad(total)(logits, 0.1) - jax.grad(total)(logits, 0.0)
  log_z = np.log(np.exp(logits).sum(-1, keepdims=True))
  wanted = 0.1 * 2 * log_z * np.exp(logits - log_z) * batch["decoder_loss_weights"][..., None]
  np.testing.assert_allclose(both, wanted, rtol=0, atol=1e-6)


def test_targets_of_weight_zero_are_nothing(batch):
  """Whatever the target at a token of weight 0: bitwise the same loss and a zero gradient there."""
  logits = np.random.default_rng(1).normal(size=(ROWS, LENGTH, VOCABULARY)).astype(np.float32)
  unweighted = batch["decoder_loss_weights"] == 0
  other = batch | {"decoder_target_tokens": np.where(unweighted, 3, batch["decoder_target_tokens"])}
  function = jax.value_and_grad(lambda logits, b: cross_entropy(Outputs(logits), b, TASKS).sum)
  (one, gradient), (two, _) = function(logits, batch), function(logits, other)
  assert one == two
  assert not np.asarray(gradient)[unweighted].any()
