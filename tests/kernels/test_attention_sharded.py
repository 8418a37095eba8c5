"""Attention on a mesh of eight devices gives what one device gives, values and gradients."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mtx.parallel.activations import within
from mtx.parallel.mesh import ROWS, make_mesh
from pallas_kernels.attention import api, sharded
from pallas_kernels.attention.bias import Alibi, Buckets, DenseBias
from pallas_kernels.attention.spec import AttentionSpec

BATCH, LENGTH, HEADS = 8, 24, 4


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
  """No backend counts as split by the compiler."""
  monkeypatch.setattr(api, "PARTITIONED", ())


def specs():
  rng = np.random.default_rng(0)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  segments = jnp.asarray(np.sort(rng.integers(0, 3, (BATCH, LENGTH)), axis=1), jnp.int32)
  lengths = jnp.asarray(rng.integers(0, LENGTH, BATCH), jnp.int32)
  causal, both_ways = (Buckets(normal(32, HEADS), bidirectional, 128) for bidirectional in (False, True))
  dense = normal(HEADS, LENGTH, LENGTH)
  return {
    "packed, buckets": AttentionSpec(segments, segments, bias=causal, causal=True),
    "prefix, alibi": AttentionSpec(prefix=segments == 1, bias=Alibi(normal(HEADS)), causal=True),
    "lengths, dense": AttentionSpec(key_lengths=lengths, prefix_lengths=lengths // 2, bias=DenseBias(dense)),
    "dense by row": AttentionSpec(bias=DenseBias(normal(BATCH, HEADS, LENGTH, LENGTH))),
    "dense for all rows": AttentionSpec(bias=DenseBias(dense[None])),
    "offset by row, window": AttentionSpec(offset=lengths, bias=both_ways, causal=True),
    "plain numbers": AttentionSpec(offset=3, window=4, causal=True),
  }


@pytest.mark.parametrize("mesh", [(2, 2, 2), (8, 1, 1), (1, 1, 8), (2, 1, 4)], ids=str)
def test_a_mesh_gives_what_one_device_gives(mesh):
  normal = np.random.default_rng(1).normal
  q, k, v = (jnp.asarray(normal(size=(BATCH, LENGTH, heads, 8)), jnp.float32) for heads in (HEADS, 2, 2))
  to = jnp.asarray(normal(size=q.shape), jnp.float32)
  many, cases = make_mesh(*mesh), specs()
  biases = {name: spec.bias for name, spec in cases.items()}

  def each(attend):
    def sums(qkv, biases, window):
      limits = {name: spec.window for name, spec in cases.items()} | {"offset by row, window": window}
      of = lambda name, spec: replace(spec, bias=biases[name], window=limits[name])
      return {name: (attend(*qkv, of(name, spec)) * to).sum() for name, spec in cases.items()}

    total = lambda *given: sum(sums(*given).values())
    return jax.jit(lambda *given: (sums(*given), jax.grad(total, (0, 1))(*given)))

  on_mesh = within(many)(lambda *given: sharded.attention(*given, impl="xla_chunked", rows=ROWS, heads="tensor"))
  placed = jax.device_put((q, k, v), NamedSharding(many, P(ROWS)))
  got = each(on_mesh)(placed, jax.device_put(biases, NamedSharding(many, P())), jnp.int32(5))
  wanted = each(lambda *given: api.attention(*given, impl="xla_chunked"))((q, k, v), biases, jnp.int32(5))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5), got, wanted)
