"""A trained Llama in llama2.c's format, opened, run and decoded: the published sample, token for token."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtx.pretrained.model import open_model


@pytest.fixture(scope="module")
def expected(shared):
  return json.loads((shared / "stories260k" / "expected_greedy.json").read_text())


@pytest.fixture(scope="module")
def opened(shared, mesh1):
  return open_model(shared / "stories260k", mesh1)


def test_sizes(opened):
  """Grouped heads, a tied head, 5 layers: as SOURCE.md says of the file."""
  c = opened.config
  assert (c.d_model, c.heads, c.kv_heads, c.d_kv, c.d_ff, c.decoder_layers) == (64, 8, 4, 8, 172, 5)
  assert (c.vocab_size, c.tied_head, c.architecture, opened.family.name) == (512, True, "causal", "llama")


def test_greedy_decoding_with_a_cache(opened, expected):
  """256 tokens after BOS alone, one at a time."""
  steps = expected["steps"]
  prompt = {
    "decoder_input_tokens": np.full((1, 1), expected["bos_id"], np.int32),
    "decoder_segment_ids": np.ones((1, 1), np.int32),
    "decoder_positions": np.zeros((1, 1), np.int32),
    "task_ids": np.zeros(1, np.int32),
  }

  @jax.jit
  def greedy(params, prompt):
    logits, cache = opened.blueprint.merge(params).prefill(prompt, steps)

    def step(carry, _):
      logits, cache = carry
      token = logits.argmax(-1).astype(jnp.int32)
      return opened.blueprint.merge(params).decode_step(token, cache), token

    return jax.lax.scan(step, (logits, cache), None, steps)[1][:, 0]

  assert steps == 256
  assert np.asarray(greedy(opened.params, prompt)).tolist() == expected["token_ids"][1:]


def test_teacher_forced(opened, expected):
  """The same tokens in one piece: every one is the likeliest after those before it."""
  tokens = np.array(expected["token_ids"], np.int32)[None]
  inputs = tokens[:, :-1]
  batch = {
    "decoder_input_tokens": inputs,
    "decoder_segment_ids": np.ones_like(inputs),
    "decoder_positions": np.arange(inputs.shape[1], dtype=np.int32)[None],
    "task_ids": np.zeros(1, np.int32),
  }
  logits = jax.jit(lambda params, batch: opened.blueprint.merge(params)(batch).logits)(opened.params, batch)
  np.testing.assert_array_equal(np.asarray(logits).argmax(-1), tokens[:, 1:])
