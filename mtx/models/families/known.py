"""The families there are, and which of them a checkpoint is of."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from mtx.errors import UserError, did_you_mean
from mtx.models.families.family import Family

MODULES = ("t5", "llama", "mistral", "qwen", "gemma", "gemma3", "phi3", "gpt2", "opt", "neox", "bloom", "bart")


@cache
def families() -> dict[str, Family]:
  """Every family by name; a module may hold several."""
  found = [vars(import_module(f"mtx.models.families.{name}")).values() for name in MODULES]
  return {each.name: each for held in found for each in held if isinstance(each, Family)}


def family_of(hf: Mapping[str, Any], place: str = "config.json") -> Family:
  """The family of a checkpoint, by `model_type` of its config.json.

  Raises:
    UserError: no `model_type`, or one that is not supported (names the nearest ones that are), or quantised weights.
  """
  kind = hf.get("model_type")
  by_type = {each: family for family in families().values() for each in family.model_types}
  if kind is None:
    raise UserError(f"{place} has no 'model_type'.", hint=f"supported: {', '.join(sorted(by_type))}")
  if kind not in by_type:
    raise UserError(f"{place}: model_type {kind!r} is not supported.", hint=did_you_mean(str(kind), by_type))
  if hf.get("quantization_config") is not None:
    raise UserError(
      f"{place}: 'quantization_config': quantised weights are not read.",
      hint="in transformers, `model.dequantize().save_pretrained(NEW)` writes them as plain ones",
    )
  return by_type[kind]
