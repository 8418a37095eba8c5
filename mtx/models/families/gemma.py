"""Gemma 1 and 2 (arXiv 2403.08295, 2408.00118).

Llama with norms that store scale - 1, embeddings scaled by sqrt(d_model) and a tanh GELU. Gemma 2: norms after the
sublayers too, soft caps, a window in every second layer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mtx.models.config import config
from mtx.models.families import llama
from mtx.models.families.family import Family, Name, Reading, norm
from mtx.models.families.rotary import rotary
from mtx.models.families.windows import windows, write_windows

TANH = "gelu_pytorch_tanh"
# What transformers' configs have for missing keys: the published files leave many out.
ALL = {"head_dim": 256, "tie_word_embeddings": True, "attention_bias": False}
MORE = {"num_attention_heads": 8, "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "sliding_window": 4096}
DEFAULTS_1 = ALL | {"num_key_value_heads": 16, "hidden_act": TANH}
DEFAULTS_2 = ALL | MORE | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "hidden_activation": TANH}


def _sizes(get: Reading, activation: str) -> dict[str, Any]:
  """What all three write alike. "gelu" of the first files of Gemma 1 means the tanh form, as in transformers."""
  get.only("use_bidirectional_attention", False, None)
  bias = get("attention_bias", False)
  return llama.sizes(get) | dict(
    activation=get.choice(activation, {"gelu": "gelu_tanh", TANH: "gelu_tanh"}),
    norm_offset=1.0,
    embedding_scale=get.size("hidden_size") ** 0.5,
    qkv_bias=bias,
    o_bias=bias,
  )


def read_1(hf: Mapping[str, Any]) -> ConfigDict:
  """Our config of a GemmaConfig."""
  get = Reading(DEFAULTS_1 | dict(hf))
  get.only("hidden_activation", None, TANH)
  return config(**_sizes(get, "hidden_act"), **rotary(get))


def read_2(hf: Mapping[str, Any]) -> ConfigDict:
  """Our config of a Gemma2Config."""
  get = Reading(DEFAULTS_2 | dict(hf))
  every_second = [i % 2 == 0 for i in range(get.size("num_hidden_layers"))]
  return config(**deeper(get, every_second), **rotary(get), attention_soft_cap=get("attn_logit_softcapping", 0.0))


def deeper(get: Reading, pattern: Sequence[bool]) -> dict[str, Any]:
  """What Gemma 2 and 3 add; `pattern`: layers with a window, unless the file says which."""
  return _sizes(get, "hidden_activation") | dict(
    placement="both",
    attention_scale=get.size("query_pre_attn_scalar") ** -0.5,
    logit_soft_cap=get("final_logit_softcapping", 0.0),
    **windows(get, get.size("sliding_window", 0), pattern),
  )


def names(c: ConfigDict) -> list[Name]:
  """Names in GemmaForCausalLM, Gemma2ForCausalLM and Gemma3ForCausalLM."""
  found = llama.names(c)
  if c.placement != "both":
    return found
  norms = {"self_after": "post_attention", "mlp_norm": "pre_feedforward", "mlp_after": "post_feedforward"}
  found = [name for name in found if name.ours != "decoder/layers/mlp_norm/scale"]
  for ours, theirs in norms.items():
    found += norm(f"decoder/layers/{ours}", f"model.layers.{{layer}}.{theirs}_layernorm")
  return found


def write_1(c: ConfigDict) -> dict[str, Any]:
  """The GemmaConfig of our config."""
  return llama.write_sizes(c) | {"hidden_act": TANH, "hidden_activation": TANH, "attention_bias": c.qkv_bias}


def write_2(c: ConfigDict) -> dict[str, Any]:
  """The Gemma2Config of our config."""
  more = {
    "query_pre_attn_scalar": round(c.attention_scale**-2),
    "attn_logit_softcapping": c.attention_soft_cap or None,
    "final_logit_softcapping": c.logit_soft_cap or None,
  }
  return write_1(c) | more | write_windows(c)


def preset(
  vocabulary: int, d: int, heads: int, kv: int, d_ff: int, layers: int, theta: float = 1e4, **more: Any
) -> dict[str, Any]:
  """A config.json of published sizes."""
  return llama.preset(vocabulary, d, heads, kv, d_ff, layers, theta) | {"rms_norm_eps": 1e-6} | more


GEMMA = Family(
  name="gemma",
  model_types=("gemma",),
  class_name="GemmaForCausalLM",
  architectures=("causal", "prefix"),
  config=read_1,
  names=names,
  hf_config=write_1,
  presets={
    "gemma_2b": preset(256000, 2048, 8, 1, 16384, 18),
    "gemma_7b": preset(256000, 3072, 16, 16, 24576, 28),
  },
  ignored=llama.FAMILY.ignored,
)
GEMMA2 = Family(
  name="gemma2",
  model_types=("gemma2",),
  class_name="Gemma2ForCausalLM",
  architectures=("causal", "prefix"),
  config=read_2,
  names=names,
  hf_config=write_2,
  presets={
    "gemma2_2b": preset(256000, 2304, 8, 4, 9216, 26),
    "gemma2_9b": preset(256000, 3584, 16, 8, 14336, 42),
    "gemma2_27b": preset(256000, 4608, 32, 16, 36864, 46, head_dim=128, query_pre_attn_scalar=144),
  },
  ignored=llama.FAMILY.ignored,
)
