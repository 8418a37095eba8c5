"""Every attention backend, values and gradients, against the reference in float64; isolation; what nothing sees."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from pallas_kernels.attention import chunked, reference, xla
from pallas_kernels.attention.api import BACKENDS, attention, backend, prepared, refusal
from pallas_kernels.attention.bias import Buckets, DenseBias
from pallas_kernels.attention.spec import AttentionSpec
from tests.kernels.cases import case_of, cases, check, near_xla, sweep

# Blocks smaller than most lengths, so that there are several, and a last one that is not full.
TESTED = {"xla": xla.attention, "xla_chunked": partial(chunked.attention, block_q=8, block_k=16)}


@sweep(max_examples=60)
@given(cases())
def test_backends_equal_the_reference(case):
  check(TESTED, case)


@pytest.mark.slow
@sweep(max_examples=500)
@given(cases())
def test_backends_equal_the_reference_at_length(case):
  check(TESTED, case)


@pytest.mark.parametrize("name", TESTED)
def test_bf16_is_as_near_as_dense_xla(name):
  """The error of values and gradients is at most twice that of dense XLA in the same dtype."""
  table = np.random.default_rng(1).normal(size=(32, 4))
  segments = np.repeat([[1, 2, 3, 4]], 2, 0).repeat(10, 1)
  bias = Buckets(table, True, 128)
  near_xla(
    TESTED[name], case_of(0, queries=40, query_segments=segments, key_segments=segments, bias=bias), jnp.bfloat16
  )


@pytest.mark.parametrize("name", TESTED)
def test_segments_are_isolated(name):
  """Changing one segment leaves the outputs of every other one bitwise equal."""
  segments = jnp.array([[1] * 10 + [2] * 7 + [3] * 15 + [0] * 8] * 2)
  table = jnp.asarray(np.random.default_rng(2).normal(size=(8, 4)), jnp.float32)
  fields = {"query_segments": segments, "key_segments": segments, "causal": True, "bias": Buckets(table, False, 16)}
  q, k, v, spec = case_of(3, queries=40, **fields)
  run = jax.jit(TESTED[name])
  other = (segments == 2)[:, :, None, None]
  before, after = run(q, k, v, spec), run(*(jnp.where(other, 3 * x + 1, x) for x in (q, k, v)), spec)
  same = np.asarray(before == after).all((2, 3))
  assert same[np.asarray(segments != 2)].all() and not same[np.asarray(segments == 2)].any()


@pytest.mark.parametrize("name", [*TESTED, "reference"])
def test_a_query_that_sees_nothing_gives_zero(name):
  """And no gradient of anything is other than finite; of its own row all are zero."""
  function = {**TESTED, "reference": reference.attention}[name]
  q, k, v, spec = case_of(4, key_lengths=jnp.array([0, 11]))

  def total(q, k, v):
    y = function(q, k, v, spec)
    return y.sum(), y

  (_, y), grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)
  assert not np.asarray(y)[0].any() and np.asarray(y)[1].all()
  for grad in map(np.asarray, grads):
    assert np.isfinite(grad).all() and not grad[0].any() and grad[1].any()


def test_softmax_in_float32():
  """bf16 operands: probabilities are float32 until they meet v, so large biases do not swallow scores."""
  bias = jnp.asarray(np.random.default_rng(5).normal(size=(4, 24, 40)), jnp.float32)
  q, k, v, spec = case_of(6, dtype=jnp.bfloat16)
  for name, function in TESTED.items():
    plain, shifted = (function(q, k, v, replace(spec, bias=DenseBias(b))) for b in (bias, bias + 300.0))
    assert plain.dtype == jnp.bfloat16
    # In bf16 a score next to 300 has steps of 2.
    assert np.abs(np.asarray(plain, np.float32) - np.asarray(shifted, np.float32)).max() < 0.02, name


def test_chunked_memory_is_linear_in_length():
  """Temporary memory of forward and backward, by the compiler: twice the length takes at most 2.2 times as much."""
  table = jnp.zeros((32, 2))

  def temporary(length, function):
    shape = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
    spec = AttentionSpec(bias=Buckets(table, True, 128))
    loss = lambda q, k, v, table: function(q, k, v, replace(spec, bias=Buckets(table, True, 128))).sum()
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(shape, shape, shape, table).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temporary(4096, chunked.attention) <= 2.2 * temporary(2048, chunked.attention)
  assert temporary(4096, chunked.attention) <= temporary(4096, xla.attention) / 10


def test_hidden_blocks_are_not_visited():
  """Causal: of n x n blocks the (n + 1) / 2 share is computed; NaN in keys that no query sees is never read."""
  q, k, v, spec = case_of(7, queries=16, keys=64, causal=True)
  k = k.at[:, 32:].set(jnp.nan)
  assert np.isfinite(np.asarray(TESTED["xla_chunked"](q, k, v, spec))).all()
  near = replace(spec, window=jnp.int32(4), offset=40)
  k = k.at[:, 32:].set(0.0).at[:, :32].set(jnp.nan)
  assert np.isfinite(np.asarray(TESTED["xla_chunked"](q, k, v, near))).all()


def test_none_takes_a_backend_that_honours_the_spec():
  table = jnp.asarray(np.random.default_rng(8).normal(size=(32, 4)), jnp.float32)
  q, k, v, spec = case_of(9, causal=True, bias=Buckets(table, False, 128))
  wanted = reference.attention(q, k, v, spec)
  for name in (None, *(name for name in BACKENDS if refusal(name, q, k, v, spec) is None)):
    shared = prepared(spec, q, k, name)
    np.testing.assert_allclose(attention(q, k, v, shared, impl=name), wanted, atol=1e-5)
  assert isinstance(prepared(spec, q, k, "xla").bias, DenseBias)
  assert isinstance(prepared(spec, q, k, "xla_chunked").bias, Buckets)


def test_wrong_input_is_named():
  with pytest.raises(ValueError, match=r"no attention backend 'xla_chunk'; there are: reference, xla"):
    backend("xla_chunk")
  q, k, v, spec = case_of(10, heads=3, shared=2)
  with pytest.raises(ValueError, match="3 heads of queries are no multiple of 2"):
    attention(q, k, v, spec)
