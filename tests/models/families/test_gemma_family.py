"""Gemma 1, 2 and 3 equal transformers' from the same weights, with windows that are smaller than the rows."""

import json
import re

import jax
import numpy as np
import pytest
from matters import check_matters
from parity import Pair, check_greedy, check_logits_and_gradients, check_names, check_round_trip, exported, imported
from prefix import check_prefix

from mtx.errors import UserError
from mtx.models.build import build
from mtx.models.families.gemma import GEMMA, GEMMA2
from mtx.models.families.gemma3 import FAMILY as GEMMA3
from mtx.models.families.known import family_of
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
)
NEEDED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
ROTATIONS = {
  "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
  "sliding_attention": {"rope_type": "default", "rope_theta": 1e2},
}
# Caps of the size of what they cap, or nobody would miss them; scores are not scaled by the head's size.
VARIANTS = {
  "gemma": {},
  "gemma, biases, untied": dict(attention_bias=True, tie_word_embeddings=False),
  "gemma2": dict(sliding_window=4, query_pre_attn_scalar=7, attn_logit_softcapping=1.5, final_logit_softcapping=2.0),
  "gemma3": dict(sliding_window=4, query_pre_attn_scalar=7, sliding_window_pattern=2, rope_parameters=ROTATIONS),
  "gemma3, other layers": dict(
    sliding_window=3,
    layer_types=["full_attention", "sliding_attention", "full_attention"],
    final_logit_softcapping=2.0,
    tie_word_embeddings=False,
  ),
}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  made = SMALL | VARIANTS[request.param]
  if request.param.startswith("gemma3"):
    return Pair(GEMMA3, transformers.Gemma3TextConfig(**made))
  if request.param == "gemma2":
    return Pair(GEMMA2, transformers.Gemma2Config(**made))
  return Pair(GEMMA, transformers.GemmaConfig(**made))


def test_names(pair):
  check_names(pair)


def test_round_trip(pair):
  check_round_trip(pair)


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_and_gradients(pair, side):
  layers = ["self_attention/k/kernel", "self_norm/scale", "mlp_norm/scale", "mlp/wi_0/kernel"]
  layers += ["self_after/scale", "mlp_after/scale"] if pair.config.placement == "both" else []
  layers += ["self_attention/q_norm/scale"] if pair.config.qk_norm else []
  check_logits_and_gradients(pair, ["head/embedding/table"] + [f"decoder/layers/{name}" for name in layers], side)


@pytest.mark.parametrize("side", ["right", "left"])
def test_greedy(pair, side):
  check_greedy(pair, side)


def test_prefix(pair):
  check_prefix(pair)


def test_what_is_gemmas_own_matters(pair):
  c = pair.config
  for field in ("window", "attention_soft_cap", "logit_soft_cap", "rope_local_theta"):
    if c[field]:
      check_matters(pair, **{field: type(c[field])(0)})
  check_matters(pair, attention_scale=1.0, embedding_scale=1.0)


def test_the_text_part_of_a_model_with_images(tmp_path):
  """Both spellings of its tensors; the same logits of text; what belongs to images is known, left out, and not said
  to be there when the text part is written."""
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  sizes = dict(hidden_size=12, intermediate_size=14, num_hidden_layers=1, num_attention_heads=2)
  hf = transformers.Gemma3Config(
    text_config=SMALL | VARIANTS["gemma3"],
    vision_config=sizes | dict(model_type="siglip_vision_model", image_size=8, patch_size=4, vision_use_head=False),
    mm_tokens_per_image=4,
    image_token_index=3,
  )
  hf._attn_implementation = "eager"
  torch.manual_seed(0)
  theirs = transformers.Gemma3ForConditionalGeneration(hf).eval()
  with torch.no_grad():
    for parameter in theirs.parameters():
      parameter.normal_(0.0, 0.3)
  config = family_of(hf.to_dict()).config(hf.to_dict())
  config.architecture = "causal"
  model = blueprint(lambda rngs: build(config, rngs=rngs))
  names = GEMMA3.names(config)
  state = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
  # Hugging Face's files of 2025 have the first of these spellings.
  older = {name.replace("model.language_model.", "language_model.model."): name for name in state}
  for spelling in (older, {name: name for name in state}):
    found = {GEMMA3.spelled(name): state[here] for name, here in spelling.items()}
    params = imported(names, model, found)
    left = found.keys() - exported(names, model, params).keys()
    assert not [name for name in left if not any(re.fullmatch(pattern, name) for pattern in GEMMA3.ignored)]
  written = hf.to_dict() | GEMMA3.hf_config(config)
  (tmp_path / "config.json").write_text(json.dumps(written))
  alone = transformers.AutoConfig.from_pretrained(tmp_path)
  assert isinstance(alone, transformers.Gemma3TextConfig)
  again = GEMMA3.config(alone.to_dict()).to_dict()
  assert again == {name: value for name, value in config.to_dict().items() if name != "architecture"}
  tokens = np.random.default_rng(0).integers(5, 61, (2, 9)).astype(np.int32)
  ones = np.ones_like(tokens)
  batch = {"decoder_input_tokens": tokens, "decoder_segment_ids": ones, "task_ids": np.zeros(2, np.int32)}
  batch["decoder_positions"] = np.broadcast_to(np.arange(9, dtype=np.int32), tokens.shape)
  ours = jax.jit(lambda params, batch: model.merge(params)(batch).logits)(params, batch)
  with torch.no_grad():
    wanted = theirs(input_ids=torch.tensor(tokens, dtype=torch.long)).logits.numpy()
  np.testing.assert_allclose(ours, wanted, rtol=0, atol=2e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3_text"])
def test_missing_keys_mean_what_they_mean_in_transformers(kind):
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  family = family_of({"model_type": kind})
  makes = {"gemma": "GemmaConfig", "gemma2": "Gemma2Config", "gemma3_text": "Gemma3TextConfig"}
  sizes = {k: SMALL[k] for k in NEEDED} | {"hidden_size": 48, "num_attention_heads": 16, "num_hidden_layers": 13}
  full = getattr(transformers, makes[kind])(**sizes).to_dict()
  assert family.config(sizes).to_dict() == family.config(full).to_dict()


def test_published_keys_of_gemma_3():
  """What transformers 4 wrote: one theta a kind of layer, and a scaling of the far one alone."""
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  old = SMALL | dict(rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling={"rope_type": "linear", "factor": 8.0})
  config = GEMMA3.config(old)
  assert config.to_dict() == GEMMA3.config(transformers.Gemma3TextConfig(**old).to_dict()).to_dict()
  assert config.rope_scaling.factor == 8.0 and config.rope_local_theta == 1e4


@pytest.mark.parametrize(
  ("family", "preset", "parameters"),
  [
    (GEMMA, "gemma_2b", 2_506_172_416),
    (GEMMA, "gemma_7b", 8_537_680_896),
    (GEMMA2, "gemma2_2b", 2_614_341_888),
    (GEMMA2, "gemma2_9b", 9_241_705_984),
    (GEMMA2, "gemma2_27b", 27_227_128_320),
    (GEMMA3, "gemma3_270m", 268_098_176),
    (GEMMA3, "gemma3_1b", 999_885_952),
  ],
)
def test_presets(family, preset, parameters):
  """As many parameters as the published files have."""
  c = family.config(family.presets[preset])
  c.architecture = "causal"
  assert count(blueprint(lambda rngs: build(c, rngs=rngs)).shapes) == parameters
  if family is GEMMA3:
    assert c.window == 512 and c.window_layers[:7] == (1, 1, 1, 1, 1, 0, 1)
  if family is GEMMA2:
    assert c.window == 4096 and c.window_layers[:3] == (1, 0, 1)


@pytest.mark.parametrize(
  ("kind", "wrong", "message"),
  [
    ("gemma", {"use_bidirectional_attention": True}, "'use_bidirectional_attention' is True"),
    ("gemma", {"hidden_activation": "relu"}, "'hidden_activation' is 'relu'"),
    ("gemma2", {"hidden_activation": "silu"}, "'hidden_activation' is 'silu'"),
    ("gemma2", {"sliding_window": None}, "'sliding_window' is missing"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "'attn_logit_softcapping' is 50.0"),
    ("gemma3_text", {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}}, "'linear'"),
    ("gemma3_text", {"rope_parameters": [1]}, "'rope_parameters' is .1."),
    ("gemma3_text", {"text_config": "gemma3_text"}, "'text_config' is 'gemma3_text'"),
    ("gemma", {"quantization_config": {"bits": 4}}, "'quantization_config'"),
    ("gemma3n", {}, "'gemma3n' is not supported.*\n.*gemma3"),
  ],
)
def test_what_can_not_be_honoured(kind, wrong, message):
  with pytest.raises(UserError, match=message):
    family_of(SMALL | wrong | {"model_type": kind}).config(SMALL | wrong)
