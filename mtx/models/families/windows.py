"""Sliding windows in some layers of a config.json: `layer_types`, or a pattern where it is missing."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from mtx.errors import UserError, did_you_mean
from mtx.models.families.family import Reading

KINDS = ("full_attention", "sliding_attention")


def windows(get: Reading, window: int, pattern: Sequence[bool]) -> dict[str, Any]:
  """Fields of our config.

  Args:
    window: 0: without.
    pattern: which layers have it if `layer_types` does not say.

  Raises:
    UserError: `layer_types` has another kind of layer, another length, or windows where there is no size of one.
  """
  kinds, layers = get("layer_types", None), get.size("num_hidden_layers")
  if kinds is None:
    chosen = [int(each) for each in pattern]
  else:
    if not isinstance(kinds, list | tuple) or len(kinds) != layers:
      raise UserError(f"config.json: 'layer_types' is {kinds!r}.", hint=f"expected a list, one for each of {layers}")
    for kind in kinds:
      if kind not in KINDS:
        raise UserError(f"config.json: 'layer_types' has {kind!r}.", hint=did_you_mean(str(kind), KINDS))
    chosen = [KINDS.index(kind) for kind in kinds]
  if any(chosen) and not window:
    raise UserError("config.json: 'layer_types' has windows, and 'sliding_window' is missing or not in use.")
  if not any(chosen):
    return {}
  return {"window": window, "window_layers": tuple(chosen)}


def write_windows(c: ConfigDict) -> dict[str, Any]:
  """The inverse."""
  chosen = (c.window_layers or (1,) * c.decoder_layers) if c.window else (0,) * c.decoder_layers
  return {"sliding_window": c.window or None, "layer_types": [KINDS[each] for each in chosen]}
