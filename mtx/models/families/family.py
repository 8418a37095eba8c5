"""What a family of checkpoints is: a config in two spellings, and a table of names.

A family is data. Its file holds a `FAMILY` and is listed in `mtx.models.families.known`.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Shaped
from ml_collections import ConfigDict

from mtx.errors import UserError, did_you_mean

Index = tuple[int | slice, ...]


@dataclass(frozen=True)
class Name:
  """Where one of our arrays (of one layer, if it is stacked) lies in a checkpoint.

  `ours = theirs.reshape(shape)[take].transpose(order)`, reshaped to our shape; each part is optional. All but the last
  reshape are views, so a slice of ours costs no more than reading a slice of theirs where that one changes nothing.

  Attributes:
    ours: path of a parameter, `decoder/layers/self_attention/q/kernel`.
    theirs: name of a tensor; `{layer}` where there is one a layer.
    order: transposition; () = none.
    stored: shape of their tensor; None where it follows from ours: the transposed shape.
    shape: what it is reshaped to first; None = as it is stored.
    take: the part that is ours, where a tensor holds several of our arrays.
    optional: a checkpoint may leave it out (a tied head that is written all the same, a buffer); it is never missed.
  """

  ours: str
  theirs: str
  order: tuple[int, ...] = ()
  stored: tuple[int, ...] | None = None
  shape: tuple[int, ...] | None = None
  take: Index = ()
  optional: bool = False

  def stored_shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of their tensor, given the shape of one layer of ours."""
    if self.stored is not None:
      return self.stored
    return tuple(ours[self.order.index(axis)] for axis in range(len(ours))) if self.order else ours

  def view(self, theirs: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    """The part of `theirs` that is ours, with our order of axes: a view, which may have more axes than ours."""
    array = theirs if self.shape is None else theirs.reshape(self.shape)
    if self.take:
      array = array[self.take]
    return array.transpose(self.order) if self.order else array

  def read(self, theirs: Shaped[np.ndarray, "..."], ours: tuple[int, ...]) -> Shaped[np.ndarray, "..."]:
    """One layer of our array; a view of `theirs` where that is possible."""
    return self.view(theirs).reshape(ours)

  def write(self, theirs: Shaped[np.ndarray, "..."], ours: Shaped[np.ndarray, "..."]) -> None:
    """The inverse of `read`: puts one layer of our array into `theirs`, which is contiguous."""
    view = self.view(theirs)
    view[...] = ours.reshape(view.shape)


def same(ours: str, theirs: str, **more: Any) -> Name:
  """Equal arrays: tables, norms, biases."""
  return Name(ours, theirs, **more)


def linear(ours: str, theirs: str, *, bias: bool = False) -> list[Name]:
  """`torch.nn.Linear` [out, in] as our `Dense` [in, out]; `ours`, `theirs` name the module."""
  names = [Name(f"{ours}/kernel", f"{theirs}.weight", order=(1, 0))]
  return [*names, Name(f"{ours}/bias", f"{theirs}.bias")] if bias else names


def norm(ours: str, theirs: str, *, bias: bool = False) -> list[Name]:
  """A norm's weight, and its bias if it has one."""
  names = [Name(f"{ours}/scale", f"{theirs}.weight")]
  return [*names, Name(f"{ours}/bias", f"{theirs}.bias")] if bias else names


@dataclass(frozen=True)
class Family:
  """A family of checkpoints in Hugging Face's layout.

  Attributes:
    name: of the file.
    model_types: values of `model_type` in config.json that belong to it.
    class_name: what `architectures` in config.json is on export.
    architectures: what it may run as: ("encdec",) or ("causal", "prefix").
    config: config.json -> our config, without `vocab_size` rounding. Raises UserError for what can not be honoured.
    names: our config -> every parameter's name.
    hf_config: our config -> config.json, without `architectures` and `model_type`; `config` of it is our config again.
    presets: name -> config.json of published sizes.
    ignored: regular expressions of tensors that hold nothing of the model (masks, rotary tables).
    head: name of the output head where it is not tied.
    aliases: (regular expression, replacement) pairs that turn names as other writers spell them into those of `names`.
  """

  name: str
  model_types: tuple[str, ...]
  class_name: str
  architectures: tuple[str, ...]
  config: Callable[[Mapping[str, Any]], ConfigDict]
  names: Callable[[ConfigDict], Sequence[Name]]
  hf_config: Callable[[ConfigDict], dict[str, Any]]
  presets: Mapping[str, Mapping[str, Any]]
  ignored: tuple[str, ...] = ()
  head: str = "lm_head.weight"
  aliases: tuple[tuple[str, str], ...] = ()

  def spelled(self, theirs: str) -> str:
    """A tensor's name as `names` spells it; one that no alias matches stays as it is."""
    for pattern, replacement in self.aliases:
      theirs = re.sub(pattern, replacement, theirs)
    return theirs

  def settle(self, config: ConfigDict, tensors: Mapping[str, Any]) -> None:
    """Unties the head in `config` if `tensors` hold one that differs from the embedding, whatever config.json says:
    transformers 5 writes of every T5 that it is tied."""
    if config.tied_head and self.head in tensors:
      table = next(name.theirs for name in self.names(config) if name.ours == "head/embedding/table")
      config.tied_head = table in tensors and bool(np.array_equal(tensors[table], tensors[self.head]))


class Reading:
  """A config.json that is read key by key: what a family does not ask for is not lost in silence.

  Args:
    hf: the parsed file.
    place: its path, for messages.
  """

  def __init__(self, hf: Mapping[str, Any], place: str = "config.json"):
    self._hf, self._place = hf, place

  def __call__(self, key: str, *default: Any) -> Any:
    """The value of `key`; a missing one or null gives the default.

    Raises:
      UserError: it is missing and has no default, its type is not that of the default, or it is no number.
    """
    value = self._hf.get(key)
    if isinstance(value, float) and not math.isfinite(value):
      raise UserError(f"{self._place}: {key!r} is {value!r}.", hint="expected a finite number")
    if value is None:
      if default:
        return default[0]
      raise UserError(f"{self._place} lacks {key!r}.", hint="is it the config.json that belongs to the weights?")
    wanted = type(default[0]) if default and default[0] is not None else None
    number = (int, float) if wanted in (int, float) else wanted
    if number and (not isinstance(value, number) or (isinstance(value, bool) and wanted is not bool)):
      raise UserError(f"{self._place}: {key!r} is {value!r}.", hint=f"expected {wanted.__name__}")  # type: ignore[union-attr]
    return value

  def size(self, key: str, *default: int) -> int:
    """A whole number over 0, below 2^31."""
    value = self(key, *default)
    if not isinstance(value, int) or isinstance(value, bool) or not (0 if default else 1) <= value < 2**31:
      raise UserError(f"{self._place}: {key!r} is {value!r}.", hint="expected a whole number over 0, below 2^31")
    return value

  def head_size(self, width: str, heads: str) -> int:
    """Dimensions of a head where there is no key for them: `width` over `heads`, both keys of sizes."""
    d, n = self.size(width), self.size(heads)
    if d % n:
      raise UserError(f"{self._place}: {width!r} is {d}, which {heads!r}, {n}, does not divide.")
    return d // n

  def choice(self, key: str, choices: Mapping[str, Any], *default: str) -> Any:
    """What `choices` gives for the value of `key`."""
    value = self(key, *default)
    if value not in choices:
      raise UserError(f"{self._place}: {key!r} is {value!r}.", hint=did_you_mean(str(value), choices))
    return choices[value]

  def only(self, key: str, *values: Any) -> None:
    """Refuses any value but these, the first of which stands for a missing one."""
    value = self._hf.get(key, values[0])
    if value not in values:
      raise UserError(f"{self._place}: {key!r} is {value!r}, which mtx does not do.", hint=f"it does {values[0]!r}")


# What transformers' configs call activations.
ACTIVATIONS = {
  "gelu": "gelu",
  "gelu_new": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "relu": "relu",
  "silu": "silu",
  "swish": "silu",
}


def activation_name(activation: str) -> str:
  """What transformers calls an activation of ours."""
  return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == activation)
