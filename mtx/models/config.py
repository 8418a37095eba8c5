"""Every field of a model's config, with the value that leaves its feature out."""

from typing import Any

from ml_collections import ConfigDict

from mtx.errors import UserError, did_you_mean

SIZES = ("d_model", "heads", "d_kv", "d_ff", "decoder_layers")  # these have no default

DEFAULTS: dict[str, Any] = {
  # Sizes beyond SIZES. 0 key-value heads: as many as heads (else grouped queries, arXiv 2305.13245).
  "encoder_layers": 0,
  "kv_heads": 0,
  # Norms: "rms" or "layer". `norm_offset` is added to the scale (Gemma stores scale - 1). `placement`: "pre", "post"
  # (BART), or "both", before and after a sublayer and inside its residual (Gemma 2).
  "norm": "rms",
  "norm_epsilon": 1e-6,
  "norm_offset": 0.0,
  "placement": "pre",
  "parallel": False,  # attention and MLP read the same x (GPT-NeoX)
  "final_norm": True,
  "embedding_norm": False,
  # Positions: any of these together. 0 or False: without.
  "relative_buckets": 0,
  "relative_max_distance": 128,
  "alibi": False,
  "absolute_positions": 0,  # rows of a learned table
  "position_offset": 0,  # rows of that table before position 0 (2 in OPT and BART)
  "separate_entries": False,  # encoder and decoder have tables (and embedding norms) of their own (BART)
  "rope_theta": 0.0,
  "rope_fraction": 1.0,  # of each head's dimensions, the first ones
  "rope_scaling": None,  # `mtx.models.rope.SCALINGS`
  "rope_local_theta": 0.0,  # in layers with a window, unscaled (Gemma 3); 0: as the others
  "window": 0,  # a query sees this many keys, its own included
  "window_layers": (),  # 1 for each layer that has the window, 0 for the others; (): all
  # Attention.
  "attention_scale": 1.0,  # T5 folds it into the initialisation of q
  "qkv_bias": False,
  "o_bias": False,
  "qk_norm": False,  # RMS norm of each head's queries and keys
  "attention_soft_cap": 0.0,
  # MLP.
  "gated": True,
  "activation": "gelu_tanh",
  "mlp_bias": False,
  # Embedding and head.
  "tied_head": False,
  "scale_tied_head": False,  # by d_model^-1/2 (T5)
  "head_bias": False,
  "embedding_scale": 1.0,
  "embedding_std": 1.0,
  "logit_soft_cap": 0.0,
  "decoder_start": 0,  # what an encoder-decoder's decoder reads first
  # Training.
  "dropout": 0.0,
  "dtype": "float32",  # of activations
  "remat": False,
  "unroll": 1,
}


def config(**fields: Any) -> ConfigDict:
  """A model's config: DEFAULTS with `fields`, all of SIZES among them.

  Raises:
    UserError: a field that is not there, or a size that is missing.
  """
  known = {*SIZES, *DEFAULTS, "vocab_size"}
  for name in fields:
    if name not in known:
      raise UserError(f"a model's config has no field {name!r}.", hint=did_you_mean(name, known))
  missing = [name for name in SIZES if name not in fields]
  if missing:
    raise UserError(f"a model's config lacks {', '.join(missing)}.")
  return ConfigDict(DEFAULTS | fields)


def kv_heads(config: ConfigDict) -> int:
  """Heads of keys and values."""
  return config.kv_heads or config.heads
