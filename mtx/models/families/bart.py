"""BART (Lewis et al. 2020, arXiv 1910.13461): a norm after every sublayer, learned positions, biases everywhere."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtx.errors import UserError
from mtx.models.config import config
from mtx.models.families.family import ACTIVATIONS, Family, Name, Reading, activation_name, linear, norm, same


def read(hf: Mapping[str, Any]) -> ConfigDict:
  """Our config of a BartConfig."""
  get = Reading(hf)
  # Keys of the first checkpoints, from when BART, mBART and Marian shared a class.
  for key, value in {"normalize_before": False, "normalize_embedding": True, "add_final_layer_norm": False}.items():
    get.only(key, value)
  get.only("static_position_embeddings", False)
  get.only("extra_pos_embeddings", 2)
  for size in ("attention_heads", "ffn_dim"):
    encoder, decoder = get.size(f"encoder_{size}"), get.size(f"decoder_{size}")
    if encoder != decoder:
      raise UserError(
        f"config.json: 'encoder_{size}' is {encoder} and 'decoder_{size}' {decoder}.", hint="mtx has one for both"
      )
  d_model, d_kv = get.size("d_model"), get.head_size("d_model", "encoder_attention_heads")
  return config(
    vocab_size=get.size("vocab_size"),
    d_model=d_model,
    heads=get.size("encoder_attention_heads"),
    d_kv=d_kv,
    d_ff=get.size("encoder_ffn_dim"),
    encoder_layers=get.size("encoder_layers"),
    decoder_layers=get.size("decoder_layers"),
    norm="layer",
    norm_epsilon=1e-5,  # torch's own; no key
    placement="post",
    final_norm=False,
    embedding_norm=True,
    absolute_positions=get.size("max_position_embeddings", 1024),
    position_offset=2,
    separate_entries=True,
    attention_scale=d_kv**-0.5,
    qkv_bias=True,
    o_bias=True,
    gated=False,
    activation=get.choice("activation_function", ACTIVATIONS, "gelu"),
    mlp_bias=True,
    tied_head=get("tie_word_embeddings", True),
    head_bias=True,
    embedding_scale=d_model**0.5 if get("scale_embedding", False) else 1.0,
    embedding_std=get("init_std", 0.02),
    decoder_start=get("decoder_start_token_id", 2),
  )


def names(c: ConfigDict) -> list[Name]:
  """Names in BartForConditionalGeneration."""
  found = [
    same("head/embedding/table", "model.shared.weight"),
    # A buffer of zeros there, and not in every file; a parameter here.
    same("head/bias", "final_logits_bias", stored=(1, c.vocab_size), optional=True),
  ]
  if not c.tied_head:
    found += linear("head/projection", "lm_head")
  attentions = {"self": "self_attn", "cross": "encoder_attn"}
  for side, entry in (("encoder", "encoder_entry"), ("decoder", "entry")):
    layer, ours = f"model.{side}.layers.{{layer}}", f"{side}/layers"
    found.append(same(f"head/{entry}/position_table", f"model.{side}.embed_positions.weight"))
    found += norm(f"head/{entry}/norm", f"model.{side}.layernorm_embedding", bias=True)
    for kind, module in list(attentions.items())[: 1 + (side == "decoder")]:
      found += norm(f"{ours}/{kind}_norm", f"{layer}.{module}_layer_norm", bias=True)
      for each in "qkvo":
        projection = "out_proj" if each == "o" else f"{each}_proj"
        found += linear(f"{ours}/{kind}_attention/{each}", f"{layer}.{module}.{projection}", bias=True)
    found += norm(f"{ours}/mlp_norm", f"{layer}.final_layer_norm", bias=True)
    found += linear(f"{ours}/mlp/wi_0", f"{layer}.fc1", bias=True)
    found += linear(f"{ours}/mlp/wo", f"{layer}.fc2", bias=True)
  return found


def write(c: ConfigDict) -> dict[str, Any]:
  """The BartConfig of our config."""
  sides = {"attention_heads": c.heads, "ffn_dim": c.d_ff}
  return {
    "vocab_size": c.vocab_size,
    "d_model": c.d_model,
    **{f"{side}_{size}": value for side in ("encoder", "decoder") for size, value in sides.items()},
    "encoder_layers": c.encoder_layers,
    "decoder_layers": c.decoder_layers,
    "max_position_embeddings": c.absolute_positions,
    "activation_function": activation_name(c.activation),
    "scale_embedding": c.embedding_scale != 1.0,
    "tie_word_embeddings": c.tied_head,
    "init_std": c.embedding_std,
    "decoder_start_token_id": c.decoder_start,
    "is_encoder_decoder": True,
  }


def _sizes(vocabulary: int, d: int, heads: int, layers: int) -> dict[str, Any]:
  sides = {"layers": layers, "attention_heads": heads, "ffn_dim": 4 * d}
  both = {f"{side}_{size}": value for side in ("encoder", "decoder") for size, value in sides.items()}
  return {"vocab_size": vocabulary, "d_model": d, "max_position_embeddings": 1024, **both}


FAMILY = Family(
  name="bart",
  model_types=("bart",),
  class_name="BartForConditionalGeneration",
  architectures=("encdec",),
  config=read,
  names=names,
  hf_config=write,
  presets={
    "bart_base": _sizes(50265, 768, 12, 6),
    "bart_large": _sizes(50265, 1024, 16, 12),
    "bart_large_cnn": _sizes(50264, 1024, 16, 12),
  },
  # The table is written again under both stacks and as the head.
  ignored=(r"model\.(encoder|decoder)\.(embed_tokens\.weight|version)", r"lm_head\.weight"),
  aliases=((r"^(?=(shared|encoder|decoder)\.)", "model."),),  # of a BartModel, as bart-base is stored
)
