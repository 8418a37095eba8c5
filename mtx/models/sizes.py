"""Model sizes: one `ml_collections` preset a model, chosen and overridden in gin."""

from collections.abc import Callable
from functools import partial

import gin
from ml_collections import ConfigDict

from mtx.data.convert import ARCHITECTURES
from mtx.errors import UserError, did_you_mean
from mtx.models.config import config
from mtx.models.families.known import families


def _t5(**sizes) -> ConfigDict:
  """T5 1.1 shape (google-research/text-to-text-transfer-transformer, released_checkpoints.md): gated GELU, RMS norm,
  32 relative buckets up to distance 128, untied head. `absolute_positions` > 0 adds a learned table of that many
  positions, which T5 has not: small models learn to count places much sooner with it."""
  return config(**({"relative_buckets": 32, "scale_tied_head": True} | sizes))


# Sizes of T5 1.1's shape that are small enough to train from scratch, and all that families publish.
PRESETS: dict[str, Callable[[], ConfigDict]] = {
  "t5_micro": lambda: _t5(d_model=64, heads=2, d_kv=32, d_ff=128, encoder_layers=2, decoder_layers=2, tied_head=True),
  "t5_tiny": lambda: _t5(d_model=128, heads=4, d_kv=32, d_ff=256, encoder_layers=2, decoder_layers=2, tied_head=True),
  "t5_mini": lambda: _t5(d_model=256, heads=4, d_kv=64, d_ff=512, encoder_layers=4, decoder_layers=4, tied_head=True),
  "t5_small": lambda: _t5(d_model=512, heads=6, d_kv=64, d_ff=1024, encoder_layers=8, decoder_layers=8),
  "t5_base": lambda: _t5(d_model=768, heads=12, d_kv=64, d_ff=2048, encoder_layers=12, decoder_layers=12, remat=True),
  "t5_large": lambda: _t5(d_model=1024, heads=16, d_kv=64, d_ff=2816, encoder_layers=24, decoder_layers=24, remat=True),
  "t5_xl": lambda: _t5(d_model=2048, heads=32, d_kv=64, d_ff=5120, encoder_layers=24, decoder_layers=24, remat=True),
} | {
  name: partial(family.config, {"model_type": family.model_types[0], **hf})
  for family in families().values()
  for name, hf in family.presets.items()
}


@gin.configurable("model", denylist=["found"])
def model_config(
  preset: str | None = None,
  architecture: str | None = None,
  overrides: dict | None = None,
  pretrained: str | None = None,
  *,
  found: ConfigDict | None = None,
) -> ConfigDict:
  """The model's sizes.

  Args:
    preset: a name in PRESETS.
    architecture: "encdec"; "causal" or "prefix", a decoder of the preset's decoder depth, which costs as much compute
      a token as the encoder-decoder does (Wang et al. 2022, arXiv 2204.05832). None: "encdec" where the preset has an
      encoder, else "causal".
    overrides: fields to change, for example {"d_ff": 512, "dtype": "bfloat16", "dropout": 0.1, "remat": True}.
    pretrained: in place of a preset, the folder of a model to start from, as `mtx import` takes it. Its vocabulary is
      then that of `mixture`, unless `mixture.vocabulary` is bound.
    found: the config of that folder, in its architecture.

  Raises:
    UserError: unknown preset, architecture or field; neither a preset nor a folder, or both.
  """
  if (preset is None) == (pretrained is None):
    raise UserError(
      "`model.preset` or `model.pretrained` needs a value." if preset is None else
      f"`model.preset` = {preset!r} and `model.pretrained` = {pretrained!r} exclude each other.",
      hint="a preset starts from nothing, a folder from its parameters",
    )  # fmt: skip
  if pretrained is not None:
    if found is None:
      raise UserError(f"binding `model.pretrained`: {pretrained!r} was not opened.")
    return _changed(found.copy_and_resolve_references(), overrides, f"the model in {pretrained}")
  if preset not in PRESETS:
    raise UserError(f"binding `model.preset`: no preset {preset!r}.", hint=did_you_mean(preset or "", PRESETS))
  made = PRESETS[preset]()
  choices = ARCHITECTURES if made.encoder_layers else tuple(a for a in ARCHITECTURES if a != "encdec")
  architecture = choices[0] if architecture is None else architecture
  if architecture not in choices:
    raise UserError(
      f"binding `model.architecture`: no architecture {architecture!r} of preset {preset!r}.",
      hint=did_you_mean(architecture, choices),
    )
  made = _changed(made, overrides, f"preset {preset!r}")
  made.architecture = architecture
  return made


def _changed(made: ConfigDict, overrides: dict | None, what: str) -> ConfigDict:
  """A config with other values in some fields."""
  for field, value in (overrides or {}).items():
    if field not in made:
      raise UserError(f"binding `model.overrides`: {what} has no field {field!r}.", hint=did_you_mean(field, made))
    try:
      made[field] = value
    except TypeError as e:
      raise UserError(f"binding `model.overrides`: field {field!r}: {e}.") from e
  if made.dtype not in ("float32", "bfloat16"):
    raise UserError(f"binding `model.overrides`: dtype {made.dtype!r}.", hint="valid choices: bfloat16, float32")
  return made
