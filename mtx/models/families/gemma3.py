"""Gemma 3, the text model (arXiv 2503.19786): Gemma 2 with norms of q and k instead of the cap on scores, and a window
in five of six layers, which have a rotation of their own."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtx.errors import UserError
from mtx.models.config import config
from mtx.models.families import gemma, llama
from mtx.models.families.family import Family, Reading
from mtx.models.families.rotary import scaled, written

# What transformers' Gemma3TextConfig has for missing keys: the published files leave many out.
DEFAULTS = gemma.ALL | gemma.MORE | {"vocab_size": 262208, "sliding_window_pattern": 6, "hidden_activation": gemma.TANH}
SCALINGS = ("linear", "llama3", "yarn")


def read(hf: Mapping[str, Any]) -> ConfigDict:
  """Our config of a Gemma3TextConfig, or of the text part of a Gemma3Config."""
  text = hf.get("text_config")
  if text is not None:
    if not isinstance(text, Mapping):
      raise UserError(f"config.json: 'text_config' is {text!r}.", hint="expected an object")
    hf = {"tie_word_embeddings": hf.get("tie_word_embeddings"), **text}
  hf = {key: value for key, value in hf.items() if key != "tie_word_embeddings" or value is not None}
  get = Reading(DEFAULTS | hf)
  get.only("attn_logit_softcapping", None)
  period = get.size("sliding_window_pattern")
  local = [(i + 1) % period != 0 for i in range(get.size("num_hidden_layers"))]
  return config(**gemma.deeper(get, local), **_rotations(get), qk_norm=True)


def _rotations(get: Reading) -> dict[str, Any]:
  """One rotation for all layers, another for those with a window: `rope_parameters` by kind of layer (transformers 5),
  or `rope_theta` and `rope_scaling`, and `rope_local_base_freq`."""
  nested = get("rope_parameters", {})
  far, near = ({} if part is None else part for part in map(nested.get, ("full_attention", "sliding_attention")))
  far = {**far, **get("rope_scaling", {})}
  local = scaled(get, near, get("rope_local_base_freq", 1e4), kinds=())
  return scaled(get, far, get("rope_theta", 1e6), kinds=SCALINGS) | {"rope_local_theta": local["rope_theta"]}


def write(c: ConfigDict) -> dict[str, Any]:
  """The Gemma3TextConfig of our config."""
  near = {"rope_theta": c.rope_local_theta, "rope_type": "default"}
  rope = {"full_attention": written(c), "sliding_attention": near}
  # A model that came with a part for images goes without it: its config.json says so in the place of what it said.
  alone = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "text_config": None,
    "vision_config": None,
  }
  return gemma.write_2(c) | {"rope_parameters": rope, "rope_local_base_freq": c.rope_local_theta} | alone


_FAR = {"sliding_window": 1024, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
FAMILY = Family(
  name="gemma3",
  model_types=("gemma3_text", "gemma3"),
  class_name="Gemma3ForCausalLM",
  architectures=("causal", "prefix"),
  config=read,
  names=gemma.names,
  hf_config=write,
  presets={
    "gemma3_270m": gemma.preset(262144, 640, 4, 1, 2048, 18, 1e6, sliding_window=512),
    "gemma3_1b": gemma.preset(262144, 1152, 4, 1, 6912, 26, 1e6, sliding_window=512),
    "gemma3_4b": gemma.preset(262208, 2560, 8, 4, 10240, 34, 1e6, **_FAR),
    "gemma3_12b": gemma.preset(262208, 3840, 16, 8, 15360, 48, 1e6, **_FAR),
    "gemma3_27b": gemma.preset(262208, 5376, 32, 16, 21504, 62, 1e6, head_dim=128, query_pre_attn_scalar=168, **_FAR),
  },
  # Sizes over 1B are published with a part for images, in two spellings; it is left out.
  ignored=(*llama.FAMILY.ignored, r"(model\.)?(vision_tower|multi_modal_projector)\..*"),
  aliases=(
    (r"^(language_model\.model|model\.language_model)\.", "model."),
    (r"^language_model\.lm_head\.", "lm_head."),
  ),
)
