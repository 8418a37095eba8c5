"""The reference attention and its mask, against loops and float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention.api import Mask, attention


def brute_force(queries, keys, *, prefix=None, offset=0, causal=False):
  """The mask by a loop over batch, query and key."""
  allowed = np.zeros((len(queries), 1, queries.shape[1], keys.shape[1]), bool)
  for b, i, j in itertools.product(range(len(queries)), range(queries.shape[1]), range(keys.shape[1])):
    if queries[b, i] != keys[b, j]:
      continue
    in_order = not causal or j <= i + offset
    allowed[b, 0, i, j] = in_order or (prefix is not None and prefix[b, j])
  return allowed


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("with_prefix", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_mask_equals_loops(causal, with_prefix, offset):
  rng = np.random.default_rng(0)
  keys = np.sort(rng.integers(0, 4, (3, 9)), axis=1).astype(np.int32)
  queries = keys[:, offset : offset + 5]
  prefix = rng.integers(0, 2, (3, 9)).astype(bool) if with_prefix else None
  mask = Mask(queries, keys, prefix=prefix, offset=jnp.int32(offset), causal=causal)
  wanted = brute_force(queries, keys, prefix=prefix, offset=offset, causal=causal)
  np.testing.assert_array_equal(jax.jit(lambda m: m.allowed())(mask), wanted)
  assert wanted.any() and not wanted.all()


def operands(rng, *, batch=2, query=5, key=7, heads=3, d_kv=4):
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  q, k, v = draw(batch, query, heads, d_kv), draw(batch, key, heads, d_kv), draw(batch, key, heads, d_kv)
  return q, k, v, draw(heads, query, key)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_attention_equals_float64(with_bias, scale):
  """To 1e-5, for every query that sees a key."""
  rng = np.random.default_rng(1)
  q, k, v, bias = operands(rng)
  bias = bias if with_bias else None
  segments = np.array([[1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 1, 1, 2, 2]], np.int32)
  mask = Mask(segments[:, :5], segments, causal=True)
  ours = jax.jit(lambda *a: attention(*a, scale=scale))(q, k, v, mask, bias)
  scores = np.einsum("bqhd,bkhd->bhqk", q.astype(np.float64), k.astype(np.float64)) * scale
  scores += 0 if bias is None else bias.astype(np.float64)
  weights = np.exp(scores) * brute_force(segments[:, :5], segments, causal=True)
  wanted = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v.astype(np.float64))
  np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-5)


def test_a_query_that_sees_nothing_is_finite():
  """Padding next to a source without padding: a finite output, and finite gradients of everything."""
  q, k, v, bias = operands(np.random.default_rng(2))
  mask = Mask(np.zeros((2, 5), np.int32), np.ones((2, 7), np.int32))
  assert not mask.allowed().any()
  value, grads = jax.jit(
    jax.value_and_grad(lambda q, k, v, bias: attention(q, k, v, mask, bias).sum(), argnums=(0, 1, 2, 3))
  )(q, k, v, bias)
  assert np.isfinite(value) and all(np.isfinite(g).all() for g in grads)


def test_softmax_in_float32():
  """bf16 operands: probabilities are float32 until they meet v, so large biases do not swallow scores."""
  q, k, v, bias = (jnp.asarray(x, jnp.bfloat16) for x in operands(np.random.default_rng(3)))
  mask = Mask(jnp.ones((2, 5), jnp.int32), jnp.ones((2, 7), jnp.int32))
  plain, shifted = attention(q, k, v, mask, bias), attention(q, k, v, mask, bias.astype(jnp.float32) + 300.0)
  assert plain.dtype == jnp.bfloat16
  difference = np.abs(np.asarray(plain, np.float32) - np.asarray(shifted, np.float32)).max()
  assert difference < 0.02  # in bf16 a score next to 300 has steps of 2
