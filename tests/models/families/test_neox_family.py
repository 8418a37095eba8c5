"""GPT-NeoX and Pythia equal transformers' from the same weights."""

import pytest
from parity import Pair, check_greedy, check_logits_and_gradients, check_names, check_round_trip
from prefix import check_prefix

from mtx.errors import UserError
from mtx.models.build import build
from mtx.models.families.known import family_of
from mtx.models.families.neox import FAMILY
from mtx.training.parameters import blueprint, count

SMALL = dict(
  vocab_size=61,
  hidden_size=40,
  intermediate_size=28,
  num_hidden_layers=3,
  num_attention_heads=5,
  max_position_embeddings=64,
)
VARIANTS = {
  "parallel": dict(rotary_pct=0.25),
  "sequential": dict(use_parallel_residual=False, rotary_pct=0.5, hidden_act="gelu_fast", rotary_emb_base=1000),
  "all dimensions, no biases, tied": dict(rotary_pct=1.0, attention_bias=False, tie_word_embeddings=True),
  "stretched": dict(rope_scaling={"rope_type": "linear", "factor": 2.0}, rotary_pct=0.5),
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  config = transformers.GPTNeoXConfig(**SMALL | VARIANTS[request.param])
  return Pair(FAMILY, config, matrix=2.5, bias=0.1)


def test_names(pair):
  check_names(pair)


def test_round_trip(pair):
  check_round_trip(pair)


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_gradients(pair, side):
  layers = ["self_attention/q/kernel", "self_attention/v/kernel", "mlp_norm/scale", "mlp/wi_0/bias"]
  layers += ["self_attention/k/kernel"] + (["self_attention/v/bias"] if pair.config.qkv_bias else [])
  check_logits_and_gradients(pair, ["head/embedding/table"] + [f"decoder/layers/{name}" for name in layers], side)


@pytest.mark.parametrize("side", ["right", "left"])
def test_greedy(pair, side):
  check_greedy(pair, side)


def test_prefix(pair):
  check_prefix(pair)


def test_old_and_new_spelling():
  """What checkpoints say that were published with transformers 4, and what transformers 5 writes, is one config."""
  old = SMALL | {"rotary_pct": 0.5, "rotary_emb_base": 5000, "rope_theta": 5000}
  new = SMALL | {"rope_parameters": {"rope_theta": 5000.0, "rope_type": "default", "partial_rotary_factor": 0.5}}
  assert FAMILY.config(old).to_dict() == FAMILY.config(new).to_dict()
  assert (FAMILY.config(old).rope_fraction, FAMILY.config(old).rope_theta) == (0.5, 5000.0)
  assert FAMILY.config(SMALL).rope_fraction == 0.25


@pytest.mark.parametrize(
  ("wrong", "message"),
  [
    ({"rotary_pct": 0.4}, "turns 3 of the 8 dimensions"),
    ({"hidden_size": 41}, "'hidden_size' is 41, which 'num_attention_heads', 5, does not divide"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
    ({"use_parallel_residual": "yes"}, "'use_parallel_residual' is 'yes'"),
    ({"model_type": "gpt_neo"}, "'gpt_neo' is not supported.*\n.*gpt_neox"),
  ],
)
def test_what_can_not_be_honoured(wrong, message):
  hf = SMALL | {"model_type": "gpt_neox"} | wrong
  with pytest.raises(UserError, match=message):
    family_of(hf).config(hf)


@pytest.mark.parametrize(
  ("preset", "parameters"),
  [  # of the model cards: Pythia's without both tables, GPT-NeoX's with them
    ("pythia_70m", 18915328),
    ("pythia_160m", 85056000),
    ("pythia_410m", 302311424),
    ("pythia_1b", 805736448),
    ("pythia_1_4b", 1208602624),
    ("pythia_2_8b", 2517652480),
    ("pythia_6_9b", 6444163072),
    ("pythia_12b", 11327027200),
    ("gpt_neox_20b", 20554567680 - 2 * 50432 * 6144),
  ],
)
def test_published_sizes(preset, parameters):
  config = FAMILY.config(FAMILY.presets[preset])
  config.architecture = "causal"
  shapes = blueprint(lambda rngs: build(config, rngs=rngs)).shapes
  assert count({path: shape for path, shape in shapes.items() if not path.startswith("head/")}) == parameters
