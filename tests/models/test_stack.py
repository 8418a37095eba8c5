"""What a stack of blocks promises beside its numbers: randomness, rematerialisation, precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtx.data.convert import padded
from mtx.models.layers import dropout
from mtx.objectives.cross_entropy import cross_entropy


@pytest.fixture(scope="module")
def batch(examples):
  return padded(examples(4), "causal", 8, 5, [0, 1, 2, 0], rows=4)


def evaluated(model):
  """Jitted (params, batch, key) -> ((loss, logits), gradients)."""

  def loss(params, batch, key):
    outputs = model.merge(params)(batch, key=key)
    return cross_entropy(outputs, batch, 3).sum, outputs.logits

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.fixture(scope="module")
def still(tiny, routed, weights, batch):
  """(parameters, logits) of the model without dropout, without a key, in float32."""
  model = routed(tiny("causal"))
  params = weights(model)
  return params, jax.jit(lambda params, batch: model.merge(params)(batch).logits)(params, batch)


def test_remat_changes_nothing(tiny, routed, still, batch):
  """Loss and gradients to 1e-6 of their scale, with dropout: the recomputed masks are the same ones."""
  params, key = still[0], jax.random.key(5)
  plain, remat = (tiny("causal", dropout=0.3, **changes) for changes in ({}, {"remat": True}))
  ((one, _), grads), ((other, _), regrads) = (evaluated(routed(c))(params, batch, key) for c in (plain, remat))
  np.testing.assert_allclose(one, other, rtol=1e-6)
  for path, g in grads.items():
    np.testing.assert_allclose(g, regrads[path], rtol=0, atol=1e-6 * np.abs(g).max() + 1e-9, err_msg=path)


def test_dropout_follows_the_key(tiny, routed, still, batch):
  """Equal keys, equal logits; other keys, others; without a key, those of a model without dropout."""
  model, (params, without) = routed(tiny("causal", dropout=0.3)), still
  logits = jax.jit(lambda params, batch, key=None: model.merge(params)(batch, key=key).logits)
  one, again, other = (np.asarray(logits(params, batch, jax.random.key(k))) for k in (1, 1, 2))
  np.testing.assert_array_equal(one, again)
  assert np.abs(one - other).max() > 0.01
  np.testing.assert_array_equal(logits(params, batch), without)


def test_dropout_keeps_the_mean():
  """Inverted dropout: kept values grow by 1 / (1 - rate), about `rate` of them are zero."""
  x = jnp.ones((100, 100))
  y = np.asarray(dropout(x, 0.25, jax.random.key(0)))
  assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
  assert abs((y == 0).mean() - 0.25) < 0.02
  assert dropout(x, 0.25, None) is x and dropout(x, 0.0, jax.random.key(0)) is x


def test_bfloat16_compute_keeps_float32_parameters(tiny, routed, still, batch):
  """bf16 logits are float32 arrays within 5% of the float32 model's scale; gradients come in float32."""
  half, (params, exact) = routed(tiny("causal", dtype="bfloat16")), still
  assert all(s.dtype == jnp.float32 for s in half.shapes.values())
  (_, rough), grads = evaluated(half)(params, batch, None)
  assert rough.dtype == jnp.float32
  error = np.abs(exact - rough).max() / np.abs(exact).max()
  assert 1e-5 < error < 0.05  # no difference at all would mean that nothing ran in bf16
  assert all(g.dtype == jnp.float32 and np.isfinite(g).all() for g in grads.values())
