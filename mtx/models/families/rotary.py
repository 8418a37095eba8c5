"""Rotary positions in a config.json: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`."""

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from mtx.errors import UserError, did_you_mean
from mtx.models.families.family import Reading

PLACE = "config.json, rotary positions"
# The keys of every kind of scaling: ours (`mtx.models.rope.SCALINGS`) -> theirs.
KINDS = {
  "linear": {"factor": "factor"},
  "llama3": {
    "factor": "factor",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "original": "original_max_position_embeddings",
  },
  "yarn": {
    "factor": "factor",
    "original": "original_max_position_embeddings",
    "fast": "beta_fast",
    "slow": "beta_slow",
    "truncate": "truncate",
    "magnitude": "attention_factor",
  },
  "longrope": {
    "short": "short_factor",
    "long": "long_factor",
    "longest": "original_max_position_embeddings",
    "magnitude": "attention_factor",
  },
}
ALSO = {"yarn": {"mscale", "mscale_all_dim"}, "longrope": {"factor"}}  # these are folded into the magnitude
REFUSED = {
  "dynamic": "it changes all frequencies with the length of a row, and keys in a cache keep the old ones",
  "longrope": "only Phi-3 has it",
}


def rotary(get: Reading, *, kinds: tuple[str, ...] = ("linear", "llama3", "yarn"), partial: bool = False) -> dict:
  """Fields of our config for one rotation in all layers; `kinds` of scaling and `partial` rotation if allowed."""
  written = get("rope_scaling", None) or get("rope_parameters", None) or {}
  return scaled(get, written, float(get("rope_theta", 10000.0)), kinds=kinds, partial=partial)


def scaled(get: Reading, written: Any, theta: float, *, kinds: tuple[str, ...], partial: bool = False) -> dict:
  """Fields of our config for what is `written` of a rotation; `theta` where it names none.

  Raises:
    UserError: a kind of scaling that is not in `kinds`, a key that is missing or not one of its own.
  """
  if not isinstance(written, Mapping):
    raise UserError(f"{PLACE}: {written!r}.", hint="expected an object, or null")
  here = Reading(written, PLACE)
  kind = here("rope_type", None) or here("type", None) or "default"
  kind = "longrope" if kind == "su" else kind  # its name in the first checkpoints
  if kind not in ("default", *kinds):
    why = f": {REFUSED[kind]}" if kind in REFUSED else ""
    raise UserError(f"{PLACE}: rope type {kind!r} is not supported{why}.", hint=did_you_mean(str(kind), kinds))
  own = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *KINDS.get(kind, {}).values(), *ALSO.get(kind, ())}
  for key in written:
    if key not in own:
      raise UserError(f"{PLACE}: rope type {kind!r} has no {key!r} in mtx.", hint=did_you_mean(key, own))
  fields: dict[str, Any] = {"rope_theta": float(here("rope_theta", theta))}
  fraction = float(here("partial_rotary_factor", get("partial_rotary_factor", 1.0)))
  if not 0 < fraction <= 1:
    raise UserError(f"{PLACE}: 'partial_rotary_factor' is {fraction}.", hint="expected over 0, at most 1")
  if fraction != 1.0 and not partial:
    raise UserError(f"{PLACE}: 'partial_rotary_factor' is {fraction}, which this family does not have.")
  if fraction != 1.0:
    fields["rope_fraction"] = fraction
  if kind != "default":
    fields["rope_scaling"] = {"kind": kind, **_SCALED[kind](here, get)}
  return fields


def _number(here: Reading, key: str) -> float:
  here(key)  # raises where it is missing
  return here(key, 1.0)


def _original(here: Reading, get: Reading) -> int:
  found = here("original_max_position_embeddings", None)
  return (
    get.size("max_position_embeddings") if found is None else int(_number(here, "original_max_position_embeddings"))
  )


def _linear(here: Reading, get: Reading) -> dict[str, Any]:
  return {"factor": _number(here, "factor")}


def _llama3(here: Reading, get: Reading) -> dict[str, Any]:
  low, high = _number(here, "low_freq_factor"), _number(here, "high_freq_factor")
  return {"factor": _number(here, "factor"), "low": low, "high": high, "original": _original(here, get)}


def _yarn(here: Reading, get: Reading) -> dict[str, Any]:
  factor = _number(here, "factor")
  grown = lambda weight: 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0
  above, below = here("mscale", 0.0), here("mscale_all_dim", 0.0)
  return {
    "factor": factor,
    "original": _original(here, get),
    "fast": here("beta_fast", 0) or 32,
    "slow": here("beta_slow", 0) or 1,
    "truncate": here("truncate", True),
    "magnitude": here("attention_factor", grown(above) / grown(below) if above and below else grown(1)),
  }


def _longrope(here: Reading, get: Reading) -> dict[str, Any]:
  original = get.size("original_max_position_embeddings")
  factor = here("factor", 0.0) or get.size("max_position_embeddings") / original
  grown = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
  lists = {ours: here(theirs) for ours, theirs in (("short", "short_factor"), ("long", "long_factor"))}
  for name, each in lists.items():
    if not isinstance(each, list | tuple) or not all(isinstance(x, int | float) for x in each):
      raise UserError(f"{PLACE}: '{name}_factor' is {each!r}.", hint="expected a list of numbers")
  return {**lists, "longest": original, "magnitude": here("attention_factor", grown)}


_SCALED = {"linear": _linear, "llama3": _llama3, "longrope": _longrope, "yarn": _yarn}


def written(c: ConfigDict) -> dict[str, Any]:
  """The object that `scaled` reads."""
  rope: dict[str, Any] = {"rope_theta": c.rope_theta, "rope_type": "default"}
  if c.rope_fraction != 1.0:
    rope["partial_rotary_factor"] = c.rope_fraction
  if c.rope_scaling is not None:
    keys = KINDS[c.rope_scaling.kind]
    plain = {theirs: c.rope_scaling[ours] for ours, theirs in keys.items()}
    rope |= {"rope_type": c.rope_scaling.kind}
    rope |= {key: list(each) if isinstance(each, tuple) else each for key, each in plain.items()}
  return rope


def write_rotary(c: ConfigDict) -> dict[str, Any]:
  """The inverse of `rotary`. Both spellings: transformers 4 does not read the first, transformers 5 needs only it."""
  rope = written(c)
  scaling = None if c.rope_scaling is None else {k: v for k, v in rope.items() if k != "partial_rotary_factor"}
  fraction = {"partial_rotary_factor": c.rope_fraction} if c.rope_fraction != 1.0 else {}
  return {"rope_parameters": rope, "rope_theta": c.rope_theta, "rope_scaling": scaling, **fraction}
