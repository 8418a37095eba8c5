"""Attention specs of any features, and what backends are held against: the reference in float64."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from pallas_kernels.attention import reference, xla
from pallas_kernels.attention.bias import Alibi, Bias, Buckets, DenseBias
from pallas_kernels.attention.spec import AttentionSpec


def bias_of(draw, normal, batch: int, heads: int, queries: int, keys: int) -> Bias | None:
  """One of every kind, or none; `normal(*shape)` gives its numbers."""
  table = normal(draw(st.sampled_from([6, 8, 32])), heads)
  return {
    "none": None,
    "both ways": Buckets(table, True, draw(st.sampled_from([16, 128]))),
    "one way": Buckets(table, False, draw(st.sampled_from([20, 128]))),
    "alibi": Alibi(normal(heads)),
    "dense": DenseBias(normal(heads, queries, keys)),
    "dense by row": DenseBias(normal(batch, heads, queries, keys)),
  }[draw(st.sampled_from(["none", "both ways", "one way", "alibi", "dense", "dense by row"]))]


@st.composite
def cases(draw):
  """(q, k, v, spec), float32, of any features."""
  whole = lambda low, high: draw(st.integers(low, high))
  yes = lambda: draw(st.booleans())
  batch, queries, keys, shared, groups = whole(1, 3), whole(1, 35), whole(1, 35), whole(1, 2), whole(1, 3)
  heads, rng = shared * groups, np.random.default_rng(whole(0, 2**32 - 1))
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  bias = bias_of(draw, normal, batch, heads, queries, keys)
  segments = lambda n: np.sort(rng.integers(0, 3, (batch, n)), axis=1).astype(np.int32)
  packed, prefix = yes(), draw(st.sampled_from([None, "keys", "lengths"]))
  spec = AttentionSpec(
    segments(queries) if packed else None,
    segments(keys) if packed else None,
    key_lengths=rng.integers(0, keys + 1, batch).astype(np.int32) if yes() else None,
    prefix=rng.integers(0, 2, (batch, keys)).astype(bool) if prefix == "keys" else None,
    prefix_lengths=rng.integers(0, keys + 1, batch).astype(np.int32) if prefix == "lengths" else None,
    offset=draw(st.sampled_from([0, np.int32(3), rng.integers(0, 9, batch).astype(np.int32)])),
    window=draw(st.sampled_from([None, 1, 7, np.int32(2**31 - 1)])),
    bias=bias,
    causal=yes(),
    scale=draw(st.sampled_from([1.0, 0.125])),
    soft_cap=draw(st.sampled_from([0.0, 3.0])),
  )
  q, k, v = normal(batch, queries, heads, 16), normal(batch, keys, shared, 16), normal(batch, keys, shared, 16)
  return q, k, v, spec


def outputs(functions, q, k, v, spec, dtype):
  """Output, and gradients to q, k, v and bias, of each function; one compile."""
  cast = partial(jax.tree.map, lambda x: jnp.asarray(x, dtype))
  weight = np.random.default_rng(0).normal(size=q.shape)

  def both(function, args, spec):
    def loss(args):
      *qkv, bias = args
      y = function(*qkv, replace(spec, bias=bias))
      return (y * weight.astype(dtype)).sum(), y

    (_, y), grads = jax.value_and_grad(loss, has_aux=True)(args)
    return y, grads

  run = jax.jit(lambda args, spec: [both(f, args, spec) for f in functions])
  return [jax.tree.leaves(each) for each in run(cast((q, k, v, spec.bias)), replace(spec, bias=None))]


def check(functions, case) -> None:
  """Values and all gradients of each function by name in float32, to 1e-5 of the largest of each array."""
  with jax.enable_x64(True):
    (wanted,) = outputs([reference.attention], *case, jnp.float64)
  wanted = [np.asarray(x) for x in wanted]
  for name, found in zip(functions, outputs(functions.values(), *case, jnp.float32), strict=True):
    for here, there in zip(found, wanted, strict=True):
      scale = 1 + np.abs(there).max()
      assert np.abs(np.asarray(here, np.float64) - there).max() <= 1e-5 * scale, (name, case[3].features)


def near_xla(function, case, dtype) -> list[float]:
  """Ratios of a function's error to that of dense XLA in the same dtype, for values and all gradients: at most 2, where
  XLA's error counts as a quarter of the last place at the least."""
  rounded = jax.tree.map(lambda x: np.asarray(jnp.asarray(x, dtype), np.float64), (*case[:3], case[3].bias))
  case = (*rounded[:3], replace(case[3], bias=rounded[3]))
  with jax.enable_x64(True):
    (wanted,) = outputs([reference.attention], *case, jnp.float64)
  found = outputs([function, xla.attention], *case, dtype)
  ratios = []
  for ours, theirs, exact in zip(*found, wanted, strict=True):
    size = lambda x: np.sqrt(np.mean(np.square(x)))
    error = lambda x: size(np.asarray(x, np.float64) - np.asarray(exact))
    least = float(jnp.finfo(dtype).eps) / 4 * size(np.asarray(exact))
    ratios.append(float(error(ours) / max(error(theirs), least, 1e-30)))
  assert max(ratios) <= 2, ratios
  return ratios


sweep = partial(settings, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def case_of(seed, *, dtype=jnp.float32, batch=2, queries=24, keys=40, heads=4, shared=2, d=16, **fields):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  q, k, v = normal(batch, queries, heads, d), normal(batch, keys, shared, d), normal(batch, keys, shared, d)
  return q, k, v, AttentionSpec(**fields)
