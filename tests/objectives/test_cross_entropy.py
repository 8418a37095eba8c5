"""Cross-entropy: sums, in all and per task, against numpy in float64; from logits and from what they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtx.data.convert import padded
from mtx.errors import UserError
from mtx.models.outputs import Outputs
from mtx.objectives.cross_entropy import cross_entropy
from mtx.training.parameters import partition
from pallas_kernels.cross_entropy.head import LinearHead

ROWS, LENGTH, VOCABULARY, TASKS = 4, 6, 9, 5


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  segments = np.array([[1, 1, 1, 2, 2, 0], [1, 2, 3, 3, 0, 0], [1] * 6, [0] * 6], np.int32)
  return {
    "decoder_target_tokens": rng.integers(0, VOCABULARY, (ROWS, LENGTH)).astype(np.int32),
    "decoder_loss_weights": ((segments > 0) * rng.choice([0.0, 0.5, 1.0], (ROWS, LENGTH))).astype(np.float32),
    "decoder_task_ids": np.where(segments > 0, rng.integers(0, TASKS - 1, (ROWS, LENGTH)), 0).astype(np.int32),
  }


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_sums_equal_numpy(batch, z_loss):
  """Sum of weight * (-log p + z log(Z)^2), and the same per task, to 1e-6; a task that is absent has zeros."""
  logits = 5 * np.random.default_rng(1).normal(size=(ROWS, LENGTH, VOCABULARY)).astype(np.float32)
  log_z = np.log(np.exp(logits.astype(np.float64)).sum(-1))
  scores = np.take_along_axis(logits, batch["decoder_target_tokens"][..., None], axis=-1)[..., 0]
  token_loss = (log_z - scores + z_loss * log_z**2) * batch["decoder_loss_weights"]
  loss = jax.jit(lambda o, b: cross_entropy(o, b, TASKS, z_loss=z_loss))(Outputs(logits), batch)
  np.testing.assert_allclose(loss.sum, token_loss.sum(), rtol=1e-6)
  assert loss.weight == batch["decoder_loss_weights"].sum()
  for task in range(TASKS):
    here = batch["decoder_task_ids"] == task
    np.testing.assert_allclose(loss.task_sum[task], token_loss[here].sum(), rtol=1e-6)
    assert loss.task_weight[task] == batch["decoder_loss_weights"][here].sum()
  assert loss.task_sum[TASKS - 1] == loss.task_weight[TASKS - 1] == 0
  assert loss.task_sum[1] > 0


def test_z_loss_pulls_log_z_to_zero(batch):
  """Its gradient alone is 2 z log Z p; shifting all logits changes it and nothing else."""
  logits = np.random.default_rng(1).normal(size=(ROWS, LENGTH, VOCABULARY)).astype(np.float32)
  total = lambda logits, z: cross_entropy(Outputs(logits), batch, TASKS, z_loss=z).sum
  plain, shifted = (float(total(logits + shift, 0.0)) for shift in (0.0, 3.0))
  np.testing.assert_allclose(plain, shifted, rtol=1e-5)
  both = jax.grad(total)(logits, 0.1) - jax.grad(total)(logits, 0.0)
  log_z = np.log(np.exp(logits).sum(-1, keepdims=True))
  wanted = 0.1 * 2 * log_z * np.exp(logits - log_z) * batch["decoder_loss_weights"][..., None]
  np.testing.assert_allclose(both, wanted, rtol=0, atol=1e-6)


def test_targets_of_weight_zero_are_nothing(batch):
  """Whatever the target at a token of weight 0: bitwise the same loss and a zero gradient there."""
  logits = np.random.default_rng(1).normal(size=(ROWS, LENGTH, VOCABULARY)).astype(np.float32)
  unweighted = batch["decoder_loss_weights"] == 0
  other = batch | {"decoder_target_tokens": np.where(unweighted, 3, batch["decoder_target_tokens"])}
  function = jax.value_and_grad(lambda logits, b: cross_entropy(Outputs(logits), b, TASKS).sum)
  (one, gradient), (two, _) = function(logits, batch), function(logits, other)
  assert one == two
  assert not np.asarray(gradient)[unweighted].any()


def test_label_smoothing_equals_numpy(batch):
  """A share of the target's probability is spread over all of the vocabulary."""
  logits = 5 * np.random.default_rng(1).normal(size=(ROWS, LENGTH, VOCABULARY)).astype(np.float32)
  log_p = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
  wanted = 0.9 * np.eye(VOCABULARY)[batch["decoder_target_tokens"]] + 0.1 / VOCABULARY
  token_loss = -(wanted * log_p).sum(-1) * batch["decoder_loss_weights"]
  loss = cross_entropy(Outputs(logits), batch, TASKS, label_smoothing=0.1)
  np.testing.assert_allclose(loss.sum, token_loss.sum(), rtol=1e-6)


@pytest.mark.parametrize("impl", ["reference", "xla", "xla_chunked"])
def test_backends_give_one_loss(batch, impl):
  """All that a Loss holds, from hidden states and head as from logits."""
  rng = np.random.default_rng(2)
  head = LinearHead(jnp.asarray(rng.normal(size=(VOCABULARY, 4)), jnp.float32), None, True, 0.5, 10.0)
  hidden = jnp.asarray(rng.normal(size=(ROWS, LENGTH, 4)), jnp.float32)
  settings = {"z_loss": 1e-2, "label_smoothing": 0.1}
  wanted = cross_entropy(Outputs(head.logits(hidden)), batch, TASKS, **settings)
  found = cross_entropy(Outputs(head.logits(hidden), hidden, head), batch, TASKS, **settings, impl=impl)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), found, wanted)


MODELS = {
  "tied and scaled": ("encdec", {}),
  "untied": ("causal", {"tied_head": False}),
  "bias and cap": ("prefix", {"head_bias": True, "logit_soft_cap": 3.0}),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models_give_what_logits_come_from(kind, tiny, routed, weights, examples):
  """Gradients to every parameter, adapters and embedding too, by chunks as from logits."""
  architecture, changes = MODELS[kind]
  model = routed(tiny(architecture, **changes), tasks=3)
  rows = padded(examples(4), architecture, 8, 5, [0, 1, 2, 0], rows=4)

  def loss(params, impl):
    return cross_entropy(model.merge(params)(rows), rows, 3, impl=impl).sum

  run = jax.jit(lambda params: [jax.value_and_grad(loss)(params, impl) for impl in ("xla", "xla_chunked")])
  (one, gradients), (two, others) = run(weights(model))
  np.testing.assert_allclose(one, two, rtol=1e-6)
  for path, value in gradients.items():
    np.testing.assert_allclose(others[path], value, rtol=0, atol=2e-5 * np.abs(value).max(), err_msg=path)


def test_no_logits_in_a_program_that_does_not_read_them(tiny, routed, weights, examples):
  """Of the whole vocabulary's width there is one chunk of tokens, and no gradient of a frozen head."""
  model = routed(tiny("encdec", vocab_size=97 * 64), tasks=3)
  rows = padded(examples(256), "encdec", 8, 8, [i % 3 for i in range(256)], rows=256)
  train, frozen = partition(weights(model), {r".*/adapter/.*": 1.0})

  def widest(impl):
    loss = lambda train: cross_entropy(model.merge({**frozen, **train})(rows), rows, 3, impl=impl).sum
    return jax.jit(jax.grad(loss)).lower(train).compile().as_text()

  assert f"[256,8,{97 * 64}]" in widest("xla") and f"[256,8,{97 * 64}]" not in widest("xla_chunked")
  assert f"[128,{97 * 64}]" in widest("xla_chunked")


def test_a_head_with_an_adapter_has_logits_only(tiny, routed, weights, examples):
  """Left to itself the loss reads them; a backend that can not is told of by name."""
  model = routed(tiny("causal", tied_head=False), tasks=3, pattern=r"head/projection")
  rows = padded(examples(2), "causal", 8, 5, [0, 1], rows=2)
  outputs = model.merge(weights(model))(rows)
  assert outputs.hidden is None and outputs.head is None
  assert cross_entropy(outputs, rows, 3).sum == cross_entropy(outputs, rows, 3, impl="xla").sum
  with pytest.raises(UserError, match=r"`cross_entropy.impl`: 'xla_chunked' computes logits from hidden states"):
    cross_entropy(outputs, rows, 3, impl="xla_chunked")


def test_wrong_settings_are_named(batch):
  outputs = Outputs(np.zeros((ROWS, LENGTH, VOCABULARY), np.float32))
  with pytest.raises(UserError, match=r"did you mean `xla_chunked`"):
    cross_entropy(outputs, batch, TASKS, impl="xla_chunk")
  with pytest.raises(UserError, match=r"label_smoothing`: 2 is not from 0 to 1"):
    cross_entropy(outputs, batch, TASKS, label_smoothing=2)
