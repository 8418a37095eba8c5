"""BLOOM equals transformers' from the same weights, also with a number of heads that is no power of two."""

import pytest
from parity import Pair, check_greedy, check_logits_and_gradients, check_names, check_round_trip
from prefix import check_prefix

from mtx.errors import UserError
from mtx.models.build import build
from mtx.models.families.bloom import FAMILY
from mtx.models.families.known import family_of
from mtx.training.parameters import blueprint, count

SMALL = dict(vocab_size=61, hidden_size=24, n_layer=3, n_head=4)
VARIANTS = {"4 heads": {}, "6 heads, untied": dict(n_head=6, tie_word_embeddings=False), "3 heads": dict(n_head=3)}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  config = transformers.BloomConfig(**SMALL | VARIANTS[request.param])
  return Pair(FAMILY, config, matrix=2.5, bias=0.1)


def test_names(pair):
  check_names(pair)


def test_round_trip(pair):
  check_round_trip(pair)


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_gradients(pair, side):
  layers = ["self_attention/q/kernel", "self_attention/v/bias", "mlp/wo/kernel", "mlp_norm/scale"]
  named = ["head/embedding/table", "head/entry/norm/scale"]
  check_logits_and_gradients(pair, named + [f"decoder/layers/{name}" for name in layers], side)


@pytest.mark.parametrize("side", ["right", "left"])
def test_greedy(pair, side):
  check_greedy(pair, side)


def test_prefix(pair):
  check_prefix(pair)


def test_old_keys():
  """The first checkpoints' config.json has other keys for three sizes."""
  old = {"vocab_size": 61, "n_embed": 24, "num_attention_heads": 4, "n_layer": 3}
  assert FAMILY.config(old).to_dict() == FAMILY.config(SMALL).to_dict()


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"apply_residual_connection_post_layernorm": True}, "'apply_residual_connection_post_layernorm' is True"),
    ({"n_head": 5}, "'hidden_size' is 24, which 'n_head', 5, does not divide"),
    ({"n_layer": None}, "lacks 'n_layer'"),
    ({"model_type": "blom"}, "'blom' is not supported.*\n.*bloom"),
  ],
)
def test_what_can_not_be_honoured(wrong, message):
  hf = SMALL | {"model_type": "bloom"} | wrong
  with pytest.raises(UserError, match=message):
    family_of(hf).config(hf)


@pytest.mark.parametrize(
  ("preset", "parameters"),  # of the model cards
  [("bloom_560m", 559214592), ("bloom_7b1", 7069016064), ("bloom", 176247271424)],
)
def test_published_sizes(preset, parameters):
  config = FAMILY.config(FAMILY.presets[preset])
  config.architecture = "causal"
  assert count(blueprint(lambda rngs: build(config, rngs=rngs)).shapes) == parameters
