"""GPT-2 equals transformers' from the same weights."""

import pytest
from parity import Pair, check_greedy, check_logits_and_gradients, check_names, check_round_trip
from prefix import check_prefix

from mtx.errors import UserError
from mtx.models.build import build
from mtx.models.families.gpt2 import FAMILY
from mtx.models.families.known import family_of
from mtx.training.parameters import blueprint, count

SMALL = dict(vocab_size=61, n_positions=64, n_embd=24, n_head=4, n_layer=3, bos_token_id=1, eos_token_id=1)
VARIANTS = {
  "gpt2": {},
  "relu, narrow, untied": dict(activation_function="relu", n_inner=28, tie_word_embeddings=False),
  "exact gelu": dict(activation_function="gelu", layer_norm_epsilon=1e-3),
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  config = transformers.GPT2Config(**SMALL | VARIANTS[request.param])
  return Pair(FAMILY, config, matrix=2.5, position=5.0, bias=0.1)


def test_names(pair):
  check_names(pair)


def test_round_trip(pair):
  check_round_trip(pair)


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_gradients(pair, side):
  named = ["head/embedding/table", "head/entry/position_table", "decoder/norm/bias"]
  layers = ["self_attention/q/kernel", "self_attention/v/bias", "mlp/wo/kernel"]
  check_logits_and_gradients(pair, named + [f"decoder/layers/{name}" for name in layers], side)


@pytest.mark.parametrize("side", ["right", "left"])
def test_greedy(pair, side):
  check_greedy(pair, side)


def test_prefix(pair):
  check_prefix(pair)


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"scale_attn_by_inverse_layer_idx": True}, "'scale_attn_by_inverse_layer_idx' is True"),
    ({"scale_attn_weights": False}, "'scale_attn_weights' is False"),
    ({"add_cross_attention": True}, "'add_cross_attention' is True"),
    ({"n_head": 5}, "'n_embd' is 24, which 'n_head', 5, does not divide"),
    ({"activation_function": "gelu_ne"}, "'activation_function' is 'gelu_ne'.*\n.*gelu_new"),
    ({"model_type": "gpt3"}, "'gpt3' is not supported.*\n.*gpt2"),
  ],
)
def test_what_can_not_be_honoured(wrong, message):
  hf = SMALL | {"model_type": "gpt2"} | wrong
  with pytest.raises(UserError, match=message):
    family_of(hf).config(hf)


def test_openai_names():
  """OpenAI's own checkpoints have no `transformer.`; a name that has it stays."""
  assert FAMILY.spelled("h.3.attn.c_attn.weight") == "transformer.h.3.attn.c_attn.weight"
  for name in ("transformer.h.3.attn.c_attn.weight", "transformer.wte.weight", "lm_head.weight"):
    assert FAMILY.spelled(name) == name


@pytest.mark.parametrize(
  ("preset", "parameters"),
  # github.com/keras-team/keras-hub, gpt2_presets.py
  [("gpt2", 124439808), ("gpt2_medium", 354823168), ("gpt2_large", 774030080), ("gpt2_xl", 1557611200)],
)
def test_published_sizes(preset, parameters):
  config = FAMILY.config(FAMILY.presets[preset])
  config.architecture = "causal"
  assert count(blueprint(lambda rngs: build(config, rngs=rngs)).shapes) == parameters
