"""Every cross-entropy backend, values and gradients, against the reference in float64; what it costs; on a mesh."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pallas_kernels import ahead
from pallas_kernels.cross_entropy import chunked, reference, xla
from pallas_kernels.cross_entropy.api import BACKENDS, backend, chosen, linear_cross_entropy
from pallas_kernels.cross_entropy.head import LinearHead
from pallas_kernels.cross_entropy.loss import TokenLoss
from pallas_kernels.cross_entropy.split import Split

# Chunks smaller than most batches, so that there are several, and sizes that do not divide.
TESTED = {
  "xla": xla.linear_cross_entropy,
  "xla_chunked": partial(chunked.linear_cross_entropy, tokens=7, block=16),
}


@st.composite
def cases(draw):
  """(x, head, targets, weights, counted, loss), float32, of any features."""
  whole = lambda low, high: draw(st.integers(low, high))
  yes = lambda: draw(st.booleans())
  batch, length, vocabulary, d_model = whole(1, 4), whole(1, 9), whole(2, 40), whole(1, 20)
  rng = np.random.default_rng(whole(0, 2**32 - 1))
  normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
  first = yes()
  head = LinearHead(
    normal(*((vocabulary, d_model) if first else (d_model, vocabulary))),
    normal(vocabulary) if yes() else None,
    vocabulary_first=first,
    scale=draw(st.sampled_from([1.0, 0.125, 3.0])),
    soft_cap=draw(st.sampled_from([0.0, 2.0, 30.0])),
  )
  targets = rng.integers(0, vocabulary, (batch, length)).astype(np.int32)
  weights = rng.choice([0.0, 0.5, 1.0, 3.0], (batch, length)).astype(np.float32)
  counted = rng.random((batch, length)) < draw(st.sampled_from([0.0, 0.3, 0.9])) if yes() else None
  loss = TokenLoss(draw(st.sampled_from([0.0, 1e-4, 0.1])), draw(st.sampled_from([0.0, 0.1, 1.0])))
  return normal(batch, length, d_model), head, targets, weights, counted, loss


def case_of(seed, *, batch=3, length=8, vocabulary=48, d_model=16, first=True, dtype=jnp.float32, **loss):
  rng = np.random.default_rng(seed)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  weight = normal(vocabulary, d_model) if first else normal(d_model, vocabulary)
  head = LinearHead(weight, normal(vocabulary), first, scale=0.5, soft_cap=5.0)
  targets = jnp.asarray(rng.integers(0, vocabulary, (batch, length)))
  weights = jnp.asarray(rng.choice([0.0, 0.5, 1.0], (batch, length)), jnp.float32)
  return normal(batch, length, d_model), head, targets, weights, None, TokenLoss(**loss)


def computed(functions, x, head, targets, weights, counted, loss, dtype, *, of_losses=False):
  """Of each function: losses, sum, and the gradients of the sum, or of some other sum of the losses; one compile."""
  cast = partial(jax.tree.map, lambda each: jnp.asarray(each, dtype))
  factors = np.random.default_rng(0).normal(size=targets.shape).astype(np.float32)

  def of(function, *args):
    def total(x, head, weights):
      of_sum, losses = function(x, head, targets, weights, counted, loss, Split())
      return (losses * factors).sum() if of_losses else of_sum, (of_sum, losses)

    return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(*args)

  run = jax.jit(lambda *args: [of(function, *args) for function in functions])
  found = run(cast(x), cast(head), jnp.asarray(weights))
  return [[np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(each)] for each in found]


def check(case, of_losses) -> None:
  """Values and all gradients in float32, to 1e-5 of the largest of each array."""
  with jax.enable_x64(True):
    (wanted,) = computed([reference.linear_cross_entropy], *case, jnp.float64, of_losses=of_losses)
  for name, found in zip(TESTED, computed(TESTED.values(), *case, jnp.float32, of_losses=of_losses), strict=True):
    for here, there in zip(found, wanted, strict=True):
      assert np.abs(here - there).max() <= 1e-5 * (1 + np.abs(there).max()), (name, case[5])


sweep = partial(settings, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@sweep(max_examples=20)
@given(cases(), st.booleans())
def test_backends_equal_the_reference(case, of_losses):
  check(case, of_losses)


@pytest.mark.slow
@sweep(max_examples=300)
@given(cases(), st.booleans())
def test_backends_equal_the_reference_at_length(case, of_losses):
  check(case, of_losses)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("first", [True, False])
def test_error_is_that_of_logits_in_memory(dtype, first):
  """The error of each value and gradient is at most twice that of plain XLA in the same dtype."""
  x, head, *rest = case_of(0, vocabulary=1000, length=24, first=first, z_loss=1e-3, label_smoothing=0.1)
  rounded = partial(jax.tree.map, lambda each: np.asarray(jnp.asarray(each, dtype), np.float64))
  case = rounded(x), rounded(head), *rest
  with jax.enable_x64(True):
    (wanted,) = computed([reference.linear_cross_entropy], *case, jnp.float64)
  ours, theirs = computed([TESTED["xla_chunked"], TESTED["xla"]], *case, dtype)
  for here, there, exact in zip(ours, theirs, wanted, strict=True):
    error = lambda each: np.sqrt(np.mean(np.square(each - exact)))
    assert error(here) <= 2 * error(there) + 1e-7 * np.abs(exact).max()


@pytest.mark.parametrize("name", [*TESTED, "reference"])
def test_a_token_of_weight_zero_is_nothing(name):
  """Whatever its target, one that is in no vocabulary too: the same sum and gradients, and none to its state."""
  function = {**TESTED, "reference": reference.linear_cross_entropy}[name]
  x, head, targets, weights, counted, loss = case_of(1, label_smoothing=0.1, z_loss=1e-2)
  run = jax.jit(
    jax.value_and_grad(lambda x, head, t, w: function(x, head, t, w, counted, loss, Split()), (0, 1), has_aux=True)
  )
  (one, _), gradients = run(x, head, targets, weights)
  (two, losses), others = run(x, head, jnp.where(weights == 0, -100, targets), weights)
  assert one == two and np.isnan(losses)[np.asarray(weights) == 0].all()
  jax.tree.map(np.testing.assert_array_equal, gradients, others)
  assert not np.asarray(gradients[0])[np.asarray(weights) == 0].any()
  (none, _), gradients = run(x, head, targets, 0 * weights)
  assert none == 0 and not any(np.asarray(each).any() for each in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", TESTED)
def test_what_does_not_count_is_not_read(name):
  """NaN in states, and targets in no vocabulary: their losses and gradients are 0, and all is as without them."""
  x, head, targets, weights, _, loss = case_of(7, label_smoothing=0.1, z_loss=1e-2)
  counted = jnp.arange(8) % 4 == jnp.array([1, 2, 3])[:, None]  # a quarter, less than a chunk of tokens
  run = lambda x, targets: jax.value_and_grad(
    lambda x, head: TESTED[name](x, head, targets, weights + 1, counted, loss, Split()), (0, 1), has_aux=True
  )(x, head)
  (one, losses), gradients = run(x, targets)
  spoilt = jnp.where(counted[..., None] | (name == "xla"), x, jnp.nan)
  (two, others), more = run(spoilt, jnp.where(counted, targets, -100))
  assert one == two and not np.asarray(losses)[~counted].any() and np.asarray(losses)[counted].all()
  jax.tree.map(np.testing.assert_array_equal, (losses, gradients), (others, more))


@pytest.mark.parametrize("name", TESTED)
def test_a_wrong_target_that_counts_is_seen(name):
  x, head, targets, weights, counted, loss = case_of(2)
  total, losses = TESTED[name](x, head, targets.at[0, 0].set(48), weights + 1, counted, loss, Split())
  assert np.isnan(total) and np.isnan(losses[0, 0]) and np.isfinite(losses.reshape(-1)[1:]).all()


@pytest.mark.parametrize("tokens", [1, 5, 24, 1000])
def test_chunks_change_nothing(tokens):
  """One token a chunk, chunks that do not divide, one chunk; and a batch of one token."""
  for length in (8, 1):
    x, head, *rest = case_of(3, length=length, batch=3 if length == 8 else 1)
    run = lambda function: jax.grad(lambda x, head: function(x, head, *rest, Split())[0], (0, 1))(x, head)
    found = run(partial(chunked.linear_cross_entropy, tokens=tokens))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), found, run(TESTED["xla"]))


def test_inside_scan_checkpoint_and_accumulation():
  """Where transformations make every cotangent an array, gradients are the same."""
  x, head, targets, weights, counted, loss = case_of(4)

  def total(function, x, head):
    def one(carry, row):
      of_sum, losses = function(
        *(each[None] for each in (row[0],)), head, row[1][None], row[2][None], counted, loss, Split()
      )
      return carry + of_sum, losses

    of_sum, losses = jax.lax.scan(jax.checkpoint(one), 0.0, (x, targets, weights))
    return of_sum, losses

  run = lambda function: jax.jit(jax.grad(partial(total, function), (0, 1), has_aux=True))(x, head)[0]
  found, wanted = run(TESTED["xla_chunked"]), run(TESTED["xla"])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-6), found, wanted)


def compiled(function, needed, tokens=64, vocabulary=1024, d_model=32):
  """The program of the gradients of "x", "weight" and "bias" that are asked for."""
  shaped = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  arrays = {"x": shaped(1, tokens, d_model), "weight": shaped(vocabulary, d_model), "bias": shaped(vocabulary)}
  targets = jax.ShapeDtypeStruct((1, tokens), jnp.int32)

  def gradients(arrays, targets, weights):
    def total(some):
      of = {**arrays, **some}
      head = LinearHead(of["weight"], of["bias"], True)
      return function(of["x"], head, targets, weights, None, TokenLoss(), Split())[0]

    return jax.grad(total)({name: arrays[name] for name in needed})

  return jax.jit(gradients).lower(arrays, targets, shaped(1, tokens)).compile()


def test_what_is_frozen_costs_nothing():
  """Products, by the compiler's text: logits, and one a gradient that is asked for."""
  for needed, products in ((("x",), 2), (("weight",), 2), (("bias",), 1), (("x", "weight", "bias"), 3)):
    text = compiled(partial(chunked.linear_cross_entropy, tokens=16), needed).as_text()
    assert len(re.findall(r" dot\(", text)) == products, needed


def test_memory_does_not_grow_with_tokens_times_vocabulary():
  """Temporary memory, by the compiler: 16 times the tokens take what their states do, and not their logits."""
  temporary = lambda *size: compiled(*size).memory_analysis().temp_size_in_bytes
  function = partial(chunked.linear_cross_entropy, tokens=16)
  few, many = (temporary(function, ("x", "weight"), tokens) for tokens in (64, 1024))
  assert many - few <= 4 * 960 * 4 * 32
  assert many <= temporary(xla.linear_cross_entropy, ("x", "weight"), 1024) / 10


MESH_CASES = {"split": {}, "whole rows": {"batch": 3}, "whole vocabulary": {"vocabulary": 49}}


@pytest.mark.parametrize("kind", MESH_CASES)
@pytest.mark.parametrize("first", [True, False])
def test_equal_on_eight_devices(kind, first, mesh8, mesh1):
  """Rows over data and fsdp, vocabulary over tensor, d_model of the stored head over fsdp; sizes that do not divide."""
  from jax.sharding import NamedSharding
  from jax.sharding import PartitionSpec as P

  case = case_of(5, first=first, **{"batch": 8, "z_loss": 1e-2, "label_smoothing": 0.1} | MESH_CASES[kind])
  x, head, targets, weights, _, loss = case
  function = partial(chunked.linear_cross_entropy, tokens=3)

  def run(mesh):
    def of(x, head, weights):
      with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        split = Split(("data", "fsdp"), "tensor")
        total = lambda x, head, weights: function(x, head, targets, weights, targets % 3 > 0, loss, split)
        (of_sum, losses), gradients = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(x, head, weights)
        others = jax.grad(lambda *args: (total(*args)[1] ** 2).sum(), (0, 1))(x, head, weights)
        return of_sum, losses, gradients, others

    vocabulary = "tensor" if kind != "whole vocabulary" else None
    weight = P(vocabulary, "fsdp") if first else P("fsdp", vocabulary)
    rows = P(("data", "fsdp")) if kind != "whole rows" else P()
    placed = lambda spec, each: jax.device_put(each, NamedSharding(mesh, spec))
    stored = LinearHead(placed(weight, head.weight), placed(P(vocabulary), head.bias), first, head.scale, head.soft_cap)
    return jax.tree.map(np.asarray, jax.jit(of)(placed(rows, x), stored, placed(rows, weights)))

  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), run(mesh8), run(mesh1))


def test_none_takes_logits_in_memory_where_they_are_few(caplog):
  x, head, targets, weights, *_ = case_of(6)
  wanted, _ = reference.linear_cross_entropy(x, head, targets, weights, None, TokenLoss(), Split())
  for name in (None, *BACKENDS):
    np.testing.assert_allclose(linear_cross_entropy(x, head, targets, weights, impl=name)[0], wanted, rtol=1e-5)
  large = jax.ShapeDtypeStruct((8, 1024, 16), jnp.float32)
  wide = LinearHead(jax.ShapeDtypeStruct((262144, 16), jnp.float32), vocabulary_first=True)
  assert chosen(x, head, Split()) == "xla" and chosen(large, wide, Split()) == "xla_chunked"


def test_wrong_input_is_named():
  with pytest.raises(ValueError, match=r"no cross-entropy backend 'chunked'; there are: reference, xla, xla_chunked"):
    backend("chunked")
  with pytest.raises(ValueError, match=r"label_smoothing is 1.5"):
    TokenLoss(label_smoothing=1.5)


@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_compiled_for_tpu(chip):
  """8k tokens, vocabulary of 256k, bf16 states, float32 head: temporaries are far below the 8.6 GB of logits."""
  if not ahead.available(chip):
    pytest.skip("libtpu is not installed")
  shaped = jax.ShapeDtypeStruct
  x, weight = shaped((4, 2048, 1024), jnp.bfloat16), shaped((262144, 1024), jnp.float32)
  by_token = shaped((4, 2048), jnp.int32), shaped((4, 2048), jnp.float32)

  def total(x, weight, targets, weights):
    head = LinearHead(weight, vocabulary_first=True)
    return chunked.linear_cross_entropy(x, head, targets, weights, None, TokenLoss(1e-4), Split(), tokens=1024)[0]

  run = ahead.compiled_for(chip, jax.grad(total, (0, 1)), x, weight, *by_token)
  assert run.memory_analysis().temp_size_in_bytes < 3.5e9
