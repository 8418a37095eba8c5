"""Llama 2 and 3 equal transformers' from the same weights."""

import pytest
from parity import Pair, check_greedy, check_logits_and_gradients, check_names, check_round_trip
from prefix import check_prefix

from mtx.errors import UserError
from mtx.models.build import build
from mtx.models.families.known import family_of
from mtx.models.families.llama import FAMILY
from mtx.training.parameters import blueprint, count

SMALL = dict(
  vocab_size=61,
  hidden_size=24,
  intermediate_size=28,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=10,
  max_position_embeddings=64,
  rms_norm_eps=1e-5,
)
LLAMA3 = dict(
  rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
)
VARIANTS = {
  "llama 2": dict(rope_parameters={"rope_type": "default", "rope_theta": 1e4}, num_key_value_heads=4),
  "llama 3.1": dict(rope_parameters=LLAMA3 | {"rope_theta": 5e5}, tie_word_embeddings=True),
  "linear": dict(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  return Pair(FAMILY, transformers.LlamaConfig(**SMALL | VARIANTS[request.param]))


def test_names(pair):
  check_names(pair)


def test_round_trip(pair):
  check_round_trip(pair)


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_gradients(pair, side):
  named = ["head/embedding/table", "decoder/layers/self_attention/k/kernel", "decoder/layers/mlp_norm/scale"]
  check_logits_and_gradients(pair, named, side)


@pytest.mark.parametrize("side", ["right", "left"])
def test_greedy(pair, side):
  check_greedy(pair, side)


def test_prefix(pair):
  check_prefix(pair)


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"model_type": "lama"}, "'lama' is not supported.*\n.*llama"),
    ({"hidden_act": "silo"}, "'hidden_act' is 'silo'.*\n.*silu"),
    ({"attention_bias": True}, "'attention_bias' is True"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
    ({"hidden_size": -1}, "'hidden_size' is -1"),
    ({"hidden_size": None}, "lacks 'hidden_size'"),
  ],
)
def test_what_can_not_be_honoured(wrong, message):
  hf = SMALL | {"model_type": "llama"} | wrong
  with pytest.raises(UserError, match=message):
    family_of(hf).config(hf)


@pytest.mark.parametrize(
  ("preset", "parameters"),  # of the published files
  [
    ("llama2_7b", 6_738_415_616),
    ("llama2_13b", 13_015_864_320),
    ("llama3_1_8b", 8_030_261_248),
    ("llama3_2_1b", 1_235_814_400),
    ("llama3_2_3b", 3_212_749_824),
  ],
)
def test_published_sizes(preset, parameters):
  config = FAMILY.config(FAMILY.presets[preset])
  config.architecture = "causal"
  assert count(blueprint(lambda rngs: build(config, rngs=rngs)).shapes) == parameters
