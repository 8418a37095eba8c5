"""T5 1.0, T5 1.1 and its followers equal transformers' from the same weights."""

import pytest
from parity import Pair, check_greedy, check_logits_and_gradients, check_names, check_round_trip

from mtx.errors import UserError
from mtx.models.build import build
from mtx.models.families.t5 import FAMILY
from mtx.training.parameters import blueprint, count

SMALL = dict(
  vocab_size=61,
  d_model=20,
  d_kv=6,
  num_heads=4,
  d_ff=28,
  num_layers=3,
  num_decoder_layers=2,
  relative_attention_num_buckets=8,
  relative_attention_max_distance=12,
  decoder_start_token_id=0,
  dropout_rate=0.0,
)
VARIANTS = {
  "t5 1.0": dict(feed_forward_proj="relu", tie_word_embeddings=True),
  "t5 1.1, flan, byt5": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
  "mt5": dict(model_type="mt5", feed_forward_proj="gated-gelu", tie_word_embeddings=False),
  "ul2": dict(feed_forward_proj="gated-silu", tie_word_embeddings=False),
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  settings = dict(VARIANTS[request.param])
  make = {"t5": transformers.T5Config, "mt5": transformers.MT5Config}[settings.pop("model_type", "t5")]
  return Pair(FAMILY, make(**SMALL, **settings), untied=not settings["tie_word_embeddings"])


def test_names(pair):
  check_names(pair)


def test_round_trip(pair):
  check_round_trip(pair)


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_gradients(pair, side):
  named = ["encoder/layers/self_attention/q/kernel", "decoder/layers/cross_attention/v/kernel"]
  check_logits_and_gradients(pair, [*named, "decoder/relative_bias/table", "decoder/layers/mlp/wi_0/kernel"], side)


@pytest.mark.parametrize("side", ["right", "left"])
def test_greedy(pair, side):
  check_greedy(pair, side)


def test_unknown_feed_forward():
  with pytest.raises(UserError, match=r"'feed_forward_proj' is 'gated-gel'.*\n.*gated-gelu"):
    FAMILY.config(SMALL | {"feed_forward_proj": "gated-gel"})


@pytest.mark.parametrize(
  ("preset", "parameters"),  # of transformers' models
  [
    ("t5_1_0_small", 60_506_624),
    ("t5_1_0_base", 222_903_552),
    ("flan_t5_small", 76_961_152),
    ("flan_t5_base", 247_577_856),
    ("flan_t5_xxl", 11_135_332_352),
    ("mt5_small", 300_176_768),
    ("mt5_base", 582_401_280),
    ("byt5_small", 299_637_760),
    ("byt5_base", 581_653_248),
  ],
)
def test_published_sizes(preset, parameters):
  config = FAMILY.config(FAMILY.presets[preset])
  config.architecture = "encdec"
  assert count(blueprint(lambda rngs: build(config, rngs=rngs)).shapes) == parameters
