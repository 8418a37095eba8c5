"""One query a row on a long cache, as a decoding step has it."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.attention.bias import Buckets
from pallas_kernels.attention.decode import KERNELS, Cached, in_cache
from pallas_kernels.attention.spec import AttentionSpec
from pallas_kernels.bench.case import Case, Contestant, Goal

ROWS, LENGTH, LAYERS = 32, 2048, 2


def cases() -> Iterator[Case]:
  """T5's heads with its bias, and grouped ones."""
  yield step(12, 12, 64, biased=True)
  yield step(32, 4, 128, biased=False)


def step(heads: int, shared: int, size: int, biased: bool) -> Case:
  """Rows that have seen from an eighth of the cache to all of it."""

  def run(q, k, v, table, lengths, *, impl):
    bias = Buckets(table, False, 128) if biased else None
    spec = AttentionSpec(key_lengths=lengths, offset=jnp.int32(LENGTH - 1), causal=True, bias=bias, scale=size**-0.5)
    return in_cache(q, Cached(k, v, 1), spec, impl=impl)

  kernels = {name: Contestant(partial(run, impl=name), platform, True) for platform, name in KERNELS.items()}
  return Case(
    f"decoding, {ROWS} rows, cache {LENGTH}, {heads} heads of {size} on {shared}{', T5 bias' if biased else ''}",
    partial(_arguments, heads, shared, size),
    4.0 * ROWS * heads * LENGTH * size,
    kernels | {"xla": Contestant(partial(run, impl="xla"))},
    KERNELS,
    {platform: (Goal(1, "xla"),) for platform in KERNELS},
  )


def _arguments(heads: int, shared: int, size: int):
  """Queries, cached keys and values, table, lengths."""
  keys = jax.random.split(jax.random.key(0), 4)
  q = jax.random.normal(keys[0], (ROWS, 1, heads, size), jnp.bfloat16)
  k, v = (jax.random.normal(key, (LAYERS, ROWS, shared, LENGTH, size), jnp.bfloat16) for key in keys[1:3])
  table = jax.random.normal(keys[3], (32, heads), jnp.float32)
  return q, k, v, table, jnp.linspace(LENGTH // 8, LENGTH, ROWS).astype(jnp.int32)
