"""OPT (Zhang et al. 2022, arXiv 2205.01068), 125M to 66B. Not 350M, whose embeddings are narrower than its layers."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtx.errors import UserError
from mtx.models.config import config
from mtx.models.families.family import ACTIVATIONS, Family, Name, Reading, activation_name, linear, norm, same


def read(hf: Mapping[str, Any]) -> ConfigDict:
  """Our config of an OPTConfig."""
  get = Reading(hf)
  get.only("layer_norm_elementwise_affine", True)
  d_model = get.size("hidden_size")
  if get.size("word_embed_proj_dim", d_model) != d_model:
    raise UserError(
      f"config.json: 'word_embed_proj_dim' is {get('word_embed_proj_dim')} and 'hidden_size' {d_model}.",
      hint="mtx projects no embeddings, which of the published sizes only opt-350m does; take opt-125m or opt-1.3b",
    )
  d_kv = get.head_size("hidden_size", "num_attention_heads")
  before, bias = get("do_layer_norm_before", True), get("enable_bias", True)
  return config(
    vocab_size=get.size("vocab_size"),
    d_model=d_model,
    heads=get.size("num_attention_heads"),
    d_kv=d_kv,
    d_ff=get.size("ffn_dim"),
    decoder_layers=get.size("num_hidden_layers"),
    norm="layer",
    norm_epsilon=1e-5,  # torch's own; no key
    placement="pre" if before else "post",
    final_norm=before and not get("_remove_final_layer_norm", False),
    absolute_positions=get.size("max_position_embeddings", 2048),
    position_offset=2,
    attention_scale=d_kv**-0.5,
    qkv_bias=bias,
    o_bias=bias,
    mlp_bias=bias,
    gated=False,
    activation=get.choice("activation_function", ACTIVATIONS, "relu"),
    tied_head=get("tie_word_embeddings", True),
    embedding_std=get("init_std", 0.02),
  )


def names(c: ConfigDict) -> list[Name]:
  """Names in OPTForCausalLM."""
  layer, ours = "model.decoder.layers.{layer}", "decoder/layers"
  found = [
    same("head/embedding/table", "model.decoder.embed_tokens.weight"),
    same("head/entry/position_table", "model.decoder.embed_positions.weight"),
    *norm(f"{ours}/self_norm", f"{layer}.self_attn_layer_norm", bias=True),
    *norm(f"{ours}/mlp_norm", f"{layer}.final_layer_norm", bias=True),
  ]
  if c.final_norm:
    found += norm("decoder/norm", "model.decoder.final_layer_norm", bias=True)
  if not c.tied_head:
    found += linear("head/projection", "lm_head")
  for each, module in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("o", "out_proj")):
    found += linear(f"{ours}/self_attention/{each}", f"{layer}.self_attn.{module}", bias=c.qkv_bias)
  for each, module in (("wi_0", "fc1"), ("wo", "fc2")):
    found += linear(f"{ours}/mlp/{each}", f"{layer}.{module}", bias=c.mlp_bias)
  return found


def write(c: ConfigDict) -> dict[str, Any]:
  """The OPTConfig of our config."""
  before = c.placement == "pre"
  return {
    "vocab_size": c.vocab_size,
    "hidden_size": c.d_model,
    "word_embed_proj_dim": c.d_model,
    "num_attention_heads": c.heads,
    "ffn_dim": c.d_ff,
    "num_hidden_layers": c.decoder_layers,
    "max_position_embeddings": c.absolute_positions,
    "do_layer_norm_before": before,
    "_remove_final_layer_norm": before and not c.final_norm,
    "enable_bias": c.mlp_bias,
    "activation_function": activation_name(c.activation),
    "tie_word_embeddings": c.tied_head,
    "init_std": c.embedding_std,
  }


def _sizes(d: int, heads: int, layers: int) -> dict[str, Any]:
  sizes = {"hidden_size": d, "num_attention_heads": heads, "ffn_dim": 4 * d, "num_hidden_layers": layers}
  return {"vocab_size": 50272, "max_position_embeddings": 2048} | sizes


FAMILY = Family(
  name="opt",
  model_types=("opt",),
  class_name="OPTForCausalLM",
  architectures=("causal", "prefix"),
  config=read,
  names=names,
  hf_config=write,
  presets={
    "opt_125m": _sizes(768, 12, 12),
    "opt_1_3b": _sizes(2048, 32, 24),
    "opt_2_7b": _sizes(2560, 32, 32),
    "opt_6_7b": _sizes(4096, 32, 32),
    "opt_13b": _sizes(5120, 40, 40),
    "opt_30b": _sizes(7168, 56, 48),
    "opt_66b": _sizes(9216, 72, 64),
  },
  ignored=(r"lm_head\.weight", r"model\.decoder\.version"),
  aliases=((r"^(?=decoder\.)", "model."),),  # of an OPTModel
)
