"""The project's own model folder: what `mtx import` writes and what a finished run leaves.

FOLDER/model.json     format, config, family, vocabulary, adapters, tasks, where it comes from
FOLDER/params/        Orbax, every parameter in its own dtype; read onto any mesh, each device its part
FOLDER/vocabulary/    the vocabulary's files and a pre-trained model's settings, as they came
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding
from ml_collections import ConfigDict

from mtx.adapters.site import Injection
from mtx.data.vocabulary import Vocabulary
from mtx.errors import UserError
from mtx.models.config import config as model_config
from mtx.tokens.folder import FILES
from mtx.training.parameters import Params

FORMAT = 1
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
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save((unfinished / PARAMS).absolute(), {_name(path): value for path, value in params.items()})
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
    UserError: the index is damaged, or of a format that is newer than this program.
  """
  place = folder / INDEX
  try:
    entry = json.loads(place.read_text(encoding="utf-8"))
    if entry["format"] > FORMAT:
      raise UserError(f"{place} has format {entry['format']}, this mtx knows {FORMAT}.", hint="use a newer mtx")
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
    self._folder = (folder / PARAMS).absolute()
    if not self._folder.is_dir():
      raise UserError(f"{folder} lacks {PARAMS}/.", hint="copy or import the model again")

  def stored(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """Those of `shapes` that are here, with shape and dtype as they are here."""
    with ocp.StandardCheckpointer() as checkpointer:
      saved = checkpointer.metadata(self._folder).item_metadata
    here = {name: saved[name] for name in saved}
    return {
      path: jax.ShapeDtypeStruct(tuple(here[_name(path)].shape), np.dtype(here[_name(path)].dtype))
      for path in shapes
      if _name(path) in here
    }

  def read(self, shapes: Mapping[str, jax.ShapeDtypeStruct], shardings: Mapping[str, Sharding]) -> Params:
    """Parameters with the dtypes of `shapes`, each device its part."""
    if not shapes:
      return {}
    one = lambda path, s: ocp.ArrayRestoreArgs(
      dtype=s.dtype, sharding=shardings[path], global_shape=s.shape, shape=s.shape
    )
    target = {_name(path): s for path, s in shapes.items()}
    arguments = {_name(path): one(path, s) for path, s in shapes.items()}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
      args = ocp.args.PyTreeRestore(item=target, restore_args=arguments, partial_restore=True)
      found = checkpointer.restore(self._folder, args=args)
    return {path: found[_name(path)] for path in shapes}


def _name(path: str) -> str:
  """A file name can not hold a slash."""
  return path.replace("/", ".")
