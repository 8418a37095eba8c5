"""Model sizes: one `ml_collections` preset a model, chosen and overridden in gin."""

import gin
from ml_collections import ConfigDict

from mtx.data.convert import ARCHITECTURES
from mtx.errors import UserError, did_you_mean


def _t5(**sizes) -> ConfigDict:
  """T5 1.1 shape (google-research/text-to-text-transfer-transformer, released_checkpoints.md): gated GELU, RMS norm,
  32 relative buckets up to distance 128, untied head. `absolute_positions` > 0 adds a learned table of that many
  positions, which T5 has not: small models learn to count places much sooner with it."""
  return ConfigDict(
    dict(
      relative_buckets=32,
      relative_max_distance=128,
      norm_epsilon=1e-6,
      embedding_std=1.0,
      absolute_positions=0,
      tied_head=False,
      dropout=0.0,
      dtype="float32",
      remat=False,
      unroll=1,
    )
    | sizes
  )


PRESETS = {
  "t5_micro": lambda: _t5(d_model=64, heads=2, d_kv=32, d_ff=128, encoder_layers=2, decoder_layers=2, tied_head=True),
  "t5_tiny": lambda: _t5(d_model=128, heads=4, d_kv=32, d_ff=256, encoder_layers=2, decoder_layers=2, tied_head=True),
  "t5_mini": lambda: _t5(d_model=256, heads=4, d_kv=64, d_ff=512, encoder_layers=4, decoder_layers=4, tied_head=True),
  "t5_small": lambda: _t5(d_model=512, heads=6, d_kv=64, d_ff=1024, encoder_layers=8, decoder_layers=8),
  "t5_base": lambda: _t5(d_model=768, heads=12, d_kv=64, d_ff=2048, encoder_layers=12, decoder_layers=12, remat=True),
  "t5_large": lambda: _t5(d_model=1024, heads=16, d_kv=64, d_ff=2816, encoder_layers=24, decoder_layers=24, remat=True),
  "t5_xl": lambda: _t5(d_model=2048, heads=32, d_kv=64, d_ff=5120, encoder_layers=24, decoder_layers=24, remat=True),
}


@gin.configurable("model")
def model_config(preset: str = gin.REQUIRED, architecture: str = "encdec", overrides: dict | None = None) -> ConfigDict:
  """The model's sizes.

  Args:
    preset: a name in PRESETS.
    architecture: "encdec"; "causal" or "prefix", a decoder of the preset's decoder depth, which costs as much compute
      a token as the encoder-decoder does (Wang et al. 2022, arXiv 2204.05832).
    overrides: fields to change, for example {"d_ff": 512, "dtype": "bfloat16", "dropout": 0.1, "remat": True}.

  Raises:
    UserError: unknown preset, architecture or field.
  """
  if preset not in PRESETS:
    raise UserError(f"binding `model.preset`: no preset {preset!r}.", hint=did_you_mean(preset, PRESETS))
  if architecture not in ARCHITECTURES:
    raise UserError(
      f"binding `model.architecture`: no architecture {architecture!r}.", hint=did_you_mean(architecture, ARCHITECTURES)
    )
  config = PRESETS[preset]()
  for field, value in (overrides or {}).items():
    if field not in config:
      raise UserError(
        f"binding `model.overrides`: preset {preset!r} has no field {field!r}.", hint=did_you_mean(field, config)
      )
    try:
      config[field] = value
    except TypeError as e:
      raise UserError(f"binding `model.overrides`: field {field!r}: {e}.") from e
  if config.dtype not in ("float32", "bfloat16"):
    raise UserError(f"binding `model.overrides`: dtype {config.dtype!r}.", hint="valid choices: bfloat16, float32")
  config.architecture = architecture
  return config
