"""Attention for NVIDIA GPUs: the Triton kernels, interpreted, against the reference; compiled for Hopper where its
compiler is; cuDNN's arguments by way of XLA."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax.sharding import PartitionSpec as P

from pallas_kernels import ahead
from pallas_kernels.attention import cudnn, reference, triton, xla
from pallas_kernels.attention.api import attention, refusal
from pallas_kernels.attention.bias import Alibi, Buckets, DenseBias
from pallas_kernels.attention.spec import AttentionSpec
from pallas_kernels.attention.triton_tiles import Tile, Tiles
from pallas_kernels.unsupported import Unsupported
from tests.kernels.cases import case_of, cases, check, outputs, sweep

# Smaller than most lengths, and different from kernel to kernel.
SMALL = Tiles(Tile(32, 16, 4, 2), Tile(16, 32, 4, 2), Tile(16, 16, 4, 2), Tile(16, 16, 4, 2))
TRITON = partial(triton.attention, tiles=SMALL)
TABLE = np.random.default_rng(1).normal(size=(8, 4)).astype(np.float32)


@sweep(max_examples=12)
@given(cases())
def test_triton_equals_the_reference(case):
  check({"triton": TRITON}, case)


@pytest.mark.slow
@sweep(max_examples=500)
@given(cases())
def test_triton_equals_the_reference_at_length(case):
  check({"triton": TRITON}, case)


FIELDS = {
  "encoder": {"bias": Buckets(TABLE, True, 16), "scale": 0.25, "key_lengths": np.array([70, 33])},
  "decoder": {"bias": Buckets(TABLE, False, 20), "causal": True, "window": 50, "offset": np.array([2, 0])},
  "capped": {"bias": Alibi(TABLE[0]), "soft_cap": 3.0, "causal": True, "prefix_lengths": np.array([9, 0])},
}


@pytest.mark.parametrize(
  "dtype, fields", [(jnp.float32, "encoder"), (jnp.bfloat16, "decoder"), (jnp.bfloat16, "capped")]
)
def test_errors_are_those_of_dense_xla(dtype, fields):
  """Of values and of every gradient: at most twice the error of dense XLA in the same dtype, and a millionth."""
  rounded = partial(jax.tree.map, lambda x: np.asarray(jnp.asarray(x, dtype), np.float64))
  q, k, v, spec = case_of(0, queries=70, keys=72, **FIELDS[fields])
  case = *rounded((q, k, v)), replace(spec, bias=rounded(spec.bias))
  with jax.enable_x64(True):
    (wanted,) = outputs([reference.attention], *case, jnp.float64)
  size = lambda x: np.sqrt(np.mean(np.square(x)))
  for ours, theirs, exact in zip(*outputs([TRITON, xla.attention], *case, dtype), wanted, strict=True):
    error = lambda x: size(np.asarray(x, np.float64) - np.asarray(exact))
    assert error(ours) <= 2 * error(theirs) + 1e-6 * size(np.asarray(exact))


def test_bands_far_from_the_diagonal():
  """Longer than the reach of buckets and than a part of a band; heads padded to a power of two."""
  rng = np.random.default_rng(2)
  q, k, v = (
    rng.normal(size=(1, length, heads, 24)).astype(np.float32) for length, heads in ((290, 2), *[(300, 1)] * 2)
  )
  spec = AttentionSpec(bias=Buckets(TABLE[:, :2], True, 16), scale=0.2)
  check({"triton": TRITON}, (q, k, v, spec))


@pytest.mark.parametrize("queries, keys", [(1, 130), (130, 20)])
def test_default_tiles_of_unequal_lengths(queries, keys):
  q, k, v, _ = case_of(11, queries=queries, keys=keys)
  check({"triton": triton.attention}, (q, k, v, AttentionSpec(bias=Buckets(TABLE, True, 16), offset=np.int32(9))))


def test_segments_are_isolated():
  """Changing one segment leaves the outputs and the gradients of every other one bitwise equal."""
  segments = jnp.array([[1] * 40 + [2] * 17 + [3] * 15 + [0] * 8] * 2)
  fields = {"query_segments": segments, "key_segments": segments, "bias": Buckets(jnp.asarray(TABLE), True, 16)}
  q, k, v, spec = case_of(3, queries=80, keys=80, **fields)

  @jax.jit
  def run(q, k, v):
    y, gradients = jax.vjp(lambda *qkv: TRITON(*qkv, spec), q, k, v)
    return y, *gradients(jnp.ones_like(y))

  other = (segments == 2)[:, :, None, None]
  for before, after in zip(run(q, k, v), run(*(jnp.where(other, 3 * x + 1, x) for x in (q, k, v))), strict=True):
    same = np.asarray(before == after).all((2, 3))
    assert same[np.asarray(segments != 2)].all() and not same[np.asarray(segments == 2)].any()


def test_a_query_that_sees_nothing_gives_zero():
  q, k, v, spec = case_of(4, key_lengths=jnp.array([0, 11]), bias=Buckets(TABLE, True, 16))

  def total(q, k, v, table):
    y = TRITON(q, k, v, replace(spec, bias=Buckets(table, True, 16)))
    return y.sum(), y

  (_, y), grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True))(q, k, v, TABLE)
  assert not np.asarray(y)[0].any() and np.asarray(y)[1].all()
  for grad in map(np.asarray, grads[:3]):
    assert np.isfinite(grad).all() and not grad[0].any() and grad[1].any()
  assert np.isfinite(grads[3]).all()


def test_hidden_tiles_are_not_visited():
  """NaN in keys that no query sees is never read: after all of them, before a window, and in other segments."""
  q, k, v, spec = case_of(5, queries=16, keys=64, causal=True)
  late, early = (jnp.where((jnp.arange(64) >= 32)[:, None, None] == late, jnp.nan, k) for late in (True, False))
  finite = lambda k, spec: np.isfinite(np.asarray(jax.jit(TRITON)(q, k, v, spec))).all()
  assert finite(late, spec) and finite(early, replace(spec, window=jnp.int32(4), offset=40))
  segments = jnp.repeat(jnp.array([[1, 2]]), 2, 0)
  packed = AttentionSpec(jnp.repeat(segments[:, :1], 16, 1), jnp.repeat(segments, 32, 1))
  assert finite(late, packed) and not finite(early, packed)


def test_within_shards_checkpoints_and_loops():
  """Values and gradients inside shard_map, checkpoint and scan are those outside."""
  q, k, v, _ = case_of(6, batch=2, queries=32, keys=32)
  layers = lambda body: lambda x, table: jax.lax.scan(lambda x, _: (body(x, table), None), x, length=2)[0]
  spec = lambda table: AttentionSpec(causal=True, bias=Buckets(table, False, 16))
  plain = layers(lambda x, table: TRITON(x, k[: len(x)], v[: len(x)], spec(table)))
  loss = lambda f: jax.jit(jax.value_and_grad(lambda x, table: jnp.square(f(x, table)).sum(), argnums=(0, 1)))
  wanted = loss(plain)(q, TABLE)
  mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])

  def sharded(x, table):
    body = jax.checkpoint(lambda x, k, v: TRITON(x, k, v, spec(table)))
    one = lambda x, k, v: jax.lax.scan(lambda x, _: (body(x, k, v), None), x, length=2)[0]
    return jax.shard_map(one, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)(x, k, v)

  for here, there in zip(jax.tree.leaves(loss(sharded)(q, TABLE)), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-4)


def t5(table, segments, **fields):
  causal = fields.get("causal", False)
  return AttentionSpec(segments, segments, bias=Buckets(table, not causal, 128), **fields)


def programs(batch, length, heads, shared, size, dtype, make_spec):
  """(forward, forward and backward, shapes of their arguments): q, k, v, a table, segments."""
  shape = lambda heads: jax.ShapeDtypeStruct((batch, length, heads, size), dtype)
  table = jax.ShapeDtypeStruct((32, heads), jnp.float32)
  segments = jax.ShapeDtypeStruct((batch, length), jnp.int32)
  forward = lambda q, k, v, table, segments: triton.attention(q, k, v, make_spec(table, segments))
  loss = lambda *arguments: forward(*arguments).astype(jnp.float32).sum()
  both = jax.grad(loss, argnums=(0, 1, 2, 3))
  return forward, both, (shape(heads), shape(shared), shape(shared), table, segments)


@pytest.mark.parametrize("size, dtype", [(64, jnp.bfloat16), (80, jnp.float32), (256, jnp.bfloat16)])
def test_lowers_for_cuda(size, dtype):
  """Without a GPU, and without its compiler, as Triton's IR."""
  make_spec = lambda table, segments: replace(t5(table, segments, causal=True, soft_cap=30.0), window=jnp.int32(300))
  _, both, shapes = programs(2, 500, 4, 2, size, dtype, make_spec)
  text = jax.jit(both).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
  for kernel in ("forward", "of_queries", "of_keys", "of_bias"):
    assert f"attention_triton_{kernel}" in text


def test_frozen_biases_take_no_kernel():
  """Where a table is not tuned, nothing of its gradient's kernel is left in the program."""
  make_spec = lambda table, segments: AttentionSpec(bias=Buckets(jax.lax.stop_gradient(table), True, 128))
  _, both, shapes = programs(1, 64, 2, 2, 16, jnp.bfloat16, make_spec)
  compiled = jax.jit(both).lower(*shapes).compile().as_text()
  assert "attention_triton_of_keys" in compiled and "attention_triton_of_bias" not in compiled


@pytest.mark.skipif(not ahead.available("h200"), reason="needs jax's CUDA plugin")
@pytest.mark.parametrize("case", ["t5", "grouped"])
def test_compiles_for_hopper(case):
  """Temporary memory is below an eighth of what scores of one head of each row would take in bf16."""
  dtype = jnp.bfloat16
  if case == "t5":
    make_spec = lambda table, segments: t5(table, segments, causal=True)
    forward, both, shapes = programs(4, 2048, 12, 12, 64, dtype, make_spec)
  else:
    make_spec = lambda table, segments: AttentionSpec(causal=True, scale=0.1)
    forward, both, shapes = programs(4, 2048, 16, 4, 128, dtype, make_spec)
  scores = 4 * shapes[0].shape[2] * 2048 * 2048 * 2
  for function, share in ((forward, 1 / 256), (both, 1 / 8)):
    memory = ahead.compiled_for("h200", function, *shapes).memory_analysis()
    assert memory.temp_size_in_bytes <= scores * share


def test_what_triton_refuses():
  q, k, v, spec = case_of(7)
  told = lambda *case: refusal("triton", *case)
  assert told(q, k, v, spec) is None
  assert "one dtype" in told(q.astype(jnp.bfloat16), k, v, spec)
  wide = [jnp.zeros((*x.shape[:3], 320)) for x in (q, k, v)]
  assert "up to 256, not 320" in told(*wide, spec)
  with pytest.raises(Unsupported, match=r"'triton' can not do this: it takes heads .* These can: reference, xla"):
    attention(*wide, spec, impl="triton")


def half(seed, **fields):
  return case_of(seed, dtype=jnp.bfloat16, **{"queries": 40, **fields})


CUDNN = {
  "causal": {"causal": True, "scale": 0.3},
  "window": {"causal": True, "window": 7},
  "lengths": {"key_lengths": np.array([0, 11])},
  "bias": {"bias": DenseBias(np.ones((4, 40, 40), jnp.bfloat16) * TABLE[0, 0].astype(jnp.bfloat16)), "causal": True},
  "bias by row": {"bias": DenseBias(jnp.asarray(np.random.default_rng(8).normal(size=(2, 4, 40, 40)), jnp.bfloat16))},
  "unequal": {"queries": 24, "key_lengths": np.array([40, 11])},
}


@pytest.mark.parametrize("fields", CUDNN)
def test_cudnn_is_given_what_a_spec_means(fields, monkeypatch):
  """Its arguments, with XLA's implementation: values and gradients are the reference's, to bf16's rounding."""
  monkeypatch.setattr(cudnn, "compute_capability", lambda: 9)
  case = half(9, **CUDNN[fields])
  assert refusal("cudnn", *case) is None
  q, k, v, spec = case

  @jax.jit
  def both(*qkv):
    y, back = jax.vjp(lambda *x: cudnn.attention(*x, spec, implementation="xla"), *qkv)
    wanted, exact = jax.vjp(lambda *x: reference.attention(*x, spec), *(x.astype(jnp.float32) for x in qkv))
    return (y, *back(jnp.ones_like(y))), (wanted, *exact(jnp.ones_like(wanted)))

  for here, there in zip(*both(q, k, v), strict=True):
    here, there = np.asarray(here, np.float32), np.asarray(there)
    assert np.isfinite(here).all() and np.abs(here - there).max() <= 0.03 * (1 + np.abs(there).max())


def test_what_cudnn_refuses(monkeypatch):
  q, k, v, spec = half(10)
  told = lambda case, spec: refusal("cudnn", *case[:3], spec)
  case = (q, k, v)
  assert told(case, spec) == "it takes a CUDA device"
  monkeypatch.setattr(cudnn, "compute_capability", lambda: 8)
  assert told(case, spec) is None
  assert "soft_cap" in told(case, replace(spec, soft_cap=3.0))
  assert "bias:Buckets" in told(case, replace(spec, bias=Buckets(TABLE, True, 16)))
  assert "one dtype" in told([x.astype(jnp.float32) for x in case], spec)
  assert "up to 128" in told([jnp.zeros((*x.shape[:3], 160), x.dtype) for x in case], spec)
  assert "as many queries as keys" in told((q[:, :24], k, v), replace(spec, causal=True))
  for window in (replace(spec, window=4), replace(spec, window=jnp.int32(4), causal=True)):
    assert "a window that is a Python int" in told(case, window)
  assert "q's dtype" in told(case, replace(spec, bias=DenseBias(jnp.zeros((4, 40, 40)))))
  odd = replace(spec, bias=DenseBias(jnp.zeros((4, 39, 40), jnp.bfloat16)))
  assert "an even number" in told((q[:, :39], k, v), odd)
