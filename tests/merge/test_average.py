"""Averaging: merging what is already one is the identity; scale moves along the mean task vector."""

import jax.numpy as jnp
import numpy as np
import pytest

from mtx.errors import UserError
from mtx.merge.average import average


def tree(seed: int) -> dict:
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return {"decoder/layers/mlp/wo/adapter/a": draw(2, 4, 3), "decoder/norm/scale": draw(5)}


@pytest.mark.parametrize("count", [1, 3])
def test_identical_experts_merge_to_themselves(count):
  """To 1e-6 of their size, whatever the base; with the base as every expert, bitwise the base."""
  base, expert = tree(0), tree(1)
  for path, value in average(base, [expert] * count).items():
    np.testing.assert_allclose(value, expert[path], rtol=1e-6, atol=1e-6)
  for path, value in average(base, [base] * count, scale=0.7).items():
    np.testing.assert_array_equal(value, base[path])


def test_scale_one_is_the_plain_mean():
  """Of experts that differ, in any order."""
  base, experts = tree(0), [tree(s) for s in (1, 2, 3)]
  merged, turned = average(base, experts), average(base, experts[::-1])
  for path, value in merged.items():
    wanted = np.mean([np.asarray(e[path], np.float64) for e in experts], axis=0)
    np.testing.assert_allclose(value, wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(turned[path], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 0.3, 2.0])
def test_scale_is_task_arithmetic(scale):
  """base + scale * mean(expert - base); scale 0 is bitwise the base."""
  base, experts = tree(0), [tree(1), tree(2)]
  for path, value in average(base, experts, scale=scale).items():
    vector = np.mean([np.asarray(e[path]) - np.asarray(base[path]) for e in experts], axis=0)
    np.testing.assert_allclose(value, base[path] + scale * vector, rtol=0, atol=2e-6)
    if scale == 0:
      np.testing.assert_array_equal(value, base[path])


@pytest.mark.parametrize(
  "change, words",
  [
    (lambda t: t.pop("decoder/norm/scale"), ["expert 1", "decoder/norm/scale", "absent", r"\(5,\)"]),
    (lambda t: t.update({"decoder/norm/scale": jnp.ones(6)}), ["expert 1", "decoder/norm/scale", r"\(6,\)", r"\(5,\)"]),
    (lambda t: t.update({"zzz": jnp.ones(6)}), ["expert 1", "zzz", r"\(6,\)", "absent"]),
  ],
)
def test_trees_that_differ(change, words):
  """The expert, the path and both shapes are named."""
  wrong = tree(2)
  change(wrong)
  with pytest.raises(UserError, match=".*".join(words)):
    average(tree(0), [tree(1), wrong])


def test_no_experts():
  with pytest.raises(UserError, match="no experts"):
    average(tree(0), [])
