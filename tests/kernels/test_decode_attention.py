"""Kernels of decoding against the reference in float64; what they skip, hide and refuse; what is compiled for TPUs."""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import ahead
from pallas_kernels.attention import decode, decode_rows, decode_tpu, decode_triton, reference, xla
from pallas_kernels.attention.api import attention
from pallas_kernels.attention.bias import Alibi, Buckets, DenseBias
from pallas_kernels.attention.decode import Cached, in_cache
from pallas_kernels.attention.spec import AttentionSpec
from pallas_kernels.unsupported import Unsupported

# Blocks of keys smaller than most lengths, so that there are several, and a last one that is not full.
TESTED = {
  "decode_tpu": partial(decode_tpu.in_cache, block_k=16),
  "decode_triton": partial(decode_triton.in_cache, block_k=16, splits=3),
}


@st.composite
def cases(draw):
  """(q, cache, spec), float32, as decoding asks for it: few queries at an offset, lengths a row, padding before or
  behind."""
  whole = lambda low, high: draw(st.integers(low, high))
  yes = lambda: draw(st.booleans())
  batch, queries, shared, groups = whole(1, 3), draw(st.sampled_from([1, 1, 2, 5])), whole(1, 2), whole(1, 3)
  keys, d_kv = whole(1, 70), draw(st.sampled_from([32, 48, 64]))
  heads, rng = shared * groups, np.random.default_rng(whole(0, 2**32 - 1))
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  table = normal(draw(st.sampled_from([6, 8, 32])), heads)
  bias = {
    "none": None,
    "both ways": Buckets(table, True, draw(st.sampled_from([16, 128]))),
    "one way": Buckets(table, False, draw(st.sampled_from([20, 128]))),
    "alibi": Alibi(normal(heads)),
    "dense": DenseBias(normal(heads, queries, keys)),
    "dense by row": DenseBias(normal(batch, heads, queries, keys)),
  }[draw(st.sampled_from(["none", "both ways", "one way", "alibi", "dense", "dense by row"]))]
  places = np.arange(keys)
  starts, ends = rng.integers(0, keys + 1, (2, batch, 1))
  padded, prefix = yes(), draw(st.sampled_from([None, "keys", "lengths"]))
  spec = AttentionSpec(
    np.ones((batch, queries), np.int32) if padded else None,
    ((places >= np.minimum(starts, ends)) & (places < np.maximum(starts, ends))).astype(np.int32) if padded else None,
    key_lengths=rng.integers(0, keys + 1, batch).astype(np.int32) if yes() else None,
    prefix=rng.integers(0, 2, (batch, keys)).astype(bool) if prefix == "keys" else None,
    prefix_lengths=rng.integers(0, keys + 1, batch).astype(np.int32) if prefix == "lengths" else None,
    offset=draw(st.sampled_from([0, np.int32(keys // 2), rng.integers(0, keys, batch).astype(np.int32)])),
    window=draw(st.sampled_from([None, None, 7, np.int32(20), np.int32(2**31 - 1)])),
    bias=bias,
    causal=yes(),
    scale=draw(st.sampled_from([1.0, 0.125])),
    soft_cap=draw(st.sampled_from([0.0, 3.0])),
  )
  layers = 2
  cache = Cached(normal(layers, batch, shared, keys, d_kv), normal(layers, batch, shared, keys, d_kv), np.int32(1))
  return normal(batch, queries, heads, d_kv), cache, spec


def dense(function):
  """A backend's `attention` as `in_cache` is called."""

  def run(q, cached, spec):
    k, v = (jnp.swapaxes(x[cached.layer], 1, 2) for x in (cached.k, cached.v))
    return function(q, k, v, spec)

  return run


def rounded(case, dtype):
  """Arrays as they are in `dtype`, in float64."""
  exact = lambda x: np.asarray(jnp.asarray(x, dtype), np.float64) if np.asarray(x).dtype == np.float32 else x
  return jax.tree.map(exact, case)


def check(case, dtype) -> None:
  """An error, root mean square over all numbers, of at most twice that of dense XLA in the same dtype."""
  case = rounded(case, dtype)
  with jax.enable_x64(True):
    wanted = np.asarray(jax.jit(dense(reference.attention))(*case))
  here = lambda x: jnp.asarray(x, dtype) if np.asarray(x).dtype == np.float64 else x
  functions = {"xla": dense(xla.attention), **TESTED}
  found = jax.jit(lambda *case: {name: f(*case) for name, f in functions.items()})(*jax.tree.map(here, case))
  error = {name: np.sqrt(np.mean(np.square(np.asarray(y, np.float64) - wanted))) for name, y in found.items()}
  rounding = jnp.finfo(dtype).eps / 8 * np.sqrt(np.mean(np.square(wanted)))
  for name in TESTED:
    assert error[name] <= 2 * error["xla"] + rounding, (name, error, case[2].features)


sweep = partial(settings, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@sweep(max_examples=16)
@given(cases(), st.sampled_from([jnp.float32, jnp.bfloat16]))
def test_decoding_equals_the_reference(case, dtype):
  check(case, dtype)


@pytest.mark.slow
@sweep(max_examples=500)
@given(cases(), st.sampled_from([jnp.float32, jnp.bfloat16]))
def test_decoding_equals_the_reference_at_length(case, dtype):
  check(case, dtype)
