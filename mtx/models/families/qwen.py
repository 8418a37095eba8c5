"""Qwen 2, 2.5 (arXiv 2407.10671, 2412.15115): biases of q, k and v. Qwen 3 (2505.09388): norms of q and k instead."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtx.models.config import config
from mtx.models.families import llama
from mtx.models.families.family import Family, Reading
from mtx.models.families.rotary import rotary
from mtx.models.families.windows import windows, write_windows

# What transformers' configs have for missing keys, where that is not what Llama has.
DEFAULTS = {
  "num_key_value_heads": 32,
  "use_sliding_window": False,
  "sliding_window": 4096,
  "max_window_layers": 28,
}


def read_2(hf: Mapping[str, Any]) -> ConfigDict:
  """Our config of a Qwen2Config."""
  get = Reading(DEFAULTS | dict(hf))
  return config(**llama.sizes(get), **rotary(get), **_windows(get), qkv_bias=True)


def read_3(hf: Mapping[str, Any]) -> ConfigDict:
  """Our config of a Qwen3Config."""
  get = Reading(DEFAULTS | {"head_dim": 128} | dict(hf))
  bias = get("attention_bias", False)
  return config(**llama.sizes(get), **rotary(get), **_windows(get), qkv_bias=bias, o_bias=bias, qk_norm=True)


def _windows(get: Reading) -> dict[str, Any]:
  """The first `max_window_layers` layers have no window."""
  window = get.size("sliding_window", 0) if get("use_sliding_window", False) else 0
  full = get.size("max_window_layers", 0)
  return windows(get, window, [i >= full for i in range(get.size("num_hidden_layers"))] if window else [])


def write_2(c: ConfigDict) -> dict[str, Any]:
  """The Qwen2Config of our config."""
  # `max_window_layers` for versions of transformers that do not know `layer_types`.
  full = (*c.window_layers, 1).index(1) if c.window else c.decoder_layers
  window = {"use_sliding_window": bool(c.window), "max_window_layers": full}
  return llama.write_sizes(c) | window | write_windows(c)


def write_3(c: ConfigDict) -> dict[str, Any]:
  """The Qwen3Config of our config."""
  return write_2(c) | {"attention_bias": c.qkv_bias}


def _sizes(vocabulary: int, d: int, heads: int, kv: int, d_ff: int, layers: int, tied: bool) -> dict[str, Any]:
  return llama.preset(vocabulary, d, heads, kv, d_ff, layers, 1e6) | {"rms_norm_eps": 1e-6, "tie_word_embeddings": tied}


QWEN2 = Family(
  name="qwen2",
  model_types=("qwen2",),
  class_name="Qwen2ForCausalLM",
  architectures=("causal", "prefix"),
  config=read_2,
  names=llama.names,
  hf_config=write_2,
  presets={
    "qwen2_5_0_5b": _sizes(151936, 896, 14, 2, 4864, 24, True),
    "qwen2_5_1_5b": _sizes(151936, 1536, 12, 2, 8960, 28, True),
    "qwen2_5_3b": _sizes(151936, 2048, 16, 2, 11008, 36, True),
    "qwen2_5_7b": _sizes(152064, 3584, 28, 4, 18944, 28, False),
  },
  ignored=llama.FAMILY.ignored,
)
QWEN3 = Family(
  name="qwen3",
  model_types=("qwen3",),
  class_name="Qwen3ForCausalLM",
  architectures=("causal", "prefix"),
  config=read_3,
  names=llama.names,
  hf_config=write_3,
  presets={
    "qwen3_0_6b": _sizes(151936, 1024, 16, 8, 3072, 28, True),
    "qwen3_1_7b": _sizes(151936, 2048, 16, 8, 6144, 28, True),
    "qwen3_4b": _sizes(151936, 2560, 32, 8, 9728, 36, True),
    "qwen3_8b": _sizes(151936, 4096, 32, 8, 12288, 36, False),
    "qwen3_14b": _sizes(151936, 5120, 40, 8, 17408, 40, False),
  },
  ignored=llama.FAMILY.ignored,
)
