"""Phi-3 equals transformers' from the same weights: fused matrices, a window, partial and long rotations."""

import numpy as np
import pytest
from matters import check_matters
from parity import Pair, check_greedy, check_logits_and_gradients, check_names, check_round_trip
from prefix import check_prefix

from mtx.errors import UserError
from mtx.models.build import build
from mtx.models.families.phi3 import FAMILY
from mtx.training.parameters import blueprint, count

SMALL = dict(
  vocab_size=61,
  hidden_size=48,
  intermediate_size=28,
  num_hidden_layers=3,
  num_attention_heads=6,
  num_key_value_heads=2,
  pad_token_id=0,
  bos_token_id=1,
  eos_token_id=2,
)
NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.3, 2.0], "long_factor": [1.0, 4.0, 9.0], "rope_theta": 1e4}
LONG |= {"partial_rotary_factor": 0.75}
VARIANTS = {
  "window": dict(sliding_window=4),
  "partial, tied": dict(
    rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}, tie_word_embeddings=True
  ),
  "longrope": dict(rope_parameters=LONG, original_max_position_embeddings=43, max_position_embeddings=430),
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  return Pair(FAMILY, transformers.Phi3Config(**SMALL | VARIANTS[request.param]))


def test_names(pair):
  check_names(pair)


def test_round_trip(pair):
  check_round_trip(pair)


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_gradients(pair, side):
  layers = [f"self_attention/{each}/kernel" for each in "qkvo"] + ["mlp/wi_0/kernel", "mlp/wi_1/kernel"]
  # Gradients of a part of a fused tensor: `imported` takes ours out of theirs.
  check_logits_and_gradients(pair, ["head/embedding/table"] + [f"decoder/layers/{name}" for name in layers], side)


@pytest.mark.parametrize("side", ["right", "left"])
def test_greedy(pair, side):
  check_greedy(pair, side)


def test_prefix(pair):
  check_prefix(pair)


def test_window_and_rotation_matter(pair):
  c = pair.config
  if c.window:
    check_matters(pair, window=0)
  if c.rope_fraction != 1.0:
    check_matters(pair, rope_fraction=1.0, rope_scaling=None)
  if c.rope_scaling is not None:
    check_matters(pair, rope_scaling=c.rope_scaling.to_dict() | {"short": [1.0, 1.0, 1.0]})
    check_matters(pair, rope_scaling=c.rope_scaling.to_dict() | {"magnitude": 1.0})


def test_rows_end_where_other_factors_begin(pair):
  """A row may be as long as the original context, and no longer."""
  if pair.config.rope_scaling is None:
    pytest.skip("this variant has no such end")
  run = lambda length: pair.model.merge(pair.params)(
    {
      "decoder_input_tokens": np.ones((1, length), np.int32),
      "decoder_segment_ids": np.ones((1, length), np.int32),
      "decoder_positions": np.arange(length, dtype=np.int32)[None],
      "task_ids": np.zeros(1, np.int32),
    }
  )
  assert run(43).logits.shape == (1, 43, 61)
  with pytest.raises(UserError, match="a row has 44 tokens: past 43 this model"):
    run(44)


def test_missing_keys_mean_what_they_mean_in_transformers():
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  sizes = {k: SMALL[k] for k in NEEDED}
  assert FAMILY.config(sizes).to_dict() == FAMILY.config(transformers.Phi3Config(**sizes).to_dict()).to_dict()


def test_published_keys_of_longrope():
  """transformers 4: `rope_scaling` under its first name, one factor a pair, the original context beside it."""
  old = {"type": "su", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0]}
  rest = dict(rope_theta=1e4, max_position_embeddings=131072, original_max_position_embeddings=4096)
  config = FAMILY.config(SMALL | rest | {"rope_scaling": old})
  assert config.rope_scaling.longest == 4096
  np.testing.assert_allclose(config.rope_scaling.magnitude, 1.1902380714)  # sqrt(1 + ln 32 / ln 4096)


@pytest.mark.parametrize(("preset", "parameters"), [("phi3_mini_4k", 3_821_079_552), ("phi4", 14_659_507_200)])
def test_presets(preset, parameters):
  """As many parameters as the published files have."""
  c = FAMILY.config(FAMILY.presets[preset])
  c.architecture = "causal"
  assert count(blueprint(lambda rngs: build(c, rngs=rngs)).shapes) == parameters


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"lm_head_bias": True}, "'lm_head_bias' is True"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type 'linear' is not supported"),
    ({"rope_scaling": {"type": "longrope", "short_factor": 1.0, "long_factor": [1.0]}}, "'short_factor' is 1.0"),
    ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "1 numbers.*\n.*4"),
    ({"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "lacks 'short_factor'"),
    ({"rope_scaling": {"type": "longrope", "short_mscale": 1.2}}, "no 'short_mscale'"),
  ],
)
def test_what_can_not_be_honoured(wrong, message):
  with pytest.raises(UserError, match=message):
    FAMILY.config(SMALL | wrong)
