"""Mistral 7B and its likes: Llama with a sliding window in every layer (arXiv 2310.06825)."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtx.models.config import config
from mtx.models.families import llama
from mtx.models.families.family import Family, Reading
from mtx.models.families.rotary import rotary

# What transformers' MistralConfig has for missing keys, where that is not what Llama has.
DEFAULTS = {"num_key_value_heads": 8, "sliding_window": 4096}


def read(hf: Mapping[str, Any]) -> ConfigDict:
  """Our config of a MistralConfig."""
  get = Reading(DEFAULTS | dict(hf))
  get.only("layer_types", None)  # windows in some layers: Ministral, which has a model_type of its own
  get.only("attention_bias", False)
  get.only("mlp_bias", False)
  return config(**llama.sizes(get), **rotary(get), window=get.size("sliding_window", 0))


def write(c: ConfigDict) -> dict[str, Any]:
  """The MistralConfig of our config."""
  return llama.write_sizes(c) | {"sliding_window": c.window or None}


def _7b(vocabulary: int, theta: float, window: int | None) -> dict[str, Any]:
  sizes = llama.preset(vocabulary, 4096, 32, 8, 14336, 32, theta)
  return sizes | {"rms_norm_eps": 1e-5, "sliding_window": window}


FAMILY = Family(
  name="mistral",
  model_types=("mistral",),
  class_name="MistralForCausalLM",
  architectures=("causal", "prefix"),
  config=read,
  names=llama.names,
  hf_config=write,
  presets={
    "mistral_7b": _7b(32000, 1e4, 4096),
    "mistral_7b_v0_3": _7b(32768, 1e6, None),
  },
  ignored=llama.FAMILY.ignored,
)
