"""GPT-NeoX-20B, Pythia, and others trained with GPT-NeoX: arXiv 2204.06745, 2304.01373."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtx.errors import UserError
from mtx.models.config import config
from mtx.models.families.family import ACTIVATIONS, Family, Name, Reading, activation_name, linear, norm, same
from mtx.models.families.rotary import rotary, write_rotary


def read(hf: Mapping[str, Any]) -> ConfigDict:
  """Our config of a GPTNeoXConfig: of transformers 5, or with `rotary_pct` and `rotary_emb_base`, as published."""
  old = {"rope_theta": hf.get("rotary_emb_base"), "partial_rotary_factor": hf.get("rotary_pct", 0.25)}
  get = Reading(old | dict(hf))
  d_kv, positions = get.head_size("hidden_size", "num_attention_heads"), rotary(get, partial=True)
  turned = int(d_kv * positions.get("rope_fraction", 1.0))
  if turned % 2:
    raise UserError(
      f"config.json: 'rotary_pct' turns {turned} of the {d_kv} dimensions of a head, which are not pairs."
    )
  bias = get("attention_bias", True)
  return config(
    vocab_size=get.size("vocab_size"),
    d_model=get.size("hidden_size"),
    heads=get.size("num_attention_heads"),
    d_kv=d_kv,
    d_ff=get.size("intermediate_size"),
    decoder_layers=get.size("num_hidden_layers"),
    norm="layer",
    norm_epsilon=get("layer_norm_eps", 1e-5),
    parallel=get("use_parallel_residual", True),
    attention_scale=d_kv**-0.5,
    qkv_bias=bias,
    o_bias=bias,
    mlp_bias=True,
    gated=False,
    activation=get.choice("hidden_act", ACTIVATIONS, "gelu"),
    tied_head=get("tie_word_embeddings", False),
    embedding_std=get("initializer_range", 0.02),
    **positions,
  )


def fused(c: ConfigDict, module: str, *, bias: bool) -> list[Name]:
  """q, k and v of a Linear whose rows are [head, (q, k, v), d_kv]: Megatron's order, in GPT-NeoX and BLOOM."""
  found: list[Name] = []
  shape, rows = (c.heads, 3, c.d_kv), c.heads * 3 * c.d_kv
  for i, each in enumerate("qkv"):
    ours, take = f"decoder/layers/self_attention/{each}", (slice(None), i)
    found.append(Name(f"{ours}/kernel", f"{module}.weight", (2, 0, 1), (rows, c.d_model), (*shape, c.d_model), take))
    if bias:
      found.append(Name(f"{ours}/bias", f"{module}.bias", (), (rows,), shape, take))
  return found


def names(c: ConfigDict) -> list[Name]:
  """Names of GPTNeoXForCausalLM in files."""
  layer, ours = "gpt_neox.layers.{layer}", "decoder/layers"
  found = [
    same("head/embedding/table", "gpt_neox.embed_in.weight"),
    *norm("decoder/norm", "gpt_neox.final_layer_norm", bias=True),
    *norm(f"{ours}/self_norm", f"{layer}.input_layernorm", bias=True),
    *norm(f"{ours}/mlp_norm", f"{layer}.post_attention_layernorm", bias=True),
    *fused(c, f"{layer}.attention.query_key_value", bias=c.qkv_bias),
    *linear(f"{ours}/self_attention/o", f"{layer}.attention.dense", bias=c.o_bias),
    *linear(f"{ours}/mlp/wi_0", f"{layer}.mlp.dense_h_to_4h", bias=True),
    *linear(f"{ours}/mlp/wo", f"{layer}.mlp.dense_4h_to_h", bias=True),
  ]
  return found if c.tied_head else [*found, *linear("head/projection", "embed_out")]


def write(c: ConfigDict) -> dict[str, Any]:
  """The GPTNeoXConfig of our config, in both spellings of its rotary positions."""
  return {
    **write_rotary(c),
    "vocab_size": c.vocab_size,
    "hidden_size": c.d_model,
    "num_attention_heads": c.heads,
    "intermediate_size": c.d_ff,
    "num_hidden_layers": c.decoder_layers,
    "layer_norm_eps": c.norm_epsilon,
    "use_parallel_residual": c.parallel,
    "rotary_pct": c.rope_fraction,
    "rotary_emb_base": c.rope_theta,
    "attention_bias": c.qkv_bias,
    "hidden_act": activation_name(c.activation),
    "tie_word_embeddings": c.tied_head,
    "initializer_range": c.embedding_std,
  }


def _sizes(vocabulary: int, d: int, heads: int, layers: int, **more) -> dict[str, Any]:
  sizes = {"hidden_size": d, "num_attention_heads": heads, "intermediate_size": 4 * d, "num_hidden_layers": layers}
  return {"vocab_size": vocabulary, "rotary_pct": 0.25, "rotary_emb_base": 10000, **sizes, **more}


FAMILY = Family(
  name="neox",
  model_types=("gpt_neox",),
  class_name="GPTNeoXForCausalLM",
  architectures=("causal", "prefix"),
  config=read,
  names=names,
  hf_config=write,
  presets={
    # Tables are padded to a multiple of 128 a device (github.com/EleutherAI/pythia, issue 68).
    "pythia_70m": _sizes(50304, 512, 8, 6),
    "pythia_160m": _sizes(50304, 768, 12, 12),
    "pythia_410m": _sizes(50304, 1024, 16, 24),
    "pythia_1b": _sizes(50304, 2048, 8, 16),
    "pythia_1_4b": _sizes(50304, 2048, 16, 24),
    "pythia_2_8b": _sizes(50304, 2560, 32, 32),
    "pythia_6_9b": _sizes(50432, 4096, 32, 32),
    "pythia_12b": _sizes(50688, 5120, 40, 36),
    "gpt_neox_20b": _sizes(50432, 6144, 64, 44, hidden_act="gelu_fast"),
  },
  ignored=(r".*\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)", r"embed_out\.weight"),
  # Transformers 5 says lm_head in memory and embed_out in files.
  head="embed_out.weight",
  aliases=((r"^lm_head\.", "embed_out."), (r"^(?=(embed_in|layers|final_layer_norm)\.)", "gpt_neox.")),
)
