"""Cosines between tasks' gradients: by hand, and what a run that goes on remembers of them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from mtx.analysis.gradients import cosines, others, remember


def test_cosines_are_those_of_the_gradients():
  """Half the squared distance to a point has the gradient p - point, over all parameters together."""
  points = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
  params = {"a": jnp.ones(2), "b": jnp.zeros((3, 1))}

  def loss(params, point):
    whole = jnp.concatenate([params["a"], params["b"].ravel()])
    return jnp.square(whole - point).sum() / 2

  gradients = np.array([1, 1, 0, 0, 0]) - points
  unit = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
  found = np.asarray(cosines(loss, params, jnp.asarray(points)))
  np.testing.assert_allclose(found, unit @ unit.T, atol=1e-6)
  pairs = found[~np.eye(4, dtype=bool)]
  assert others(found).mean() == pytest.approx(pairs.mean(), abs=1e-6)


def test_tasks_that_agree_that_conflict_and_that_want_nothing():
  loss = lambda params, direction: params["p"] @ direction
  directions = jnp.array([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
  found = np.asarray(cosines(loss, {"p": jnp.zeros(2)}, directions))
  np.testing.assert_allclose(found[0], [1, 1, -1, 0, 0])
  assert np.isfinite(found).all() and not found[4].any()


def test_a_run_that_goes_on_keeps_what_it_measured_before(tmp_path):
  file = tmp_path / "route" / "gradients.jsonl"
  matrix = lambda value: np.full((2, 2), value)
  for step, value in ((50, 0.1), (100, 0.2), (150, 0.3)):
    remember(file, step, ["s", "t"], matrix(value))
  # It was killed after step 150 and goes on from the checkpoint of step 50.
  found = remember(file, 100, ["s", "t"], matrix(0.5))
  assert [each[0][0] for each in found] == [0.1, 0.5]
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  assert [line["step"] for line in lines] == [50, 100] and lines[0]["tasks"] == ["s", "t"]
