"""Llama 1 to 3, with scaled rotary positions: arXiv 2302.13971, 2307.09288, 2407.21783."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtx.errors import UserError
from mtx.models.config import config, kv_heads
from mtx.models.families.family import ACTIVATIONS, Family, Name, Reading, activation_name, linear, norm, same
from mtx.models.families.rotary import rotary, write_rotary


def read(hf: Mapping[str, Any]) -> ConfigDict:
  """Our config of a LlamaConfig."""
  get = Reading(hf)
  get.only("attention_bias", False)
  get.only("mlp_bias", False)
  return config(**sizes(get), **rotary(get))


def sizes(get: Reading) -> dict[str, Any]:
  """What Llama, Mistral, Qwen and Phi-3 write alike."""
  heads = get.size("num_attention_heads")
  kv_heads = get.size("num_key_value_heads", 0) or heads
  if heads % kv_heads:
    raise UserError(
      f"config.json: 'num_attention_heads' is {heads}, which 'num_key_value_heads', {kv_heads}, must divide."
    )
  d_kv = get.size("head_dim", 0) or get.head_size("hidden_size", "num_attention_heads")
  return dict(
    vocab_size=get.size("vocab_size"),
    d_model=get.size("hidden_size"),
    heads=heads,
    kv_heads=kv_heads,
    d_kv=d_kv,
    d_ff=get.size("intermediate_size"),
    decoder_layers=get.size("num_hidden_layers"),
    norm_epsilon=get("rms_norm_eps", 1e-6),
    attention_scale=d_kv**-0.5,
    activation=get.choice("hidden_act", ACTIVATIONS, "silu"),
    tied_head=get("tie_word_embeddings", False),
    embedding_std=get("initializer_range", 0.02),
  )


def names(c: ConfigDict) -> list[Name]:
  """Names in LlamaForCausalLM, with biases and norms that only its descendants have."""
  layer = "model.layers.{layer}"
  found = [same("head/embedding/table", "model.embed_tokens.weight"), *norm("decoder/norm", "model.norm")]
  if not c.tied_head:
    found += linear("head/projection", "lm_head")
  for each in "qkvo":
    bias = c.o_bias if each == "o" else c.qkv_bias
    found += linear(f"decoder/layers/self_attention/{each}", f"{layer}.self_attn.{each}_proj", bias=bias)
  for each in "qk" if c.qk_norm else "":
    found += norm(f"decoder/layers/self_attention/{each}_norm", f"{layer}.self_attn.{each}_norm")
  for ours, theirs in (("wi_0", "gate_proj"), ("wi_1", "up_proj"), ("wo", "down_proj")):
    found += linear(f"decoder/layers/mlp/{ours}", f"{layer}.mlp.{theirs}")
  found += norm("decoder/layers/self_norm", f"{layer}.input_layernorm")
  return found + norm("decoder/layers/mlp_norm", f"{layer}.post_attention_layernorm")


def write(c: ConfigDict) -> dict[str, Any]:
  """The LlamaConfig of our config."""
  return write_sizes(c) | {"attention_bias": False, "mlp_bias": False}


def write_sizes(c: ConfigDict) -> dict[str, Any]:
  """The inverse of `sizes` and `rotary`."""
  return {
    "vocab_size": c.vocab_size,
    "hidden_size": c.d_model,
    "num_attention_heads": c.heads,
    "num_key_value_heads": kv_heads(c),
    "head_dim": c.d_kv,
    "intermediate_size": c.d_ff,
    "num_hidden_layers": c.decoder_layers,
    "rms_norm_eps": c.norm_epsilon,
    "hidden_act": activation_name(c.activation),
    "tie_word_embeddings": c.tied_head,
    "initializer_range": c.embedding_std,
    **write_rotary(c),
  }


def preset(vocabulary: int, d: int, heads: int, kv: int, d_ff: int, layers: int, theta: float) -> dict[str, Any]:
  """A config.json of published sizes."""
  names = ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
  numbers = dict(zip(names, (vocabulary, d, heads, kv, d_ff), strict=True))
  return {**numbers, "num_hidden_layers": layers, "rope_theta": theta, "rms_norm_eps": 1e-5}


def _scaled(factor: float) -> dict[str, Any]:
  reach = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
  return {"rope_scaling": {"rope_type": "llama3", "factor": factor, **reach}}


FAMILY = Family(
  name="llama",
  model_types=("llama",),
  class_name="LlamaForCausalLM",
  architectures=("causal", "prefix"),
  config=read,
  names=names,
  hf_config=write,
  presets={
    "llama2_7b": preset(32000, 4096, 32, 32, 11008, 32, 1e4),
    "llama2_13b": preset(32000, 5120, 40, 40, 13824, 40, 1e4),
    "llama3_8b": preset(128256, 4096, 32, 8, 14336, 32, 5e5),
    "llama3_1_8b": preset(128256, 4096, 32, 8, 14336, 32, 5e5) | _scaled(8.0),
    "llama3_2_1b": preset(128256, 2048, 32, 8, 8192, 16, 5e5) | _scaled(32.0) | {"tie_word_embeddings": True},
    "llama3_2_3b": preset(128256, 3072, 24, 8, 8192, 28, 5e5) | _scaled(32.0) | {"tie_word_embeddings": True},
  },
  ignored=(r".*rotary_emb\.inv_freq", r"lm_head\.weight"),
)
