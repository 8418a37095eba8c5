"""The project's own model folder: what `mtx import` writes and what a finished run leaves.

FOLDER/model.json     format, config, family, vocabulary, adapters, tasks, where it comes from
FOLDER/params/        safetensors under our own names, a tensor a layer, every parameter in its own dtype; written a
                      tensor at a time and read onto any mesh, each device its part
FOLDER/vocabulary/    the vocabulary's files and a pre-trained model's settings, as they came
"""

import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding
from ml_collections import ConfigDict

from mtx.adapters.site import Injection
from mtx.data.vocabulary import Vocabulary
from mtx.errors import UserError
from mtx.models.config import config as model_config
from mtx.models.families.family import Name
from mtx.pretrained.stream import exported, read_params, write_folder
from mtx.pretrained.tensors import open_tensors
from mtx.tokens.folder import FILES
from mtx.training.parameters import Params

FORMAT = 2
INDEX, PARAMS, VOCABULARY = "model.json", "params", "vocabulary"


@dataclass(frozen=True)
class Card:
  """All of a model but its arrays.

  Attributes:
    config: sizes, with `architecture` and `vocab_size`.
    family: name of its family; None for a model that no family's checkpoint began.
    vocabulary: None where nothing says which one it is.
    injections: how adapters were hung on it, in order.
    tasks: names of the routers' rows; () without routers.
    hugging_face: the config.json that it came with.
    files: folder of the vocabulary's files and settings, as they came.
    source: where it comes from, for people.
  """

  config: ConfigDict
  family: str | None = None
  vocabulary: Vocabulary | None = None
  injections: tuple[Injection, ...] = ()
  tasks: tuple[str, ...] = ()
  hugging_face: Mapping[str, Any] = field(default_factory=dict)
  files: Path | None = None
  source: Mapping[str, Any] = field(default_factory=dict)


def write_native(folder: str | Path, card: Card, params: Mapping[str, jax.Array], *, overwrite: bool = False) -> Path:
  """Writes a model's folder, which appears when it is whole.

  Args:
    overwrite: an older folder is taken away when the new one is whole; otherwise it is an error.

  Raises:
    UserError: the folder exists, or adapters that can not be built again from a description.
  """
  folder = Path(folder)
  if folder.exists() and not overwrite:
    raise UserError(f"{folder} exists already.", hint="choose another folder, or move it away")
  for each in card.injections:
    if each.method is None:
      raise UserError(
        f"the adapters at {each.pattern!r} can not be described, so the model could not be opened again.",
        hint="make their class `@gin.configurable` and give it numbers and texts only",
      )
  unfinished = folder.with_name(f".{folder.name}.unfinished")
  if jax.process_index() == 0:
    shutil.rmtree(unfinished, ignore_errors=True)  # of an attempt that was killed
    (unfinished / VOCABULARY).mkdir(parents=True)
    index = _entry(replace(card, vocabulary=_copied(card, unfinished)), unfinished)
    (unfinished / INDEX).write_text(json.dumps(index, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
  write_folder(unfinished / PARAMS, exported(params, _names(params)))
  if jax.process_index() == 0:
    _move(unfinished, folder)
  return folder


def _move(new: Path, folder: Path) -> None:
  """Puts a finished folder in its place; what was there is removed last."""
  if not folder.exists():
    os.rename(new, folder)
    return
  old = folder.with_name(f".{folder.name}.old")
  shutil.rmtree(old, ignore_errors=True)
  os.rename(folder, old)
  os.rename(new, folder)
  shutil.rmtree(old)


def _copied(card: Card, folder: Path) -> Vocabulary | None:
  """The vocabulary with its file in the folder, beside the settings that a model came with."""
  here = folder / VOCABULARY
  for name in FILES if card.files is not None else ():
    if (file := Path(card.files or "") / name).is_file():
      shutil.copyfile(file, here / name)
  known = card.vocabulary
  if known is None or known.path is None:
    return known
  copy = here / Path(known.path).name
  if copy.exists() and copy.read_bytes() != Path(known.path).read_bytes():
    copy = here / f"data-{copy.name}"
  shutil.copyfile(known.path, copy)
  return replace(known, path=copy)


def _entry(card: Card, root: Path) -> dict[str, Any]:
  return {
    "format": FORMAT,
    "config": card.config.to_dict(),
    "family": card.family,
    "vocabulary": None if card.vocabulary is None else card.vocabulary.to_json(root),
    "adapters": [asdict(each) for each in card.injections],
    "tasks": list(card.tasks),
    "hugging_face": dict(card.hugging_face),
    "source": dict(card.source),
  }


def read_card(folder: Path) -> Card:
  """Inverse of `write_native`, without arrays.

  Raises:
    UserError: the index is damaged, or of another format than this program writes.
  """
  place = folder / INDEX
  try:
    entry = json.loads(place.read_text(encoding="utf-8"))
    if entry["format"] != FORMAT:
      way = "use a newer mtx" if entry["format"] > FORMAT else "import or train the model again"
      raise UserError(f"{place} has format {entry['format']}, and this mtx reads {FORMAT}.", hint=way)
    fields = {name: tuple(v) if isinstance(v, list) else v for name, v in entry["config"].items()}
    architecture = fields.pop("architecture")
    sizes = model_config(**fields)
    sizes.architecture = architecture
    return Card(
      config=sizes,
      family=entry["family"],
      vocabulary=None if entry["vocabulary"] is None else Vocabulary.from_json(entry["vocabulary"], folder),
      injections=tuple(Injection(**each) for each in entry["adapters"]),
      tasks=tuple(entry["tasks"]),
      hugging_face=entry["hugging_face"],
      files=folder / VOCABULARY,
      source=entry["source"],
    )
  except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
    raise UserError(f"{place} can not be read: {error!r}.", hint="copy or import the model again") from error


class Saved:
  """The arrays of a native folder."""

  unused: tuple[str, ...] = ()

  def __init__(self, folder: Path):
    if not (folder / PARAMS).is_dir():
      raise UserError(f"{folder} lacks {PARAMS}/.", hint="copy or import the model again")
    self._tensors = open_tensors(folder / PARAMS)

  def stored(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """Those of `shapes` that are here, with shape and dtype as they are here."""
    here: dict[str, list[str]] = defaultdict(list)
    for name in self._tensors:
      here[re.sub(r"/layers/\d+/", "/layers/", name, count=1)].append(name)
    found = {}
    for path in shapes.keys() & here.keys():
      one, layers = self._tensors[here[path][0]], (len(here[path]),) if _stacked(path) else ()
      found[path] = jax.ShapeDtypeStruct((*layers, *one.shape), np.dtype(one.dtype))
    return {path: found[path] for path in shapes if path in found}

  def read(self, shapes: Mapping[str, jax.ShapeDtypeStruct], shardings: Mapping[str, Sharding]) -> Params:
    """Parameters with the dtypes of `shapes`, each device its part."""
    params, report = read_params(self._tensors, _names(shapes), shapes, shardings)
    report.check(self._tensors.path)
    return params


def _stacked(path: str) -> bool:
  """Whether a parameter has a leading axis of layers."""
  return "/layers/" in path


def _names(paths: Iterable[str]) -> list[Name]:
  return [Name(path, path.replace("/layers/", "/layers/{layer}/", 1)) for path in paths]
