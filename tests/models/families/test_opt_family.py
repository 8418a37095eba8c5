"""OPT equals transformers' from the same weights, with norms before its sublayers and after them."""

import pytest
from parity import Pair, check_greedy, check_logits_and_gradients, check_names, check_round_trip
from prefix import check_prefix

from mtx.errors import UserError
from mtx.models.build import build
from mtx.models.families.known import family_of
from mtx.models.families.opt import FAMILY
from mtx.training.parameters import blueprint, count

SMALL = dict(
  vocab_size=61,
  hidden_size=24,
  ffn_dim=28,
  num_hidden_layers=3,
  num_attention_heads=4,
  max_position_embeddings=64,
  dropout=0.0,
)
VARIANTS = {
  "before": {},
  "after": dict(do_layer_norm_before=False),
  "no last norm, no biases, untied": dict(_remove_final_layer_norm=True, enable_bias=False, tie_word_embeddings=False),
  "gelu": dict(activation_function="gelu"),
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  config = transformers.OPTConfig(**SMALL | VARIANTS[request.param])
  return Pair(FAMILY, config, matrix=2.5, position=5.0, bias=0.1)


def test_names(pair):
  check_names(pair)


def test_round_trip(pair):
  check_round_trip(pair)


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_gradients(pair, side):
  layers = ["self_attention/k/kernel", "self_norm/scale", "mlp_norm/bias", "mlp/wi_0/kernel"]
  named = ["head/embedding/table", "head/entry/position_table"]
  check_logits_and_gradients(pair, named + [f"decoder/layers/{name}" for name in layers], side)


@pytest.mark.parametrize("side", ["right", "left"])
def test_greedy(pair, side):
  check_greedy(pair, side)


def test_prefix(pair):
  check_prefix(pair)


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"word_embed_proj_dim": 12}, "'word_embed_proj_dim' is 12 and 'hidden_size' 24.*\n.*opt-125m"),
    ({"layer_norm_elementwise_affine": False}, "'layer_norm_elementwise_affine' is False"),
    ({"do_layer_norm_before": 1}, "'do_layer_norm_before' is 1"),
    ({"hidden_size": 26}, "'hidden_size' is 26, which 'num_attention_heads', 4, does not divide"),
    ({"activation_function": "rel"}, "'activation_function' is 'rel'.*\n.*relu"),
  ],
)
def test_what_can_not_be_honoured(wrong, message):
  hf = SMALL | {"model_type": "opt"} | wrong
  with pytest.raises(UserError, match=message):
    family_of(hf).config(hf)


@pytest.mark.parametrize(
  ("preset", "parameters"),
  [("opt_125m", 125239296), ("opt_1_3b", 1315758080)],  # of transformers' models
)
def test_published_sizes(preset, parameters):
  config = FAMILY.config(FAMILY.presets[preset])
  config.architecture = "causal"
  assert count(blueprint(lambda rngs: build(config, rngs=rngs)).shapes) == parameters
