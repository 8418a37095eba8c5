"""Qwen 2 and 3 equal transformers' from the same weights, with windows in some layers too."""

import pytest
from matters import check_matters
from parity import Pair, check_greedy, check_logits_and_gradients, check_names, check_round_trip
from prefix import check_prefix

from mtx.errors import UserError
from mtx.models.build import build
from mtx.models.families.known import family_of
from mtx.models.families.qwen import QWEN2, QWEN3
from mtx.training.parameters import blueprint, count

SMALL = dict(
  vocab_size=61,
  hidden_size=24,
  intermediate_size=28,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=2,
  max_position_embeddings=64,
  rope_parameters={"rope_type": "default", "rope_theta": 1e6},
)
NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
WINDOW = dict(use_sliding_window=True, sliding_window=4, max_window_layers=1)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 1e4}
YARN |= {"beta_fast": 8, "beta_slow": 2, "truncate": False, "attention_factor": 1.3}
VARIANTS = {
  "qwen2": dict(tie_word_embeddings=True),
  "qwen2, windows": dict(WINDOW),
  "qwen3": dict(head_dim=10, rope_parameters=YARN),
  "qwen3, windows and biases": dict(WINDOW, head_dim=10, attention_bias=True, tie_word_embeddings=True),
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  made = SMALL | VARIANTS[request.param]
  if request.param.startswith("qwen2"):
    return Pair(QWEN2, transformers.Qwen2Config(**made))
  return Pair(QWEN3, transformers.Qwen3Config(**made))


def test_names(pair):
  check_names(pair)


def test_round_trip(pair):
  check_round_trip(pair)


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_gradients(pair, side):
  own = "k/bias" if pair.config.qkv_bias and not pair.config.qk_norm else "k_norm/scale"
  # A bias of k alone shifts all scores of a query alike, unless it is turned; so its gradient is small, not zero.
  layers = [f"self_attention/{own}", "self_attention/q/kernel", "mlp_norm/scale"]
  layers += ["self_attention/o/bias", "self_attention/v/bias"] if pair.config.o_bias else []
  check_logits_and_gradients(pair, ["head/embedding/table"] + [f"decoder/layers/{name}" for name in layers], side)


@pytest.mark.parametrize("side", ["right", "left"])
def test_greedy(pair, side):
  check_greedy(pair, side)


def test_prefix(pair):
  check_prefix(pair)


def test_windows_matter(pair):
  if not pair.config.window:
    pytest.skip("this variant has none")
  assert pair.config.window_layers == (0, 1, 1)
  check_matters(pair, window=0)
  check_matters(pair, window_layers=())


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_missing_keys_mean_what_they_mean_in_transformers(kind):
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  family = family_of({"model_type": kind})
  sizes = {k: SMALL[k] for k in NEEDED} | {"hidden_size": 96, "num_attention_heads": 32}
  make = {"qwen2": transformers.Qwen2Config, "qwen3": transformers.Qwen3Config}[kind]
  assert family.config(sizes).to_dict() == family.config(make(**sizes).to_dict()).to_dict()


@pytest.mark.parametrize(
  ("family", "preset", "parameters"),
  [
    (QWEN2, "qwen2_5_0_5b", 494_032_768),
    (QWEN2, "qwen2_5_7b", 7_615_616_512),
    (QWEN3, "qwen3_0_6b", 596_049_920),
    (QWEN3, "qwen3_8b", 8_190_735_360),
  ],
)
def test_presets(family, preset, parameters):
  """As many parameters as the published files have: 0.49B, 7.61B, 0.6B and 8.19B."""
  c = family.config(family.presets[preset])
  c.architecture = "causal"
  assert count(blueprint(lambda rngs: build(c, rngs=rngs)).shapes) == parameters


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"layer_types": ["full_attention", "linear_attention", "full_attention"]}, "has 'linear_attention'"),
    ({"layer_types": ["full_attention"]}, "one for each of 3"),
    ({"layer_types": ["sliding_attention"] * 3}, "'sliding_window' is missing or not in use"),
    ({"use_sliding_window": "yes"}, "'use_sliding_window' is 'yes'"),
    ({"rope_scaling": {"type": "longrope"}}, "'longrope' is not supported: only Phi-3"),
  ],
)
def test_what_can_not_be_honoured(wrong, message):
  with pytest.raises(UserError, match=message):
    QWEN2.config(SMALL | wrong)
