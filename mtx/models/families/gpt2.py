"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners") and DistilGPT2."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtx.models.config import config
from mtx.models.families.family import ACTIVATIONS, Family, Name, Reading, activation_name, linear, norm, same


def read(hf: Mapping[str, Any]) -> ConfigDict:
  """Our config of a GPT2Config."""
  get = Reading(hf)
  get.only("scale_attn_weights", True)
  get.only("scale_attn_by_inverse_layer_idx", False)
  get.only("add_cross_attention", False)
  d_model = get.size("n_embd")
  d_kv = get.head_size("n_embd", "n_head")
  return config(
    vocab_size=get.size("vocab_size"),
    d_model=d_model,
    heads=get.size("n_head"),
    d_kv=d_kv,
    d_ff=get.size("n_inner", 4 * d_model),
    decoder_layers=get.size("n_layer"),
    norm="layer",
    norm_epsilon=get("layer_norm_epsilon", 1e-5),
    absolute_positions=get.size("n_positions", 1024),
    attention_scale=d_kv**-0.5,
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    gated=False,
    activation=get.choice("activation_function", ACTIVATIONS, "gelu_new"),
    tied_head=get("tie_word_embeddings", True),
    embedding_std=get("initializer_range", 0.02),
  )


def names(c: ConfigDict) -> list[Name]:
  """Names in GPT2LMHeadModel. Its Conv1D is [in, out] as our `Dense`; `c_attn` holds q, k and v side by side."""
  layer, ours = "transformer.h.{layer}", "decoder/layers"
  found = [
    same("head/embedding/table", "transformer.wte.weight"),
    same("head/entry/position_table", "transformer.wpe.weight"),
    *norm("decoder/norm", "transformer.ln_f", bias=True),
    *norm(f"{ours}/self_norm", f"{layer}.ln_1", bias=True),
    *norm(f"{ours}/mlp_norm", f"{layer}.ln_2", bias=True),
  ]
  if not c.tied_head:
    found += linear("head/projection", "lm_head")
  d, fused = c.d_model, f"{layer}.attn.c_attn"
  for i, each in enumerate("qkv"):
    part = slice(i * d, (i + 1) * d)
    place = f"{ours}/self_attention/{each}"
    found.append(Name(f"{place}/kernel", f"{fused}.weight", stored=(d, 3 * d), take=(slice(None), part)))
    found.append(Name(f"{place}/bias", f"{fused}.bias", stored=(3 * d,), take=(part,)))
  for place, module in (("self_attention/o", "attn.c_proj"), ("mlp/wi_0", "mlp.c_fc"), ("mlp/wo", "mlp.c_proj")):
    found.append(same(f"{ours}/{place}/kernel", f"{layer}.{module}.weight"))
    found.append(same(f"{ours}/{place}/bias", f"{layer}.{module}.bias"))
  return found


def write(c: ConfigDict) -> dict[str, Any]:
  """The GPT2Config of our config."""
  return {
    "vocab_size": c.vocab_size,
    "n_embd": c.d_model,
    "n_head": c.heads,
    "n_inner": c.d_ff,
    "n_layer": c.decoder_layers,
    "n_positions": c.absolute_positions,
    "layer_norm_epsilon": c.norm_epsilon,
    "activation_function": activation_name(c.activation),
    "tie_word_embeddings": c.tied_head,
    "initializer_range": c.embedding_std,
  }


def _sizes(d: int, heads: int, layers: int) -> dict[str, Any]:
  return {"vocab_size": 50257, "n_positions": 1024, "n_embd": d, "n_head": heads, "n_layer": layers}


FAMILY = Family(
  name="gpt2",
  model_types=("gpt2",),
  class_name="GPT2LMHeadModel",
  architectures=("causal", "prefix"),
  config=read,
  names=names,
  hf_config=write,
  presets={
    "distilgpt2": _sizes(768, 12, 6),
    "gpt2": _sizes(768, 12, 12),
    "gpt2_medium": _sizes(1024, 16, 24),
    "gpt2_large": _sizes(1280, 20, 36),
    "gpt2_xl": _sizes(1600, 25, 48),
  },
  # Causal masks, and the head where it is tied.
  ignored=(r".*\.attn\.(bias|masked_bias)", r"lm_head\.weight"),
  # OpenAI's own four are stored as GPT2Model, without a head.
  aliases=((r"^(?=(wte|wpe|h|ln_f)\.)", "transformer."),),
)
