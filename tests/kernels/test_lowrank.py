"""The routed projection: every backend, values and gradients, against the reference in float64; isolation; refusals."""

import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter  # where it says what races it saw
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P

from pallas_kernels.lowrank import api, mosaic_tpu, reference, triton, xla
from pallas_kernels.lowrank.api import BACKENDS, backend, refusal, routed_projection
from pallas_kernels.unsupported import Unsupported

KERNELS = {"mosaic_tpu": mosaic_tpu.projection, "triton": triton.projection}
# batch, length, din, dout, splits, skills, rank, form
CASES = {
  "rows": (2, 24, 32, 48, 2, 3, 4, "rows"),
  "segments": (2, 70, 48, 32, 4, 3, 4, "segments"),
  "tokens": (2, 20, 32, 48, 2, 3, 4, "tokens"),
  "one split": (1, 24, 32, 48, 1, 2, 16, "segments"),
  "one token": (1, 1, 64, 48, 2, 4, 8, "rows"),
  # Several blocks of tokens, the last one not full; splits that are no whole tiles of lanes, on both sides.
  "blocks": (1, 300, 384, 256, 4, 4, 8, "segments"),
  "splits over blocks": (3, 100, 256, 768, 4, 2, 20, "rows"),
  "blocks of whole splits": (1, 40, 256, 512, 2, 2, 4, "segments"),
}


def drawn(batch, length, din, dout, splits, skills, rank, form, seed=0):
  """((x, kernel, a, b, w), ids), float64."""
  rng = np.random.default_rng(seed)
  routes = {"rows": (batch,), "segments": (3,), "tokens": (batch, length)}[form]
  ids = np.sort(rng.integers(0, 3, (batch, length)), axis=1).astype(np.int32) if form == "segments" else None
  w = rng.random((*routes, splits, skills))
  args = (
    rng.normal(size=(batch, length, din)),
    rng.normal(size=(din, dout)) * din**-0.5,
    rng.normal(size=(splits, skills, din // splits, rank)) * (splits / din) ** 0.5,
    rng.normal(size=(splits, skills, rank, dout // splits)),
    w / w.sum(-1, keepdims=True),
  )
  return args, ids


def outputs(function, args, ids, dtype):
  """Output, and gradients to all arguments."""
  args = tuple(jnp.asarray(x, dtype) for x in args)
  weight = np.random.default_rng(1).normal(size=(*args[0].shape[:2], args[1].shape[1]))

  def loss(args):
    y = function(*args, ids)
    return (y * weight.astype(dtype)).sum(), y

  (_, y), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(args)
  return [np.asarray(x, np.float64) for x in (y, *grads)]


@pytest.mark.parametrize(
  "case, dtype",
  [(case, "float32") for case in CASES] + [(case, "bfloat16") for case in ("rows", "tokens", "one split", "blocks")],
)
def test_kernels_are_as_near_to_the_reference_as_xla(case, dtype):
  """Values and all gradients: the error is at most twice that of plain XLA in the same dtype."""
  args, ids = drawn(*CASES[case])
  args = tuple(np.asarray(jnp.asarray(x, dtype), np.float64) for x in args)
  with jax.enable_x64(True):
    wanted = outputs(reference.projection, args, ids, "float64")
  plain = outputs(xla.projection, args, ids, dtype)
  rms = lambda x: np.sqrt(np.mean(np.square(x)))
  floor = 3 * float(jnp.finfo(dtype).eps) / 8  # of a few numbers, XLA's error is small by chance
  names = ("y", "x", "kernel", "a", "b", "w")
  for name, function in KERNELS.items():
    if name == "triton" and CASES[case][-1] == "tokens":
      continue
    for what, ours, theirs, exact in zip(names, outputs(function, args, ids, dtype), plain, wanted, strict=True):
      assert rms(ours - exact) <= 2 * max(rms(theirs - exact), floor * rms(exact)), (name, what)


@pytest.mark.parametrize("form", ["rows", "segments", "tokens"])
def test_reference_equals_loops(form):
  """y of each token: the sum over splits and skills on both sides, written out."""
  args, ids = drawn(2, 3, 8, 12, 2, 3, 2, form)
  x, kernel, a, b, w = args
  wanted = np.zeros((2, 3, 12))
  for i, j in np.ndindex(2, 3):
    weights = {"rows": lambda: w[i], "segments": lambda: w[ids[i, j]], "tokens": lambda: w[i, j]}[form]()
    mixed_a = np.concatenate([sum(weights[q, s] * a[q, s] for s in range(3)) for q in range(2)], axis=0)
    mixed_b = np.concatenate([sum(weights[q, s] * b[q, s] for s in range(3)) for q in range(2)], axis=1)
    wanted[i, j] = x[i, j] @ (kernel + mixed_a @ mixed_b / 2)
  with jax.enable_x64(True):
    found = routed_projection(*map(jnp.asarray, args), ids, impl="reference")
  np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_every_backend_divides_by_rank():
  args, ids = drawn(*CASES["segments"])
  args = tuple(jnp.asarray(x, jnp.float32) for x in args)
  wanted = routed_projection(*args, ids, impl="reference")
  for name in (None, *BACKENDS):
    np.testing.assert_allclose(routed_projection(*args, ids, impl=name), wanted, atol=1e-4)


@pytest.mark.parametrize("name", ["xla", *KERNELS])
def test_segments_are_isolated(name):
  """Changing one segment leaves the outputs, and gradients to x, of every other one bitwise equal."""
  (x, *rest), _ = drawn(2, 40, 32, 48, 2, 3, 4, "segments")
  ids = jnp.array([[1] * 10 + [2] * 7 + [0] * 23] * 2)
  x, *rest = (jnp.asarray(v, jnp.float32) for v in (x, *rest))
  other = (ids == 2)[:, :, None]
  function = {"xla": xla.projection, **KERNELS}[name]

  @jax.jit
  def run(x):
    y, back = jax.vjp(lambda x: function(x, *rest, ids), x)
    return y, back(x @ rest[0])[0]

  for before, after in zip(run(x), run(jnp.where(other, 3 * x + 1, x)), strict=True):
    same = np.asarray(before == after).all(-1)
    assert same[~np.asarray(other[..., 0])].all() and not same[np.asarray(other[..., 0])].any()


@pytest.mark.parametrize("name", KERNELS)
def test_inside_of_what_models_do(name, mesh8):
  """In a scan over layers, rematerialised, mapped over rows of a mesh: values and gradients as without."""
  (x, *rest), _ = drawn(8, 6, 32, 32, 2, 3, 4, "rows")
  x, kernel, a, b, w = (jnp.asarray(v, jnp.float32) for v in (x, *rest))
  stacked = jax.tree.map(lambda v: jnp.stack([v, v / 2]), (kernel, a, b))

  def loss(function, x, stacked, w):
    layer = lambda x, params: (jnp.tanh(function(x, *params, w)), None)
    return (jax.lax.scan(layer, x, stacked)[0] ** 2).sum()

  def mapped(x, kernel, a, b, w):
    rows = P(("data", "fsdp"))
    call = lambda x, w, *whole: KERNELS[name](x, *whole, w, None)
    return jax.shard_map(call, mesh=mesh8, in_specs=(rows, rows, P(), P(), P()), out_specs=rows, check_vma=False)(
      x, w, kernel, a, b
    )

  saved = jax.checkpoint_policies.save_only_these_names("low_rank")
  grads = lambda function: jax.jit(jax.grad(partial(loss, function), argnums=(0, 1, 2)))(x, stacked, w)
  wanted = grads(lambda *args: xla.projection(*args, None))
  found = grads(jax.checkpoint(mapped, policy=saved))
  for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def races(case, blocks, semantics=None) -> bool:
  """Whether two cores that compute both kernels of the TPU race; and the results are those of one."""
  args, _ = drawn(*case)
  splits, skills, _, rank = args[2].shape
  x, kernel, a, b, w = (jnp.asarray(v, jnp.float32) for v in args)
  a = jnp.moveaxis(a, 1, 2).reshape(x.shape[2], -1)
  b = jnp.moveaxis(b, 0, 2).reshape(-1, kernel.shape[1])
  w = jnp.broadcast_to(w[:, None], (*x.shape[:2], splits, skills)).reshape(-1, splits * skills)
  x = x.reshape(-1, x.shape[2])
  found = False

  def checked(function, *arrays, **static):
    nonlocal found
    wanted = function(*arrays, **static, splits=splits, rank=rank, interpret=True)
    params = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    got = function(*arrays, **static, splits=splits, rank=rank, interpret=params)
    jax.block_until_ready(got)
    found |= interpreter.races.races_found
    if semantics is None:
      for ours, theirs in zip(got, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    return wanted

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(mosaic_tpu, "_rows", lambda tokens: [blocks])
    if semantics is not None:
      patch.setattr(mosaic_tpu, "_parameters", lambda *_: pltpu.CompilerParams(dimension_semantics=semantics))
    if semantics is None:
      y, z = checked(mosaic_tpu._project, x, kernel, a, b, w, None, transposed=False)
      checked(mosaic_tpu._project, y, kernel, b.T, a.T, w, z, transposed=True)
    z = jnp.ones((x.shape[0], a.shape[1]), x.dtype)
    checked(mosaic_tpu._factors, x, a, w, z)
  return found


def test_no_races():
  assert not races((1, 32, 16, 32, 2, 2, 4, "rows"), 8)


def test_a_planted_race_is_found():
  """Cores that share the blocks of a sum."""
  assert races((1, 24, 16, 32, 2, 2, 4, "rows"), 8, ("parallel", "parallel"))


def test_refusals_name_who_can(caplog):
  args, _ = drawn(*CASES["tokens"])
  args = tuple(jnp.asarray(x, jnp.float32) for x in args)
  with pytest.raises(
    Unsupported, match=r"'triton' can not do this: .* not of every token.*: reference, xla, mosaic_tpu"
  ):
    routed_projection(*args, impl="triton")
  half = (args[0].astype(jnp.float16), *args[1:])
  with pytest.raises(Unsupported, match="float32 and bfloat16, not in float16"):
    routed_projection(*half, impl="mosaic_tpu")
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
  huge = (shape(1, 8, 2**16), shape(2**16, 2**16), shape(1, 8, 2**16, 16), shape(1, 8, 16, 2**16), shape(1, 1, 8))
  assert "no block of a projection of 65536 x 65536" in refusal("mosaic_tpu", *huge)
  many = (shape(1, 8, 64), shape(64, 64), shape(1, 2, 64, 4), shape(1, 2, 4, 64), shape(100, 1, 2), shape(1, 8))
  assert "mixed factors of 100 routes" in refusal("triton", *many)
  assert "rank of at most 128" in refusal("triton", *many[:2], shape(1, 2, 64, 256), shape(1, 2, 256, 64), *many[4:])
  with pytest.raises(ValueError, match=r"no backend 'mosaic'.*; there are: reference, xla, mosaic_tpu, triton"):
    backend("mosaic")
  api._tell.cache_clear()
  with caplog.at_level(logging.INFO):
    for _ in range(2):
      routed_projection(*args)
  assert [r.message for r in caplog.records if "routed" in r.message] == [
    "routed projection: xla for 32 x 48 with 2 splits x 3 skills of rank 4"
  ]


def test_the_kernel_is_taken_on_tpus(monkeypatch):
  """Where it can do it, and there are tokens enough."""
  shape = lambda *s, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(s, dtype)
  fixed = (shape(64, 64), shape(1, 2, 64, 4), shape(1, 2, 4, 64), shape(2, 1, 2))
  assert api.chosen(shape(2, 256, 64), *fixed) == "xla"
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  assert api.chosen(shape(2, 256, 64), *fixed) == "mosaic_tpu"
  assert api.chosen(shape(2, 1, 64), *fixed) == "xla"
  assert api.chosen(shape(2, 256, 64, dtype=jnp.float16), *fixed) == "xla"


@pytest.mark.parametrize("changed, message", [("kernel", r"kernel has \(31, 48\)"), ("w", r"w has \(3,\)")])
def test_shapes_that_do_not_fit_are_named(changed, message):
  args, _ = drawn(*CASES["rows"])
  x, kernel, a, b, w = (jnp.asarray(x, jnp.float32) for x in args)
  args = (x, kernel[1:], a, b, w) if changed == "kernel" else (x, kernel, a, b, jnp.concatenate([w, w[:1]]))
  with pytest.raises(ValueError, match=message):
    routed_projection(*args)
