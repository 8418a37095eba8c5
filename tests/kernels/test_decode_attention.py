"""Kernels of decoding against the reference in float64; what they skip, hide and refuse; what is compiled for TPUs."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter  # where it says what races it saw
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import ahead
from pallas_kernels.attention import decode, decode_rows, decode_tpu, decode_triton, reference, xla
from pallas_kernels.attention.api import attention, refusal
from pallas_kernels.attention.bias import Alibi, Buckets
from pallas_kernels.attention.decode import Cached, in_cache
from pallas_kernels.attention.spec import AttentionSpec
from pallas_kernels.unsupported import Unsupported
from tests.kernels.cases import bias_of, sweep

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
  keys, d_kv = whole(1, 70), draw(st.sampled_from([32, 48, 128]))
  heads, rng = shared * groups, np.random.default_rng(whole(0, 2**32 - 1))
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  bias = bias_of(draw, normal, batch, heads, queries, keys)
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
  """An error, root mean square over all numbers, of at most twice that of dense XLA in the same dtype, and half of the
  last place, which one key costs a kernel where XLA copies its value."""
  case = rounded(case, dtype)
  with jax.enable_x64(True):
    wanted = np.asarray(jax.jit(dense(reference.attention))(*case))
  here = lambda x: jnp.asarray(x, dtype) if np.asarray(x).dtype == np.float64 else x
  functions = {"xla": dense(xla.attention), **TESTED}
  found = jax.jit(lambda *case: {name: f(*case) for name, f in functions.items()})(*jax.tree.map(here, case))
  error = {name: np.sqrt(np.mean(np.square(np.asarray(y, np.float64) - wanted))) for name, y in found.items()}
  rounding = jnp.finfo(dtype).eps / 2 * np.sqrt(np.mean(np.square(wanted)))
  for name in TESTED:
    assert error[name] <= 2 * error["xla"] + rounding, (name, error, case[2].features)


@sweep(max_examples=16)
@given(cases(), st.sampled_from([jnp.float32, jnp.bfloat16]))
def test_decoding_equals_the_reference(case, dtype):
  check(case, dtype)


@pytest.mark.slow
@sweep(max_examples=500)
@given(cases(), st.sampled_from([jnp.float32, jnp.bfloat16]))
def test_decoding_equals_the_reference_at_length(case, dtype):
  check(case, dtype)


def case_of(seed, *, dtype=jnp.float32, batch=2, queries=1, keys=40, heads=4, shared=2, d=32, layers=2, **fields):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  cache = normal(layers, batch, shared, keys, d), normal(layers, batch, shared, keys, d)
  return normal(batch, queries, heads, d), Cached(*cache, jnp.int32(layers - 1)), AttentionSpec(**fields)


@pytest.mark.parametrize("name", TESTED)
@pytest.mark.parametrize("d, keys", [(32, 1), (64, 33), (80, 40), (128, 1), (256, 40)])
def test_sizes(name, d, keys):
  """Heads from 32 to 256, one key, lengths that are no multiple of a block; blocks as the kernel chooses them, too."""
  q, cached, spec = case_of(0, d=d, keys=keys, causal=True, offset=jnp.array([keys - 1, keys // 2]), scale=d**-0.5)
  wanted = dense(reference.attention)(q, cached, spec)
  for run in (TESTED[name], partial(in_cache, impl=name)):
    np.testing.assert_allclose(jax.jit(run)(q, cached, spec), wanted, atol=2e-6)


@pytest.mark.parametrize("d", [32, 128])
@pytest.mark.parametrize("name", TESTED)
def test_what_lies_beyond_the_lengths_is_nothing(name, d):
  """NaN there, in keys and in values, changes no bit."""
  ends = jnp.array([21, 6])
  q, cached, spec = case_of(1, d=d, queries=2, key_lengths=ends, causal=True, offset=ends - 2)
  after = (jnp.arange(40) >= ends[:, None])[None, :, None, :, None]
  filled = lambda fill: Cached(*(jnp.where(after, fill, x) for x in cached[:2]), cached.layer)
  run = jax.jit(TESTED[name])
  wanted = run(q, filled(0.0), spec)
  np.testing.assert_array_equal(run(q, filled(jnp.nan), spec), wanted)
  assert np.isfinite(wanted).all()


@pytest.mark.parametrize("name", TESTED)
def test_a_query_that_sees_nothing_gives_zero(name):
  q, cached, spec = case_of(2, batch=3, queries=2, key_lengths=jnp.array([0, 40, 5]), causal=True)
  spec = replace(spec, offset=jnp.array([30, -1, 30]))
  y = np.asarray(jax.jit(TESTED[name])(q, cached, spec))
  assert not y[0].any() and not y[1, 0].any() and y[1, 1].all() and y[2].all()


def test_blocks_that_are_read():
  """From the first key that some query of a row sees to the last."""
  allowed = np.zeros((5, 2, 12), bool)
  allowed[1, 0, 0] = allowed[2, 1, 5] = allowed[3, 0, 3] = allowed[3, 1, 11] = True
  allowed[4] = True
  first, last = decode_rows.visited(jnp.asarray(allowed), 4)
  np.testing.assert_array_equal(first, [0, 0, 1, 0, 0])
  np.testing.assert_array_equal(last, [0, 1, 2, 3, 3])


@pytest.mark.parametrize("name", TESTED)
def test_no_gradient_rather_than_a_wrong_one(name):
  q, cached, spec = case_of(3, bias=Alibi(jnp.ones(4)))
  for loss, at in (
    (lambda q: TESTED[name](q, cached, spec).sum(), q),
    (lambda k: TESTED[name](q, Cached(k, *cached[1:]), spec).sum(), cached.k),
  ):
    with pytest.raises(Unsupported, match=f"'{name}' is for decoding and has no gradient"):
      jax.jit(jax.grad(loss))(at)
  np.testing.assert_array_equal(TESTED[name](jax.lax.stop_gradient(q), cached, spec), TESTED[name](q, cached, spec))


def test_what_it_can_not_do_is_named():
  shape = lambda n, heads, d, dtype=jnp.bfloat16: jax.ShapeDtypeStruct((2, n, heads, d), dtype)
  kv = lambda d, dtype=jnp.bfloat16, shared=2: (jax.ShapeDtypeStruct((2, 40, shared, d), dtype),) * 2
  for name in TESTED:
    refused = partial(refusal, name)
    assert refused(shape(16, 4, 64), *kv(64), AttentionSpec()) is None
    assert "at most 16 queries, and there are 17" in refused(shape(17, 4, 64), *kv(64), AttentionSpec())
    assert "not float16" in refused(shape(1, 4, 64, jnp.float16), *kv(64, jnp.float16), AttentionSpec())
    assert "bfloat16 and float32" in refused(shape(1, 4, 64), kv(64)[0], kv(64, jnp.float32)[0], AttentionSpec())
    assert "heads of at most 256" in refused(shape(1, 4, 512), *kv(512), AttentionSpec())
  assert "multiple of 16, not 24" in refusal("decode_tpu", shape(1, 4, 24), *kv(24), AttentionSpec())
  wide = shape(16, 32, 256), *kv(256, shared=1)
  assert "262144 bytes, and only 65536" in refusal("decode_triton", *wide, AttentionSpec())
  q, cached, spec = case_of(4, queries=17)
  with pytest.raises(Unsupported, match="'decode_tpu' can not do this: it takes at most 16 queries"):
    in_cache(q, cached, spec, impl="decode_tpu")
  with pytest.raises(ValueError, match="no attention backend 'decode'"):
    in_cache(q, cached, spec, impl="decode")


def test_any_backend_reads_a_cache():
  """And kernels of decoding take keys as all backends do."""
  table = jnp.asarray(np.random.default_rng(5).normal(size=(8, 4)), jnp.float32)
  q, cached, spec = case_of(5, queries=3, causal=True, offset=jnp.array([37, 11]), bias=Buckets(table, False, 16))
  wanted = dense(reference.attention)(q, cached, spec)
  for name in ("xla", "xla_chunked", *TESTED):
    np.testing.assert_allclose(in_cache(q, cached, spec, impl=name), wanted, atol=1e-5)
    np.testing.assert_allclose(dense(partial(attention, impl=name))(q, cached, spec), wanted, atol=1e-5)


def test_choice(monkeypatch):
  """None takes the device's kernel where it can; more queries than it takes, and what it refuses, go elsewhere."""
  q, cached, spec = case_of(6)
  many, k = jnp.zeros((2, 17, 4, 32)), cached.shape
  odd = jnp.zeros((2, 1, 4, 24)), jax.ShapeDtypeStruct((2, 40, 2, 24), jnp.float32)
  chosen = partial(decode.chosen, spec=spec)
  assert chosen(q, k, impl=None, decode_impl=None) == "xla"
  assert chosen(q, k, impl="xla_chunked", decode_impl=None) == "xla_chunked"
  assert chosen(q, k, impl="xla_chunked", decode_impl="decode_tpu") == "decode_tpu"
  assert chosen(many, k, impl="xla_chunked", decode_impl="decode_tpu") == "xla_chunked"
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert chosen(q, k, impl=None, decode_impl=None) == "decode_tpu"
  assert chosen(q, k, impl="mosaic_tpu", decode_impl="xla") == "xla"
  by_row = AttentionSpec(offset=jnp.zeros(2, int))
  assert (
    decode.chosen(q, k, by_row, None, None) == "xla" and decode.chosen(q, k, by_row, None, "decode_tpu") == "decode_tpu"
  )
  assert chosen(many, k, impl=None, decode_impl=None) == chosen(*odd, impl=None, decode_impl=None) == "xla"


SIMULATED = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)


def simulated(case, interpret):
  q, cached, spec = case
  given = decode_rows.rows(q, cached.k.shape[3], cached.k.shape[2], 16, spec)
  call = partial(decode_tpu._call, block=16, scale=spec.scale, soft_cap=spec.soft_cap, interpret=interpret)
  return np.asarray(jax.jit(call)(given, cached.k, cached.v, cached.layer[None]))


def test_no_races():
  """By the simulator of the chip's memory, which also fills what was never written with NaN."""
  case = case_of(7, keys=44, key_lengths=jnp.array([44, 18]), causal=True, offset=jnp.array([40, 43]))
  found = simulated(case, SIMULATED)
  assert not interpreter.races.races_found
  np.testing.assert_allclose(found, simulated(case, True), rtol=1e-6, atol=1e-6)


def test_a_planted_race_is_found(monkeypatch):
  """Blocks of keys given to two cores: both write the sums of the same queries."""
  params = pltpu.CompilerParams
  monkeypatch.setattr(pltpu, "CompilerParams", lambda **_: params(dimension_semantics=("parallel",) * 3))
  simulated(case_of(8, batch=1, shared=1), SIMULATED)
  assert interpreter.races.races_found


def step(d: int, layers: int):
  """A decoding step of all layers: the newest keys and values are written, and all are attended to."""

  def run(q, k, v, table, index):
    shared = k.shape[2]

    def layer(carry, i):
      q, k, v = carry
      new = jnp.swapaxes(q[:, :, :shared], 1, 2)[None].astype(k.dtype)
      k, v = (jax.lax.dynamic_update_slice(x, new, (i, 0, 0, index, 0)) for x in (k, v))
      bias = None if table is None else Buckets(table, False, 128)
      spec = AttentionSpec(offset=index, causal=True, bias=bias, scale=d**-0.5)
      return (in_cache(q, Cached(k, v, i), spec, impl="decode_tpu"), k, v), None

    return jax.lax.scan(layer, (q, k, v), jnp.arange(layers))[0]

  return run


def shapes(batch, heads, shared, keys, d, layers, biased=True, dtype=jnp.bfloat16):
  of = lambda *shape, dtype=dtype: jax.ShapeDtypeStruct(shape, dtype)
  cache = of(layers, batch, shared, keys, d)
  table = of(32, heads, dtype=jnp.float32) if biased else None
  return of(batch, 1, heads, d), cache, cache, table, of(dtype=jnp.int32)


@pytest.mark.skipif(not ahead.available("v5e"), reason="libtpu is not installed")
@pytest.mark.parametrize("chip", ahead.TPUS)
@pytest.mark.parametrize("heads, shared, d, biased", [(12, 12, 64, True), (32, 4, 128, False)])
def test_compiled_for_tpus(chip, heads, shared, d, biased):
  """One step of two layers holds the kernel, and makes no copy of a cache or of a layer of it."""
  batch, keys, layers = 32, 2048, 2
  compiled = ahead.compiled_for(chip, step(d, layers), *shapes(batch, heads, shared, keys, d, layers, biased))
  one_layer = 2 * batch * shared * keys * d
  assert compiled.memory_analysis().temp_size_in_bytes < one_layer / 2
  # The body of a scan counts once.
  flops = 4 * batch * heads * keys * d
  assert flops <= compiled.cost_analysis()["flops"] <= 1.05 * flops


def triton(cases, run):
  """`run` on shapes of each (batch, heads, kv_heads, keys, d, queries, dtype)."""
  for batch, heads, shared, keys, d, queries, dtype in cases:
    of = lambda *shape, dtype=dtype: jax.ShapeDtypeStruct(shape, dtype)
    cache = of(2, batch, shared, keys, d)
    whole = of(dtype=jnp.int32)

    def attend(q, k, v, layer, index, slopes, scale=d**-0.5):
      spec = AttentionSpec(offset=index, causal=True, bias=Alibi(slopes), scale=scale)
      return decode_triton.in_cache(q, Cached(k, v, layer), spec)

    yield run(attend, of(batch, queries, heads, d), cache, cache, whole, whole, of(heads, dtype=jnp.float32))


def test_lowered_for_cuda():
  """The program holds the kernel, which the cache enters as it is."""
  lower = lambda f, *x: jax.jit(f).trace(*x).lower(lowering_platforms=("cuda",)).as_text()
  case = (4, 12, 4, 300, 80, 2, jnp.bfloat16)
  (text,) = triton([case], lower)
  (call,) = [line for line in text.splitlines() if "custom_call @__gpu$xla.gpu.triton" in line]
  assert "%arg1, %arg2" in call and decode_triton.NAME in call


@pytest.mark.skipif(not ahead.available("h200"), reason="jax's CUDA plugin is not installed")
def test_compiled_for_hopper():
  """Temporary memory is that of bias, mask and partial sums, below a tenth of one layer's keys and values."""
  cases = [(32, 12, 12, 2048, 64, 1), (32, 32, 4, 2048, 128, 1), (2, 8, 1, 512, 256, 8), (2, 4, 4, 100, 80, 16)]
  cases = [(*case, jnp.bfloat16) for case in cases] + [(2, 8, 1, 512, 256, 8, jnp.float32)]
  for case, compiled in zip(cases, triton(cases, partial(ahead.compiled_for, "h200")), strict=True):
    batch, _, shared, keys, d, *_ = case
    if batch == 32:
      assert compiled.memory_analysis().temp_size_in_bytes < 4 * batch * shared * keys * d / 10, case
