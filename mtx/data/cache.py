"""Tokenised examples on disk: read by index, without TensorFlow, under a fingerprint of what made them.

    <cache>/<mixture>.json                    index: tasks, rates, vocabulary, folder of every split
    <cache>/vocabularies/<hash>.model
    <cache>/tasks/<task>/<split>-<fingerprint>/
        examples.array_record                 one msgpack record an example, any of them in microseconds
        lengths.npy                           int32 [examples, 2]: tokens of inputs and of targets
        manifest.json                         fingerprint, its ingredients, counts

Two settings of one task have two folders, so neither run disturbs the other. Folders appear by one rename.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from array_record.python import array_record_module
from jaxtyping import Int32

from mtx.data.vocabulary import Vocabulary
from mtx.errors import UserError, did_you_mean

FORMAT = 1
Example = dict[str, Any]


def digest(ingredients: Any) -> str:
  """A short hash of JSON-able `ingredients`."""
  text = json.dumps(ingredients, sort_keys=True, ensure_ascii=False)
  return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


class CachedSplit:
  """A sequence of examples, each {"inputs": int32[n], "targets": int32[m], "id", "references", "text"}.

  Tokens are as the task's preprocessors left them: not truncated, EOS included. `text` is the input as text.
  """

  def __init__(self, folder: Path):
    self.folder = Path(folder)

  @cached_property
  def manifest(self) -> dict[str, Any]:
    """Raises UserError when the folder is gone or another version of mtx wrote it."""
    path = self.folder / "manifest.json"
    if not path.is_file():
      raise UserError(f"{path} is not there, but the cache's index names it", hint="build the cache again")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if manifest["format"] != FORMAT:
      raise UserError(
        f"{path} has cache format {manifest['format']}, this mtx reads {FORMAT}", hint="build the cache again"
      )
    return manifest

  @cached_property
  def lengths(self) -> Int32[np.ndarray, "examples 2"]:
    """Tokens of inputs and targets of every example, EOS included."""
    return np.load(self.folder / "lengths.npy")

  @cached_property
  def _reader(self) -> array_record_module.ArrayRecordReader:
    # Access is random: reading ahead would only spend memory.
    return array_record_module.ArrayRecordReader(str(self.folder / "examples.array_record"), "readahead_buffer_size:0")

  def __getstate__(self) -> dict[str, Any]:
    return {"folder": self.folder}  # an open reader can not go to another process

  def __len__(self) -> int:
    return self.manifest["count"]

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(f"example {index} of {len(self)} in {self.folder}")
    record = msgpack.unpackb(self._reader.read([int(index)])[0])
    record["inputs"] = np.frombuffer(record["inputs"], np.int32)
    record["targets"] = np.frombuffer(record["targets"], np.int32)
    return record


@dataclass(frozen=True)
class CachedTask:
  """One task's examples, and what evaluation must know of it. `fingerprint` covers all its splits."""

  name: str
  category: str
  metrics: tuple[str, ...]
  fingerprint: str
  splits: Mapping[str, CachedSplit]


@dataclass(frozen=True)
class CachedMixture:
  """Tasks to draw from. A task's id in a batch is its index in `tasks`; `rates` sum to 1."""

  name: str
  tasks: tuple[CachedTask, ...]
  rates: tuple[float, ...]
  vocabulary: Vocabulary

  @cached_property
  def fingerprint(self) -> str:
    """Of everything a feed reads: the tasks in order, their examples and rates."""
    return digest([[task.name, task.fingerprint, rate] for task, rate in zip(self.tasks, self.rates, strict=True)])


def write_split(folder: Path, examples: Iterable[Example], *, fingerprint: str, ingredients: Any) -> CachedSplit:
  """Writes `examples` so that `folder` appears complete or not at all.

  Args:
    folder: of the split; its parent is made. When it exists already, it is kept and nothing is written.
    examples: dictionaries with the five fields of `CachedSplit`.
    fingerprint, ingredients: kept in the manifest, so that a later build can say what changed.
  """
  temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
  temporary.mkdir(parents=True)
  try:
    writer = array_record_module.ArrayRecordWriter(str(temporary / "examples.array_record"), "group_size:1")
    lengths = []
    for example in examples:
      inputs, targets = (np.ascontiguousarray(example[name], np.int32) for name in ("inputs", "targets"))
      lengths.append((len(inputs), len(targets)))
      writer.write(msgpack.packb({**example, "inputs": inputs.tobytes(), "targets": targets.tobytes()}))
    writer.close()
    table = np.asarray(lengths, np.int32).reshape(-1, 2)
    np.save(temporary / "lengths.npy", table)
    manifest = {
      "format": FORMAT,
      "count": len(table),
      "tokens": {"inputs": int(table[:, 0].sum()), "targets": int(table[:, 1].sum())},
      "longest": {"inputs": int(table[:, 0].max(initial=0)), "targets": int(table[:, 1].max(initial=0))},
      "fingerprint": fingerprint,
      "ingredients": ingredients,
    }
    (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
    try:
      temporary.rename(folder)
    except OSError:
      if not folder.is_dir():  # otherwise another process built the same fingerprint first
        raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return CachedSplit(folder)


def keep_vocabulary(cache_dir: Path, vocabulary: Vocabulary) -> Vocabulary:
  """The same vocabulary with its file inside the cache, so that the cache can be moved to another machine."""
  if vocabulary.path is None:
    return vocabulary
  target = cache_dir / "vocabularies" / f"{vocabulary.fingerprint}.model"
  if not target.exists():
    _replace(target, Path(vocabulary.path).read_bytes())
  return Vocabulary(vocabulary.kind, target, vocabulary.extra_ids)


def write_index(cache_dir: Path, mixture: CachedMixture) -> None:
  """Replaces `<cache_dir>/<mixture>.json`. Paths in it are relative to `cache_dir`."""
  tasks = [
    {
      "name": task.name,
      "category": task.category,
      "metrics": list(task.metrics),
      "fingerprint": task.fingerprint,
      "splits": {name: split.folder.relative_to(cache_dir).as_posix() for name, split in task.splits.items()},
    }
    for task in mixture.tasks
  ]
  index = {
    "format": FORMAT,
    "name": mixture.name,
    "vocabulary": mixture.vocabulary.to_json(cache_dir),
    "rates": list(mixture.rates),
    "tasks": tasks,
  }
  _replace(cache_dir / f"{mixture.name}.json", json.dumps(index, indent=1).encode())


def open_mixture(cache_dir: str | Path, name: str) -> CachedMixture:
  """The mixture that was last built under `name`. Reads the index only; examples are read when asked for.

  Raises:
    UserError: no such mixture (lists near names), an index of another format, or a vocabulary file that is
      gone.
  """
  root = Path(cache_dir)
  path = root / f"{name}.json"
  if not path.is_file():
    hint = did_you_mean(name, (p.stem for p in root.glob("*.json")))
    raise UserError(f"no mixture {name!r} in the cache {root}", hint=hint)
  try:
    index = json.loads(path.read_text(encoding="utf-8"))
    version = index["format"]
  except (json.JSONDecodeError, KeyError, TypeError) as error:
    raise UserError(f"{path} is not the index of a cached mixture", hint="build the cache again") from error
  if version != FORMAT:
    raise UserError(f"{path} has cache format {version}, this mtx reads {FORMAT}", hint="build the cache again")
  tasks = tuple(
    CachedTask(
      name=task["name"],
      category=task["category"],
      metrics=tuple(task["metrics"]),
      fingerprint=task["fingerprint"],
      splits={split: CachedSplit(root / folder) for split, folder in task["splits"].items()},
    )
    for task in index["tasks"]
  )
  vocabulary = Vocabulary.from_json(index["vocabulary"], root)
  return CachedMixture(index["name"], tasks, tuple(index["rates"]), vocabulary)


def _replace(path: Path, content: bytes) -> None:
  """Writes a file by one rename."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
  temporary.write_bytes(content)
  os.replace(temporary, path)
