"""Attention on TPU: numerics interpreted on the CPU, compiled for chips that are not at hand."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter  # where it says what races it saw
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from pallas_kernels.ahead import available, compiled_for
from pallas_kernels.attention import mosaic_tpu, xla
from pallas_kernels.attention import mosaic_tpu_masks as masks
from pallas_kernels.attention.api import attention, refusal
from pallas_kernels.attention.bias import Alibi, Buckets, DenseBias
from pallas_kernels.attention.mosaic_tpu_backward import backward
from pallas_kernels.attention.mosaic_tpu_forward import Blocks, Plan, forward
from pallas_kernels.attention.spec import AttentionSpec
from pallas_kernels.static import parsed, schedules
from pallas_kernels.unsupported import Unsupported
from tests.kernels.cases import case_of, cases, check, near_xla, sweep

# Blocks smaller than most lengths, unequal, and others in each direction.
kernel = partial(mosaic_tpu.attention, blocks=(8, 16), backward_blocks=(16, 8))


def honoured(case):
  q, k, v, spec = case
  return q, k, v, replace(spec, bias=None) if isinstance(spec.bias, DenseBias) else spec


@sweep(max_examples=12)
@given(cases().map(honoured))
def test_it_equals_the_reference(case):
  check({"mosaic_tpu": kernel}, case)


@pytest.mark.slow
@sweep(max_examples=500)
@given(cases().map(honoured))
def test_it_equals_the_reference_at_length(case):
  check({"mosaic_tpu": kernel}, case)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["t5", "grouped"])
def test_it_is_as_near_as_dense_xla(kind, dtype):
  """Errors of values and of every gradient against those of XLA in the same dtype; buckets are saturated."""
  rng = np.random.default_rng(1)
  if kind == "t5":
    segments = np.sort(rng.integers(1, 4, (2, 40)), axis=1).astype(np.int32)
    fields = {"query_segments": segments, "key_segments": segments, "bias": Buckets(rng.normal(size=(8, 2)), True, 20)}
    case = case_of(2, queries=40, heads=2, d=64, **fields)
  else:
    fields = {
      "prefix_lengths": np.array([3, 20]),
      "soft_cap": 5.0,
      "scale": 0.125,
      "bias": Alibi(0.5 ** np.arange(1, 5)),
    }
    case = case_of(3, queries=24, d=128, causal=True, offset=16, **fields)
  near_xla(kernel, case, dtype)


def test_segments_are_isolated():
  """Changing one segment leaves the outputs of every other one bitwise equal."""
  segments = jnp.array([[1] * 10 + [2] * 7 + [3] * 15 + [0] * 8] * 2)
  table = jnp.asarray(np.random.default_rng(2).normal(size=(8, 4)), jnp.float32)
  fields = {"query_segments": segments, "key_segments": segments, "causal": True, "bias": Buckets(table, False, 16)}
  q, k, v, spec = case_of(3, queries=40, **fields)
  run = jax.jit(kernel)
  other = (segments == 2)[:, :, None, None]
  before, after = run(q, k, v, spec), run(*(jnp.where(other, 3 * x + 1, x) for x in (q, k, v)), spec)
  same = np.asarray(before == after).all((2, 3))
  assert same[np.asarray(segments != 2)].all() and not same[np.asarray(segments == 2)].any()


def test_a_query_that_sees_nothing_gives_zero():
  """And passes no gradient; nor does what it is not seen by become anything but finite. One key is a length."""
  q, k, v, spec = case_of(4, key_lengths=jnp.array([0, 1]))

  def total(q, k, v):
    y = kernel(q, k, v, spec)
    return y.sum(), y

  (_, y), grads = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)
  assert not np.asarray(y)[0].any() and np.asarray(y)[1].all()
  for grad in map(np.asarray, grads):
    assert np.isfinite(grad).all() and not grad[0].any()
  assert np.asarray(grads[2])[1, 0].all() and not np.asarray(grads[2])[1, 1:].any()


def test_hidden_blocks_are_not_visited():
  """What causal order, a window, lengths or other segments hide is left out, whatever their values are data of."""
  visits = lambda spec: masks.visits(spec, masks.seen(spec, 32, 0, 0), 2, 32, 32, 8, 8)
  of_row_1 = lambda x: np.asarray(x).reshape(2, 4)[1].tolist()
  blocks = lambda spec: [of_row_1(visits(spec).first), of_row_1(visits(spec).last)]
  segments = jnp.array([[1] * 32, [1] * 12 + [2] * 10 + [0] * 10])
  assert blocks(AttentionSpec()) == [[0] * 4, [3] * 4]
  assert blocks(AttentionSpec(causal=True)) == [[0] * 4, [0, 1, 2, 3]]
  assert blocks(AttentionSpec(causal=True, window=jnp.int32(4))) == [[0, 0, 1, 2], [0, 1, 2, 3]]
  assert blocks(AttentionSpec(causal=True, offset=jnp.array([0, 8]))) == [[0] * 4, [1, 2, 3, 3]]
  assert blocks(AttentionSpec(causal=True, prefix_lengths=jnp.array([0, 17]))) == [[0] * 4, [2, 2, 2, 3]]
  assert blocks(AttentionSpec(key_lengths=jnp.array([32, 0]))) == [[0] * 4, [-1] * 4]
  assert blocks(AttentionSpec(segments, segments)) == [[0, 0, 1, 2], [1, 2, 3, 3]]
  q, k, v, spec = case_of(7, queries=16, keys=64, causal=True)
  assert np.isfinite(np.asarray(jax.jit(kernel)(q, k.at[:, 32:].set(jnp.nan), v.at[:, 32:].set(jnp.nan), spec))).all()


def test_it_works_inside_scan_checkpoint_and_shard_map():
  q, k, v, _ = case_of(8, queries=16, keys=16)
  spec = AttentionSpec(causal=True)
  rows = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))

  def layers(attention, q, k, v):
    layer = jax.checkpoint(lambda x, _: (x + attention(x, k, v, spec), None))
    return jax.lax.scan(layer, q, None, length=2)[0]

  row = PartitionSpec("data")
  split = jax.shard_map(partial(layers, kernel), mesh=rows, in_specs=(row, row, row), out_specs=row, check_vma=False)
  grads = lambda function: jax.jit(jax.grad(lambda *qkv: (function(*qkv) ** 2).sum(), argnums=(0, 1, 2)))(q, k, v)
  for here, there in zip(grads(split), grads(partial(layers, xla.attention)), strict=True):
    np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-4)


def kernels_of(case, interpret):
  """([output, gradients...], whether a kernel raced) by the two kernels themselves, with blocks of 8 by 8."""
  q, k, v, spec = case
  lengths = q.shape[1], k.shape[1]
  hides = masks.seen(spec, lengths[1], 0, 0)
  visits = masks.visits(spec, hides, q.shape[0], *lengths, 8, 8)
  blocks = Blocks(8, 8, masks.visited(spec, *lengths, 8, 8))
  plan = Plan(spec.causal, spec.window is not None, spec.scale, spec.soft_cap, blocks, blocks)
  q, k, v = (jnp.moveaxis(x, 1, 2) for x in (q, k, v))
  diagonals = jnp.pad(spec.diagonals(*lengths), ((0, 0), (0, 0), (0, 1)))[:, :, None]
  raced = False

  def run(kernel, *operands):
    nonlocal raced
    found = jax.block_until_ready(kernel(*operands, diagonals, hides, visits, plan=plan, interpret=interpret))
    raced |= interpret is SIMULATED and interpreter.races.races_found  # of the last call
    return found

  y, log_sums = run(forward, q, k, v)
  inner = jnp.einsum("bhqd->bhq", y)[:, :, None]
  return [y, *run(backward, q, k, v, y, log_sums, inner)], raced


def small(heads: int):
  """A case of two blocks of queries and of keys, with all that the kernels keep on the chip."""
  table = jnp.asarray(np.random.default_rng(9).normal(size=(8, heads)), jnp.float32)
  segments = jnp.array([[1] * 10 + [2] * 6])
  fields = {"query_segments": segments, "key_segments": segments, "bias": Buckets(table, False, 16)}
  return case_of(9, batch=1, queries=16, keys=16, heads=heads, shared=heads, causal=True, **fields)


# Two cores, so that what is not in order on one may be so on the other.
SIMULATED = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)


def test_no_races():
  """By the simulator of the chip's memory, which also fills what was never written with NaN."""
  found, raced = kernels_of(small(2), SIMULATED)
  assert not raced
  for here, there in zip(found, kernels_of(small(2), True)[0], strict=True):
    np.testing.assert_allclose(here, there, rtol=1e-6, atol=1e-6)


def test_a_planted_race_is_found(monkeypatch):
  """Blocks of queries given to two cores: both write the gradients of the same keys."""
  params = pltpu.CompilerParams
  planted = lambda *, dimension_semantics, **rest: params(
    dimension_semantics=("parallel",) * len(dimension_semantics), **rest
  )
  monkeypatch.setattr(pltpu, "CompilerParams", planted)
  assert kernels_of(small(1), SIMULATED)[1]


def test_what_it_can_not_do_is_named():
  q, k, v, spec = case_of(10)
  with pytest.raises(
    Unsupported, match=r"'mosaic_tpu' can not do this: it does not honour bias:DenseBias.*xla_chunked"
  ):
    attention(q, k, v, replace(spec, bias=DenseBias(jnp.zeros((4, 24, 40)))), impl="mosaic_tpu")
  shape = lambda n, d, dtype=jnp.bfloat16: (jax.ShapeDtypeStruct((1, n, 1, d), dtype),) * 3
  refused = partial(refusal, "mosaic_tpu")
  assert "heads of size 12" in refused(*shape(128, 12), spec)
  assert "float16" in refused(*shape(128, 64, jnp.float16), spec)
  long = AttentionSpec(bias=Buckets(jnp.zeros((32, 1)), True, 128))
  assert refused(*shape(8192, 128), long) is None
  many = (jax.ShapeDtypeStruct((2**17, 256, 1, 64), jnp.bfloat16),) * 3
  assert "131072 blocks of queries" in refused(*many, spec)
  assert "65536 queries and 65536 keys" in refused(*shape(65536, 128), long)


def program(
  *, batch=4, length=2048, heads=12, shared=12, d=64, dtype="bfloat16", bias=True, segments=True, causal=True
):
  """(gradient of attention to q, k, v and table, shapes of its operands)."""
  fields = {"causal": causal, "scale": d**-0.5}

  def loss(q, k, v, table, ids):
    packed = (ids, ids) if segments else (None, None)
    spec = AttentionSpec(*packed, bias=Buckets(table, True, 128) if bias else None, **fields)
    return mosaic_tpu.attention(q, k, v, spec).astype(jnp.float32).sum()

  shaped = lambda heads: jax.ShapeDtypeStruct((batch, length, heads, d), jnp.dtype(dtype))
  table, ids = jax.ShapeDtypeStruct((32, heads), jnp.float32), jax.ShapeDtypeStruct((batch, length), jnp.int32)
  return jax.grad(loss, argnums=(0, 1, 2, 3)), (shaped(heads), shaped(shared), shaped(shared), table, ids)


COMPILED = {
  "t5": {},
  "grouped": {"heads": 8, "shared": 2, "d": 128, "segments": False},
  "wide": {"heads": 4, "shared": 4, "d": 256, "bias": False},
  "float32": {"heads": 4, "shared": 4, "dtype": "float32"},
}


@pytest.mark.skipif(not available("v5e"), reason="libtpu is not installed")
@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
@pytest.mark.parametrize("which", COMPILED)
def test_it_compiles_for(which, chip):
  """Forward and backward: memory beside operands is linear in the length, and the work is what the formula says."""
  function, operands = program(**COMPILED[which])
  compiled = compiled_for(chip, function, *operands)
  q = operands[0]
  batch, length, heads, d = q.shape
  # Operands, outputs and gradients by heads first, 128 lanes wide and in float32 at most.
  bound = 10 * batch * heads * length * max(d, 128) * q.dtype.itemsize
  assert compiled.memory_analysis().temp_size_in_bytes <= bound < 4 * batch * heads * length**2
  # Causal: 10 of 16 blocks. Two products forward and five backward.
  flops = 7 * 2 * batch * heads * length**2 * d * 10 / 16
  assert flops <= compiled.cost_analysis()["flops"] <= 1.005 * flops


@pytest.mark.skipif(not available("v5e"), reason="libtpu is not installed")
def test_longest_head_fits_on_the_chip():
  """At what `refusal` still lets through, on the chip with the least memory."""
  operands = {"batch": 1, "heads": 1, "shared": 1, "causal": False}
  longest = {"d": 128, "length": 8192}, {"d": 256, "length": 8192, "bias": False}
  for sizes in longest:
    function, shapes = program(**operands, **sizes)
    compiled_for("v5p", function, *shapes)


@pytest.mark.skipif(not available("v5e"), reason="libtpu is not installed")
def test_a_biased_block_costs_little_more():
  """By the compiler's schedule for v5e: bundles of a block's work with the bias and without."""
  kernels = ["mtx_attention_forward", "mtx_attention_backward"]
  scheduled = partial(
    schedules, "v5e", kernels, "tests.kernels.test_attention_tpu:program", batch=1, heads=1, shared=1, segments=False
  )
  biased, plain = scheduled(bias=True, causal=False), scheduled(bias=False, causal=False)
  forward, backward = (biased[name].block / plain[name].block for name in kernels)
  assert 0.95 < forward <= 1.05 and 0.95 < backward <= 1.12, (biased, plain)


def test_a_schedule_is_read():
  table = "units\nMATMUL, VALU\n2 4\n\n" + "\n".join(f"{n} {n}" for n in (0, 4, 4, 1, 0))
  listing = "\n".join(
    [
      "LH: loop header",
      "   0x0   :  { %1 = sbr.rel (%p0) target = $region2 }",
      "   0x1   : > { %2 = vmatmul } /* Start region 1 */",
      "",
      "   0x2   : > { %3 = vmatmul }",
      "   0x3 PF: > { %4 = vmatmul }",
      "   0x4   :  {}",
    ]
  )
  schedule = parsed(table, listing)
  assert (schedule.bundles, schedule.block) == (5, 2)
  assert schedule.cycles == {"MXU": 5, "VALU": 3} and schedule.block_cycles == {"MXU": 4, "VALU": 2}
