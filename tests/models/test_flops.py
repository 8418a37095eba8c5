"""FLOPs of a model, against a count by hand."""

import pytest

from mtx.models.flops import forward_per_row, training_per_row


@pytest.fixture
def config(tiny):
  # d_model 4, heads 2 x 3, d_ff 5, vocabulary 7.
  return lambda architecture: tiny(
    architecture, d_model=4, heads=2, d_kv=3, d_ff=5, vocab_size=7, encoder_layers=3, decoder_layers=2
  )


def test_decoder(config):
  """5 tokens: 4 projections of 4x6, scores and mixing of 5x5x6, 3 matrices of 4x5, head of 4x7; 2 a multiply-add."""
  layer = 4 * 2 * 5 * 4 * 6 + 2 * 2 * 5 * 5 * 6 + 3 * 2 * 5 * 4 * 5
  wanted = 2 * layer + 2 * 5 * 4 * 7
  assert forward_per_row(config("causal"), 3, 2) == forward_per_row(config("prefix"), 3, 2) == wanted == 4600


def test_encoder_decoder(config):
  """3 inputs, 2 targets; cross-attention projects queries and outputs of 2 tokens, keys and values of 3."""
  encoder = 4 * 2 * 3 * 24 + 2 * 2 * 3 * 3 * 6 + 3 * 2 * 3 * 20
  own = 4 * 2 * 2 * 24 + 2 * 2 * 2 * 2 * 6
  cross = 2 * 2 * 2 * 24 + 2 * 2 * 3 * 24 + 2 * 2 * 2 * 3 * 6
  decoder = own + cross + 3 * 2 * 2 * 20
  assert forward_per_row(config("encdec"), 3, 2) == 3 * encoder + 2 * decoder + 2 * 2 * 4 * 7


def test_training_is_two_or_three_forwards(config):
  """A frozen base needs no gradients of its weights."""
  once = forward_per_row(config("encdec"), 3, 2)
  assert training_per_row(config("encdec"), 3, 2, frozen_base=False) == 3 * once
  assert training_per_row(config("encdec"), 3, 2, frozen_base=True) == 2 * once
