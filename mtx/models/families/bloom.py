"""BLOOM and BLOOMZ (arXiv 2211.05100, 2211.01786): ALiBi and a norm after the embedding."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtx.models.config import config
from mtx.models.families.family import Family, Name, Reading, linear, norm, same
from mtx.models.families.neox import fused

# What the first checkpoints' config.json says instead.
OLD = {"n_embed": "hidden_size", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer"}


def read(hf: Mapping[str, Any]) -> ConfigDict:
  """Our config of a BloomConfig."""
  get = Reading({OLD.get(key, key): value for key, value in hf.items()})
  get.only("apply_residual_connection_post_layernorm", False)
  d_model, d_kv = get.size("hidden_size"), get.head_size("hidden_size", "n_head")
  return config(
    vocab_size=get.size("vocab_size"),
    d_model=d_model,
    heads=get.size("n_head"),
    d_kv=d_kv,
    d_ff=4 * d_model,  # no key
    decoder_layers=get.size("n_layer"),
    norm="layer",
    norm_epsilon=get("layer_norm_epsilon", 1e-5),
    embedding_norm=True,
    alibi=True,
    attention_scale=d_kv**-0.5,
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    gated=False,
    activation="gelu_tanh",
    tied_head=get("tie_word_embeddings", True),
    embedding_std=get("initializer_range", 0.02),
  )


def names(c: ConfigDict) -> list[Name]:
  """Names in BloomForCausalLM."""
  layer, ours = "transformer.h.{layer}", "decoder/layers"
  found = [
    same("head/embedding/table", "transformer.word_embeddings.weight"),
    *norm("head/entry/norm", "transformer.word_embeddings_layernorm", bias=True),
    *norm("decoder/norm", "transformer.ln_f", bias=True),
    *norm(f"{ours}/self_norm", f"{layer}.input_layernorm", bias=True),
    *norm(f"{ours}/mlp_norm", f"{layer}.post_attention_layernorm", bias=True),
    *fused(c, f"{layer}.self_attention.query_key_value", bias=True),
    *linear(f"{ours}/self_attention/o", f"{layer}.self_attention.dense", bias=True),
    *linear(f"{ours}/mlp/wi_0", f"{layer}.mlp.dense_h_to_4h", bias=True),
    *linear(f"{ours}/mlp/wo", f"{layer}.mlp.dense_4h_to_h", bias=True),
  ]
  return found if c.tied_head else [*found, *linear("head/projection", "lm_head")]


def write(c: ConfigDict) -> dict[str, Any]:
  """The BloomConfig of our config."""
  return {
    "vocab_size": c.vocab_size,
    "hidden_size": c.d_model,
    "n_head": c.heads,
    "n_layer": c.decoder_layers,
    "layer_norm_epsilon": c.norm_epsilon,
    "tie_word_embeddings": c.tied_head,
    "initializer_range": c.embedding_std,
    "apply_residual_connection_post_layernorm": False,
  }


def _sizes(d: int, heads: int, layers: int) -> dict[str, Any]:
  return {"vocab_size": 250880, "hidden_size": d, "n_head": heads, "n_layer": layers}


FAMILY = Family(
  name="bloom",
  model_types=("bloom",),
  class_name="BloomForCausalLM",
  architectures=("causal", "prefix"),
  config=read,
  names=names,
  hf_config=write,
  presets={
    "bloom_560m": _sizes(1024, 16, 24),
    "bloom_1b1": _sizes(1536, 16, 24),
    "bloom_1b7": _sizes(2048, 16, 24),
    "bloom_3b": _sizes(2560, 32, 30),
    "bloom_7b1": _sizes(4096, 32, 30),
    "bloom": _sizes(14336, 112, 70),
  },
  ignored=(r"lm_head\.weight",),
  # The published ones are stored as BloomModel, without a head.
  aliases=((r"^(?=(word_embeddings|word_embeddings_layernorm|h|ln_f)\.)", "transformer."),),
)
