"""Phi-3, 3.5, 4 and 4-mini (arXiv 2404.14219, 2412.08905, 2503.01743): Llama with q, k and v in one matrix, and the
MLP's two inward ones in another."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtx.errors import UserError
from mtx.models.config import config, kv_heads
from mtx.models.families import llama
from mtx.models.families.family import Family, Name, Reading
from mtx.models.families.rotary import rotary

# What transformers' Phi3Config has for missing keys, where that is not what Llama has.
DEFAULTS = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096}


def read(hf: Mapping[str, Any]) -> ConfigDict:
  """Our config of a Phi3Config."""
  get = Reading(DEFAULTS | dict(hf))
  for bias in ("attention_bias", "mlp_bias", "lm_head_bias"):  # in published files, and nothing reads them
    get.only(bias, False)
  made = config(
    **llama.sizes(get), **rotary(get, kinds=("longrope",), partial=True), window=get.size("sliding_window", 0)
  )
  pairs = int(made.d_kv * made.rope_fraction) // 2
  for name in ("short", "long") if made.rope_scaling else ():
    if len(made.rope_scaling[name]) != pairs:
      raise UserError(
        f"config.json: '{name}_factor' has {len(made.rope_scaling[name])} numbers.", hint=f"expected {pairs}"
      )
  return made


def names(c: ConfigDict) -> list[Name]:
  """Names in Phi3ForCausalLM."""
  layer = "model.layers.{layer}"
  own, shared = c.heads * c.d_kv, kv_heads(c) * c.d_kv
  ends = {"q": (0, own), "k": (own, own + shared), "v": (own + shared, own + 2 * shared)}
  fused = {f"self_attention/{each}": ("self_attn.qkv_proj", own + 2 * shared, end) for each, end in ends.items()}
  fused["mlp/wi_0"] = ("mlp.gate_up_proj", 2 * c.d_ff, (0, c.d_ff))
  fused["mlp/wi_1"] = ("mlp.gate_up_proj", 2 * c.d_ff, (c.d_ff, 2 * c.d_ff))
  parts = [
    Name(
      f"decoder/layers/{ours}/kernel",
      f"{layer}.{theirs}.weight",
      order=(1, 0),
      stored=(rows, c.d_model),
      take=(slice(*ends),),
    )
    for ours, (theirs, rows, ends) in fused.items()
  ]
  replaced = {part.ours for part in parts}
  return [name for name in llama.names(c) if name.ours not in replaced] + parts


def write(c: ConfigDict) -> dict[str, Any]:
  """The Phi3Config of our config."""
  longest = {} if c.rope_scaling is None else {"original_max_position_embeddings": c.rope_scaling.longest}
  return llama.write_sizes(c) | {"sliding_window": c.window or None} | longest


FAMILY = Family(
  name="phi3",
  model_types=("phi3",),
  class_name="Phi3ForCausalLM",
  architectures=("causal", "prefix"),
  config=read,
  names=names,
  hf_config=write,
  presets={
    "phi3_mini_4k": llama.preset(32064, 3072, 32, 32, 8192, 32, 1e4) | {"sliding_window": 2047},
    "phi4": llama.preset(100352, 5120, 40, 10, 17920, 40, 2.5e5),
  },
  ignored=llama.FAMILY.ignored,
)
