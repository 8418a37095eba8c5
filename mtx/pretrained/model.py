"""Opens a model, whatever its format: sizes first, then arrays, sharded as they come."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding
from ml_collections import ConfigDict

from mtx.data.vocabulary import Vocabulary
from mtx.errors import UserError, did_you_mean
from mtx.models.build import Model, build
from mtx.models.families.family import Family
from mtx.models.families.known import families, family_of
from mtx.pretrained.lazy import Tensors
from mtx.pretrained.native import INDEX, Card, Saved, read_card
from mtx.pretrained.peft import ADAPTER_CONFIG, Hung, base_of, read_peft
from mtx.pretrained.stream import parts, read_params
from mtx.pretrained.tensors import open_tensors
from mtx.tokens.folder import find
from mtx.training.parameters import Blueprint, Params, blueprint

CONFIG = "config.json"
# How families call the number of layers.
LAYERS = {"num_hidden_layers", "num_layers", "num_decoder_layers", "n_layer", "encoder_layers", "decoder_layers"}
LOOKED_FOR = f"{CONFIG} with safetensors, {INDEX} of `mtx import` or of a run, T5X, llama2.c's .bin, {ADAPTER_CONFIG}"


class Arrays(Protocol):
  """Where a model's parameters lie."""

  @property
  def unused(self) -> tuple[str, ...]:
    """Tensors of which nothing was made."""

  def stored(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """Those of `shapes` that are there, with shape and dtype as they are there."""

  def read(self, shapes: Mapping[str, jax.ShapeDtypeStruct], shardings: Mapping[str, Sharding]) -> Params:
    """Parameters with the dtypes of `shapes`."""


@dataclass(frozen=True)
class Found(Card):
  """A model whose arrays were not read yet.

  Attributes:
    path: its folder or file.
    arrays: where they lie.
  """

  path: Path = Path()
  arrays: Arrays = None  # type: ignore[assignment]

  def blueprint(self) -> Blueprint:
    """The model with the adapters that it came with."""

    def make(rngs: nnx.Rngs) -> Model:
      model = build(self.config, rngs=rngs)
      for each in self.injections:
        each.inject(model, rngs)
      return model

    return blueprint(make)

  @property
  def unused(self) -> tuple[str, ...]:
    """Tensors of which nothing was made and that no model of the family needs; known after reading."""
    return self.arrays.unused

  def stored(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """Those of `shapes` that are there, with shape and dtype as they are there."""
    return self.arrays.stored(shapes)

  def read(self, shapes: Mapping[str, jax.ShapeDtypeStruct], shardings: Mapping[str, Sharding]) -> Params:
    """Parameters with the dtypes of `shapes`, each device its part and no host more than its devices' parts.

    Raises:
      UserError: one is missing, or has another shape; names it.
    """
    return self.arrays.read(shapes, shardings)


@dataclass(frozen=True)
class Opened:
  """A model with parameters.

  Attributes:
    config: sizes, with `architecture` and `vocab_size`.
    blueprint: with the adapters that it came with.
    params: in the dtypes in which they are stored.
    vocabulary: None where nothing says which one it is.
    tasks: names of the routers' rows; () without routers.
    family: None for a model that no family's checkpoint began.
    found: the same before its arrays were read.
  """

  config: ConfigDict
  blueprint: Blueprint
  params: Params
  vocabulary: Vocabulary | None
  tasks: tuple[str, ...]
  family: Family | None
  found: Found


def open_model(path: str | Path, mesh: Mesh, *, architecture: str | None = None) -> Opened:
  """Opens a model with its parameters on a mesh.

  Args:
    path, architecture: as for `find_model`.

  Raises:
    UserError: as `find_model`; tensors that are missing, left over although a layer's, or of another shape.
  """
  found = find_model(path, architecture=architecture)
  model = found.blueprint()
  params = found.read(found.stored(model.shapes), model.shardings(mesh))
  if lacking := sorted(model.shapes.keys() - params.keys()):
    raise UserError(f"{found.path} lacks parameter {lacking[0]} (and {len(lacking) - 1} others).")
  family = families()[found.family] if found.family else None
  return Opened(found.config, model, params, found.vocabulary, found.tasks, family, found)


def find_model(path: str | Path, *, architecture: str | None = None) -> Found:
  """Finds a model and says all of it but its arrays.

  Args:
    path: a Hugging Face folder (config.json and safetensors), a folder of `mtx import`, a run's folder (its final
      model), a PEFT folder whose base is on this machine, or T5X's or llama2.c's checkpoint. Sizes of the last two
      follow from their shapes; what those can not say, a config.json beside them does.
    architecture: None: as it was trained. A decoder may run as "prefix" or "causal".

  Raises:
    UserError: nothing is there, an unsupported model (names the nearest), a config that contradicts the tensors, a
      vocabulary that is larger than the embedding.
  """
  place = Path(path).expanduser()
  if not place.exists():
    raise UserError(f"{path} is not there.", hint=f"a model is a folder with one of: {LOOKED_FOR}")
  if (place / "model" / INDEX).is_file() and not (place / INDEX).is_file():
    place = place / "model"
  if (place / INDEX).is_file():
    card = read_card(place)
    found = Found(**vars(card), path=place, arrays=Saved(place))
    choices: tuple[str, ...] = ("encdec",) if found.config.architecture == "encdec" else ("causal", "prefix")
  elif (place / ADAPTER_CONFIG).is_file() and not (place / CONFIG).is_file():
    return with_adapters(find_model(base_of(place), architecture=architecture), place)
  else:
    found = _checkpoint(place)
    choices = families()[found.family].architectures  # type: ignore[index]
  architecture = architecture or found.config.get("architecture") or choices[0]
  if architecture not in choices:
    raise UserError(f"{place} does not run as architecture {architecture!r}.", hint=did_you_mean(architecture, choices))
  found.config.architecture = architecture
  if found.vocabulary is not None and found.vocabulary.size > found.config.vocab_size:
    raise UserError(
      f"{place}: the vocabulary has {found.vocabulary.size} ids, and the embedding {found.config.vocab_size} rows.",
      hint="the tokenizer's files belong to another model",
    )
  return found


def with_adapters(found: Found, folder: str | Path) -> Found:
  """A model with the adapters of a PEFT folder: LoRA as LoRA, Poly as MHR, on our sites.

  Raises:
    UserError: it has adapters already, or the folder's are none that mtx has; names the setting or the module.
  """
  if found.injections:
    raise UserError(f"{found.path} has adapters already.", hint="merge them first: mtx export --adapters merged")
  if found.family is None:
    raise UserError(f"{found.path} belongs to no family, so the modules that {folder} names are not known.")
  injection, tasks, arrays = read_peft(Path(folder), families()[found.family], found.config, found.blueprint())
  source = {**found.source, "adapters": str(Path(folder).resolve())}
  return replace(found, injections=(injection,), tasks=tasks, arrays=Hung(found.arrays, arrays), source=source)


def _checkpoint(place: Path) -> Found:
  """A checkpoint of a family's names: Hugging Face's, T5X's or llama2.c's."""
  folder = place if place.is_dir() else place.parent
  written = _json(folder / CONFIG)
  if written is not None:
    family_of(written, str(folder / CONFIG))  # before weights: a model of another kind has others
  elif place.is_dir() and not any(place.iterdir()):
    raise UserError(f"{place} is empty.", hint=f"a model is a folder with one of: {LOOKED_FOR}")
  elif (place / "operative.gin").is_file():
    raise UserError(
      f"{place} is a run without a model.",
      hint="a run leaves one when it is finished, unless `train.keep_model` = False",
    )
  opened = open_tensors(place)
  hf = {**(opened.config or {}), **(written or {})}
  if not hf:
    raise UserError(f"{folder} has no {CONFIG}, and {place} does not say what it is.", hint=f"looked for: {LOOKED_FOR}")
  family = family_of(hf, str(folder / CONFIG))
  _check_layers(hf, opened)
  tensors = Spelled(opened, family)
  config = family.config(hf)
  family.settle(config, tensors)
  config.architecture = family.architectures[0]  # of several, the arrays are the same
  vocabulary = Vocabulary.open(folder) if find(folder) is not None else None
  source = {"path": str(place.resolve()), "model_type": hf["model_type"]}
  return Found(
    config=config, family=family.name, vocabulary=vocabulary, hugging_face=hf, files=folder, source=source, path=place,
    arrays=Checkpoint(tensors, family, config),
  )  # fmt: skip


def _check_layers(hf: Mapping[str, Any], tensors: Tensors) -> None:
  """Raises UserError if a config says more layers than there are tensors: they are counted before anything loops."""
  text = hf.get("text_config")
  for key, value in {**hf, **(text if isinstance(text, Mapping) else {})}.items():
    if key in LAYERS and isinstance(value, int) and value > len(tensors):
      raise UserError(
        f"{CONFIG}: {key!r} is {value}, and {tensors.path} has {len(tensors)} tensors.",
        hint="is it the config.json that belongs to the weights?",
      )


def _json(file: Path) -> dict[str, Any] | None:
  """A JSON object; None if the file is not there."""
  if not file.is_file():
    return None
  try:
    found = json.loads(file.read_text(encoding="utf-8"))
  except ValueError as error:
    raise UserError(f"{file} is not JSON: {error}.", hint="copy it again") from error
  if not isinstance(found, dict):
    raise UserError(f"{file} holds no JSON object.", hint="is it a model's config.json?")
  return found


class Spelled(Tensors):
  """Tensors under the names that their family's table has; `where` tells the written ones."""

  def __init__(self, tensors: Tensors, family: Family):
    self._tensors, self._written = tensors, dict[str, str]()
    for name in tensors:
      other = self._written.setdefault(family.spelled(name), name)
      if other != name:
        raise UserError(f"{tensors.where(name)} is `{other}` again.", hint="remove one of them")
    super().__init__(tensors.path, {name: tensors[old] for name, old in self._written.items()}, config=tensors.config)

  def where(self, name: str) -> str:
    return self._tensors.where(self._written.get(name, name))


class Checkpoint:
  """The arrays of a family's checkpoint.

  Attributes:
    tensors: of the checkpoint.
    unused: tensors of which nothing is made and that no model of the family needs; known after reading.
  """

  def __init__(self, tensors: Tensors, family: Family, config: ConfigDict):
    self.tensors, self._family, self._config = tensors, family, config
    self._names = family.names(config)
    self._known = {re.sub(r"\d+", "#", name.theirs.replace("{layer}", "0")) for name in self._names}
    self.unused: tuple[str, ...] = ()

  @cached_property
  def _shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    return blueprint(lambda rngs: build(self._config, rngs=rngs)).shapes

  def stored(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """Of all parameters that the config says there are: what is missing is told when it is read."""
    found: dict[str, jax.ShapeDtypeStruct] = {}
    for part in parts(self._names, self._shapes):
      if part.theirs in self.tensors and part.ours not in found:
        dtype = np.dtype(self.tensors[part.theirs].dtype)
        found[part.ours] = jax.ShapeDtypeStruct(self._shapes[part.ours].shape, dtype)
    return {path: found.get(path, shape) for path, shape in self._shapes.items() if path in shapes}

  def read(self, shapes: Mapping[str, jax.ShapeDtypeStruct], shardings: Mapping[str, Sharding]) -> Params:
    params, report = read_params(self.tensors, self._names, shapes, shardings)
    required = {name.ours for name in self._names if not name.optional}
    for path in report.missing.keys() - required:  # a bias that older checkpoints have not
      if any(name.ours == path for name in self._names):
        zeros = np.zeros(shapes[path].shape, shapes[path].dtype)
        params[path] = jax.device_put(zeros, shardings[path])
        del report.missing[path]
    report.check(self.tensors.path)
    mine = {part.theirs for part in parts(self._names, self._shapes)}
    self.unused = tuple(
      name for name in self.tensors
      if name not in mine and not any(re.fullmatch(pattern, name) for pattern in self._family.ignored)
    )  # fmt: skip
    for name in self.unused:
      if re.sub(r"\d+", "#", name) in self._known:
        raise UserError(
          f"{self.tensors.where(name)} is of a layer more than config.json says "
          f"({self._config.encoder_layers} encoder, {self._config.decoder_layers} decoder layers).",
          hint="is it the config.json that belongs to the weights?",
        )
    return params
