"""A mesh changes where things are computed, and no number: every architecture, adapter site and kind of mesh."""

import jax
import numpy as np
import pytest

from mtx.data.convert import padded
from mtx.objectives.cross_entropy import cross_entropy
from mtx.parallel.activations import within
from mtx.parallel.rules import batch_sharding, place, replicated

TASKS = 3


def computed(model, mesh, params, batch):
  """Logits, and gradients of the loss, on a mesh."""

  @within(mesh)
  def run(params, batch):
    def loss(params):
      outputs = model.merge(params)(batch)
      found = cross_entropy(outputs, batch, TASKS)
      return found.sum / found.weight, outputs.logits

    (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return logits, gradients

  shardings = model.shardings(mesh)
  placed = {path: jax.device_put(value, shardings[path]) for path, value in params.items()}
  run = jax.jit(run, in_shardings=(shardings, batch_sharding(mesh)), out_shardings=replicated(mesh))
  return jax.tree.map(np.asarray, run(placed, place(batch, mesh)))


@pytest.mark.parametrize(
  ("architecture", "pattern", "rows"),
  [
    # With the first two the partitioner, left alone, computed wrong rows on 2 x 2 x 2 devices.
    ("encdec", r"decoder.*self.*/v", "mixed"),
    ("encdec", r"decoder.*self.*/v", "one task each"),
    ("causal", r".*/(q|v|wo)", "mixed"),
  ],
)
def test_equal_on_eight_devices(architecture, pattern, rows, tiny, routed, weights, examples, mesh8, mesh1):
  model = routed(tiny(architecture, tied_head=False), tasks=TASKS, pattern=pattern)
  params = weights(model)
  batch = padded(examples(8, targets=5), architecture, 8, 4, [i % TASKS for i in range(8)], rows=8)
  if rows == "mixed":
    del batch["task_ids"]
  logits, gradients = computed(model, mesh1, params, batch)
  found, gradients8 = computed(model, mesh8, params, batch)
  np.testing.assert_allclose(found, logits, rtol=0, atol=2e-5 * np.abs(logits).max())
  for path, value in gradients.items():
    np.testing.assert_allclose(gradients8[path], value, rtol=0, atol=1e-4 * np.abs(value).max(), err_msg=path)
