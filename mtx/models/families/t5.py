"""T5 1.0, 1.1 and LM-adapted (arXiv 1910.10683), Flan-T5, mT5 (2010.11934), ByT5 (2105.13626), UL2 (2205.05131)."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtx.models.config import config
from mtx.models.families.family import Family, Name, Reading, linear, norm, same

# `feed_forward_proj`; "gated-gelu" is the tanh form in every one of these checkpoints.
FEED_FORWARD = {
  "relu": (False, "relu"),
  "gelu": (False, "gelu"),
  "gated-gelu": (True, "gelu_tanh"),
  "gated-silu": (True, "silu"),
  "gated-relu": (True, "relu"),
}


def read(hf: Mapping[str, Any]) -> ConfigDict:
  """Our config of a T5Config."""
  get = Reading(hf)
  gated, activation = get.choice("feed_forward_proj", FEED_FORWARD, "relu")
  layers = get.size("num_layers")
  tied = get("tie_word_embeddings", True)
  return config(
    vocab_size=get.size("vocab_size"),
    d_model=get.size("d_model"),
    heads=get.size("num_heads"),
    d_kv=get.size("d_kv"),
    d_ff=get.size("d_ff"),
    encoder_layers=layers,
    decoder_layers=get.size("num_decoder_layers", layers),
    norm_epsilon=get("layer_norm_epsilon", 1e-6),
    relative_buckets=get.size("relative_attention_num_buckets", 32),
    relative_max_distance=get.size("relative_attention_max_distance", 128),
    gated=gated,
    activation=activation,
    tied_head=tied,
    # transformers 5 writes of all these models that they are tied, and by this key which form of T5 they are.
    scale_tied_head=get("scale_decoder_outputs", tied) and hf.get("model_type") != "mt5",
    decoder_start=get("decoder_start_token_id", 0),
  )


def names(c: ConfigDict) -> list[Name]:
  """Names in T5ForConditionalGeneration."""
  found = [same("head/embedding/table", "shared.weight")]
  if not c.tied_head:
    found += linear("head/projection", "lm_head")
  for side, cross in (("encoder", False), ("decoder", True)):
    block = f"{side}.block.{{layer}}.layer"
    attentions = {"self": f"{block}.0", **({"cross": f"{block}.1"} if cross else {})}
    mlp = f"{block}.{len(attentions)}"
    for kind, layer in attentions.items():
      module = "SelfAttention" if kind == "self" else "EncDecAttention"
      for each in "qkvo":
        found += linear(f"{side}/layers/{kind}_attention/{each}", f"{layer}.{module}.{each}")
      found += norm(f"{side}/layers/{kind}_norm", f"{layer}.layer_norm")
    for ours, theirs in (("wi_0", "wi_0"), ("wi_1", "wi_1")) if c.gated else (("wi_0", "wi"),):
      found += linear(f"{side}/layers/mlp/{ours}", f"{mlp}.DenseReluDense.{theirs}")
    found += linear(f"{side}/layers/mlp/wo", f"{mlp}.DenseReluDense.wo")
    found += norm(f"{side}/layers/mlp_norm", f"{mlp}.layer_norm")
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    found += [same(f"{side}/relative_bias/table", bias), *norm(f"{side}/norm", f"{side}.final_layer_norm")]
  return found


def write(c: ConfigDict) -> dict[str, Any]:
  """The T5Config of our config."""
  return {
    "vocab_size": c.vocab_size,
    "d_model": c.d_model,
    "num_heads": c.heads,
    "d_kv": c.d_kv,
    "d_ff": c.d_ff,
    "num_layers": c.encoder_layers,
    "num_decoder_layers": c.decoder_layers,
    "layer_norm_epsilon": c.norm_epsilon,
    "relative_attention_num_buckets": c.relative_buckets,
    "relative_attention_max_distance": c.relative_max_distance,
    "feed_forward_proj": next(k for k, v in FEED_FORWARD.items() if v == (c.gated, c.activation)),
    "tie_word_embeddings": c.tied_head,
    "scale_decoder_outputs": c.scale_tied_head,
    "decoder_start_token_id": c.decoder_start,
    "is_encoder_decoder": True,
  }


def _sizes(
  vocabulary: int, d: int, heads: int, d_kv: int, d_ff: int, layers: tuple[int, int], **more
) -> dict[str, Any]:
  names = ("vocab_size", "d_model", "num_heads", "d_kv", "d_ff", "num_layers", "num_decoder_layers")
  return dict(zip(names, (vocabulary, d, heads, d_kv, d_ff, *layers), strict=True)) | more


_GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
FAMILY = Family(
  name="t5",
  model_types=("t5", "mt5", "byt5"),
  class_name="T5ForConditionalGeneration",
  architectures=("encdec",),
  config=read,
  names=names,
  hf_config=write,
  presets={
    "t5_1_0_small": _sizes(32128, 512, 8, 64, 2048, (6, 6)),
    "t5_1_0_base": _sizes(32128, 768, 12, 64, 3072, (12, 12)),
    "flan_t5_small": _sizes(32128, 512, 6, 64, 1024, (8, 8), **_GATED),
    "flan_t5_base": _sizes(32128, 768, 12, 64, 2048, (12, 12), **_GATED),
    "flan_t5_large": _sizes(32128, 1024, 16, 64, 2816, (24, 24), **_GATED),
    "flan_t5_xl": _sizes(32128, 2048, 32, 64, 5120, (24, 24), **_GATED),
    "flan_t5_xxl": _sizes(32128, 4096, 64, 64, 10240, (24, 24), **_GATED),
    "mt5_small": _sizes(250112, 512, 6, 64, 1024, (8, 8), **_GATED),
    "mt5_base": _sizes(250112, 768, 12, 64, 2048, (12, 12), **_GATED),
    "byt5_small": _sizes(384, 1472, 6, 64, 3584, (12, 4), **_GATED),
    "byt5_base": _sizes(384, 1536, 12, 64, 3968, (18, 6), **_GATED),
    "ul2": _sizes(32128, 4096, 16, 256, 16384, (32, 32), **_GATED | {"feed_forward_proj": "gated-silu"}),
  },
  # The table is written again under both stacks, and as the head where that is tied.
  ignored=(r"(encoder|decoder)\.embed_tokens\.weight", r"lm_head\.weight"),
)
