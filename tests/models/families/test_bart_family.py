"""BART equals transformers' from the same weights."""

import numpy as np
import pytest
from parity import Pair, check_greedy, check_logits_and_gradients, check_names, check_round_trip

from mtx.errors import UserError
from mtx.models.build import build
from mtx.models.families.bart import FAMILY
from mtx.models.families.known import family_of
from mtx.training.parameters import blueprint, count

SMALL = dict(
  vocab_size=61,
  d_model=24,
  encoder_layers=3,
  decoder_layers=2,
  encoder_attention_heads=4,
  decoder_attention_heads=4,
  encoder_ffn_dim=28,
  decoder_ffn_dim=28,
  max_position_embeddings=40,
  dropout=0.0,
)
VARIANTS = {
  "bart": {},
  "scaled embedding, relu": dict(scale_embedding=True, activation_function="relu", decoder_start_token_id=3),
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  config = transformers.BartConfig(**SMALL | VARIANTS[request.param])
  return Pair(FAMILY, config, matrix=0.7, table=0.2, position=5.0, bias=0.1)


def test_names(pair):
  check_names(pair)


def test_one_table_is_stored_four_times(pair):
  """The tensors that are left out of the names are the embedding."""
  table = pair.state["model.shared.weight"]
  for name in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"):
    np.testing.assert_array_equal(pair.state[name], table)
  assert np.abs(pair.state["final_logits_bias"]).min() > 0


def test_round_trip(pair):
  check_round_trip(pair)


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_gradients(pair, side):
  named = ["head/embedding/table", "head/entry/norm/bias", "head/encoder_entry/position_table"]
  named += ["encoder/layers/self_attention/q/kernel", "encoder/layers/mlp/wi_0/bias", "encoder/layers/mlp_norm/scale"]
  named += ["decoder/layers/cross_attention/k/kernel", "decoder/layers/cross_norm/bias"]
  check_logits_and_gradients(pair, named, side)


@pytest.mark.parametrize("side", ["right", "left"])
def test_greedy(pair, side):
  check_greedy(pair, side)


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"decoder_attention_heads": 3}, "'encoder_attention_heads' is 4 and 'decoder_attention_heads' 3"),
    ({"encoder_ffn_dim": 32}, "'encoder_ffn_dim' is 32 and 'decoder_ffn_dim' 28"),
    ({"normalize_before": True}, "'normalize_before' is True"),
    ({"static_position_embeddings": True}, "'static_position_embeddings' is True"),
    ({"add_final_layer_norm": True}, "'add_final_layer_norm' is True"),
    ({"d_model": 26}, "'d_model' is 26, which 'encoder_attention_heads', 4, does not divide"),
    ({"model_type": "mbart"}, "'mbart' is not supported.*\n.*bart"),
  ],
)
def test_what_can_not_be_honoured(wrong, message):
  hf = SMALL | {"model_type": "bart"} | wrong
  with pytest.raises(UserError, match=message):
    family_of(hf).config(hf)


def test_old_names():
  """bart-base is stored without `model.`; what has it, and what both have not, stays."""
  assert FAMILY.spelled("encoder.layers.0.fc1.weight") == "model.encoder.layers.0.fc1.weight"
  assert FAMILY.spelled("shared.weight") == "model.shared.weight"
  for name in ("model.decoder.layers.0.fc1.weight", "final_logits_bias", "lm_head.weight"):
    assert FAMILY.spelled(name) == name


@pytest.mark.parametrize(
  ("preset", "parameters"),  # of transformers' models, in which the head's bias is a buffer
  [("bart_base", 139420416), ("bart_large", 406291456)],
)
def test_published_sizes(preset, parameters):
  config = FAMILY.config(FAMILY.presets[preset])
  config.architecture = "encdec"
  shapes = blueprint(lambda rngs: build(config, rngs=rngs)).shapes
  assert count(shapes) - shapes["head/bias"].size == parameters
