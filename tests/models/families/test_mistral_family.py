"""Mistral equals transformers' from the same weights, with a window that is smaller than the rows."""

import pytest
from matters import check_matters
from parity import Pair, check_greedy, check_logits_and_gradients, check_names, check_round_trip
from prefix import check_prefix

from mtx.errors import UserError
from mtx.models.build import build
from mtx.models.families.mistral import FAMILY
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
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
VARIANTS = {
  "window": dict(sliding_window=4, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
  "no window, yarn": dict(sliding_window=None, rope_parameters=YARN, tie_word_embeddings=True),
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  return Pair(FAMILY, transformers.MistralConfig(**SMALL | VARIANTS[request.param]))


def test_names(pair):
  check_names(pair)


def test_round_trip(pair):
  check_round_trip(pair)


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_gradients(pair, side):
  layers = ["self_attention/k/kernel", "self_attention/o/kernel", "mlp/wi_1/kernel", "self_norm/scale"]
  check_logits_and_gradients(pair, ["head/embedding/table"] + [f"decoder/layers/{name}" for name in layers], side)


@pytest.mark.parametrize("side", ["right", "left"])
def test_greedy(pair, side):
  check_greedy(pair, side)


def test_prefix(pair):
  check_prefix(pair)


def test_window_and_scaling_matter(pair):
  if pair.config.window:
    check_matters(pair, window=0)
  else:
    scaling = pair.config.rope_scaling.to_dict()
    check_matters(pair, rope_scaling=None)
    check_matters(pair, rope_scaling=scaling | {"magnitude": 1.0})


def test_missing_keys_mean_what_they_mean_in_transformers():
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  sizes = {k: SMALL[k] for k in NEEDED} | {"num_attention_heads": 8}
  assert FAMILY.config(sizes).to_dict() == FAMILY.config(transformers.MistralConfig(**sizes).to_dict()).to_dict()
  assert FAMILY.config(sizes).window == 4096


NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def test_preset():
  """7,241,732,096 parameters: the card of mistralai/Mistral-7B-v0.1 says 7.24B."""
  c = FAMILY.config(FAMILY.presets["mistral_7b"])
  c.architecture = "causal"
  assert count(blueprint(lambda rngs: build(c, rngs=rngs)).shapes) == 7_241_732_096


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"layer_types": ["full_attention"] * 3}, "'layer_types' is "),
    ({"num_key_value_heads": 3}, "'num_key_value_heads', 3, must divide"),
    ({"head_dim": None, "num_attention_heads": 7, "num_key_value_heads": 7}, "does not divide"),
    ({"sliding_window": -4}, "'sliding_window' is -4"),
    ({"attention_bias": True}, "'attention_bias' is True"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic' is not supported: it changes"),
    ({"rope_scaling": {"type": "yarn", "factor": "4"}}, "'factor' is '4'"),
    ({"rope_scaling": {"type": "yarn"}}, "lacks 'factor'"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0, "mrope_section": [2]}}, "no 'mrope_section'"),
    ({"rope_scaling": "yarn"}, "rotary positions: 'yarn'"),
    ({"partial_rotary_factor": 0.5}, "'partial_rotary_factor' is 0.5"),
  ],
)
def test_what_can_not_be_honoured(wrong, message):
  with pytest.raises(UserError, match=message):
    FAMILY.config(SMALL | wrong)
