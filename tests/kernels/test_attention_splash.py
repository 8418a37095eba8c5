"""jax's attention kernels for TPU behind the spec."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.ahead import available, compiled_for
from pallas_kernels.attention import splash
from pallas_kernels.attention.api import attention, refusal
from pallas_kernels.attention.spec import AttentionSpec
from pallas_kernels.unsupported import Unsupported
from tests.kernels.cases import case_of, near_xla

# Row 1 has queries whose segment no key has.
IDS = np.array([[1] * 100 + [2] * 156, [1] * 200 + [3] * 56], np.int32)
SPECS = {
  "full": {"soft_cap": 5.0},
  "packed": {"causal": True, "scale": 128**-0.5, "query_segments": IDS, "key_segments": np.minimum(IDS, 2)},
  "near": {"causal": True, "window": 40, "scale": 128**-0.5},
}


@pytest.mark.parametrize("which", SPECS)
def test_it_is_as_near_as_dense_xla(which):
  case = case_of(0, queries=256, keys=256, d=128, batch=2, heads=2, shared=1, **SPECS[which])
  # Known when traced, which an operand of a jitted function is not.
  near_xla(lambda q, k, v, spec: splash.attention(q, k, v, replace(spec, window=case[3].window)), case, jnp.bfloat16)


def test_a_query_that_sees_nothing_gives_zero():
  q, k, v, spec = case_of(0, queries=256, keys=256, d=64, heads=1, shared=1, dtype=jnp.bfloat16, **SPECS["packed"])
  y, gradients = jax.vjp(lambda k, v: splash.attention(q, k, v, spec), k, v)
  assert not np.asarray(y)[1, 200:].any() and np.asarray(y)[1, :200].any((1, 2)).all()
  assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in gradients(jnp.ones_like(y)))


def test_what_it_can_not_do_is_named():
  shape = lambda n, d=128, dtype=jnp.bfloat16: (jax.ShapeDtypeStruct((1, n, 1, d), dtype),) * 3
  spec = AttentionSpec(causal=True, window=4)
  assert refusal("splash", *shape(256), spec) is None
  for operands, asked, why in [
    (shape(200), spec, "200 queries and 200 keys"),
    (shape(256, 80), spec, "heads of size 80"),
    (shape(256, dtype=jnp.float32), spec, "of float32"),
    (shape(256), replace(spec, window=jnp.int32(4)), "a window that is not a number known when traced"),
    (shape(256), replace(spec, offset=1), "does not honour offset"),
  ]:
    assert why in refusal("splash", *operands, asked)
  q, k, v, spec = case_of(1)
  with pytest.raises(Unsupported, match="'splash' can not do this: q, k, v of float32"):
    attention(q, k, v, spec, impl="splash")


@pytest.mark.skipif(not available("v5e"), reason="libtpu is not installed")
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_it_compiles_for(chip):
  """Forward and backward, with grouped heads and packed rows."""

  def loss(q, k, v, ids):
    spec = AttentionSpec(ids, ids, causal=True, scale=128**-0.5)
    return attention(q, k, v, spec, impl="splash").astype(jnp.float32).sum()

  shape = lambda heads: jax.ShapeDtypeStruct((2, 2048, heads, 128), jnp.bfloat16)
  operands = (shape(8), shape(2), shape(2), jax.ShapeDtypeStruct((2, 2048), jnp.int32))
  compiled = compiled_for(chip, jax.grad(loss, argnums=(0, 1, 2)), *operands)
  assert compiled.memory_analysis().temp_size_in_bytes <= 10 * 2 * 2048 * 8 * 128 * 2
