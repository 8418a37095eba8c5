"""Splits on disk: a folder of shards that appears whole, read by index (see `mtx.data.cache`)."""

import errno
import functools
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from jaxtyping import Int32

from mtx.data.records import Records, file_hash, numbers_of, write_records
from mtx.errors import UserError

FORMAT = 3
OPEN_FILES = 256  # readers that are open at once, however many tasks there are
STORED = {"inputs": np.int32, "targets": np.int32, "weights": np.uint8}
SIDES = ("inputs", "targets")
REBUILD = "delete the folder; the next run builds it again"
Example = dict[str, Any]


def digest(ingredients: Any) -> str:
  """A short hash of JSON-able `ingredients`."""
  text = json.dumps(ingredients, sort_keys=True, ensure_ascii=False)
  return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


class CachedSplit:
  """A sequence of examples, each {"inputs": int32[n], "targets": int32[m], "id", "references", "text"}.

  Tokens are as the task's preprocessors left them: not truncated, EOS included. `text` is the input as text; it is
  empty, as `references` are, of training examples that came as token ids. Some tasks add `options` (list of text) and
  `weights` (uint8[m], 1 where the loss counts a target token).
  """

  def __init__(self, folder: Path):
    self.folder = Path(folder)

  @cached_property
  def manifest(self) -> dict[str, Any]:
    """Raises UserError when the folder is gone or damaged, or another version of mtx wrote it."""
    path = self.folder / "manifest.json"
    if not path.is_file():
      raise UserError(f"{path} is not there, but the cache's index names it", hint="build the cache again")
    try:
      manifest = json.loads(path.read_text(encoding="utf-8"))
      version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f"{path} is damaged: {error}", hint=REBUILD) from error
    if version != FORMAT:
      raise UserError(f"{path} has cache format {version}, this mtx reads {FORMAT}", hint="build the cache again")
    for name, (size, _) in manifest["files"].items():
      found = (self.folder / name).stat().st_size if (self.folder / name).is_file() else 0
      if found != size:
        raise UserError(f"{self.folder / name} is damaged: it has {found} of {size} bytes", hint=REBUILD)
    return manifest

  @cached_property
  def lengths(self) -> Int32[np.ndarray, "examples 2"]:
    """Tokens of inputs and targets of every example, EOS included."""
    shards = self.manifest["shards"]
    found = np.empty((len(self), 2), np.int32)
    for shard in range(shards):
      name = _name(shard)
      try:
        numbers, table = numbers_of(self.folder / name, len(found[shard::shards]))
      except (OSError, ValueError, RuntimeError, IndexError) as error:  # array_record has its own kinds
        raise self._damaged(name) from error
      if table != self.manifest["tables"][name]:
        raise self._damaged(name)
      found[shard::shards] = numbers
    return found

  def __getstate__(self) -> dict[str, Any]:
    return {"folder": self.folder}  # what was read stays here when a split goes to another process

  def __len__(self) -> int:
    return self.manifest["count"]

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(f"example {index} of {len(self)} in {self.folder}")
    shards = self.manifest["shards"]
    place, shard = divmod(int(index), shards)
    name = _name(shard)
    self._verify(name)
    record = msgpack.unpackb(_opened(self.folder / name).read(place))
    for field, dtype in STORED.items():
      if field in record:
        record[field] = np.frombuffer(record[field], dtype)
    return record

  @cached_property
  def _verified(self) -> set[str]:
    return set()

  def _verify(self, name: str) -> None:
    """Compares a file with its hash, the first time that it is read.

    Raises:
      UserError: they differ.
    """
    if name not in self._verified:
      if file_hash(self.folder / name) != self.manifest["files"][name][1]:
        raise self._damaged(name)
      self._verified.add(name)

  def _damaged(self, name: str) -> UserError:
    return UserError(f"{self.folder / name} is damaged: its content does not match its checksum", hint=REBUILD)


_opened = functools.lru_cache(maxsize=OPEN_FILES)(Records)


class CachedSubset(CachedSplit):
  """Some examples of a split.

  Args:
    rows: their positions in it, ascending.
  """

  def __init__(self, folder: Path, rows: Sequence[int]):
    super().__init__(folder)
    self.rows = tuple(rows)
    self._whole = CachedSplit(folder)

  def __reduce__(self):
    return CachedSubset, (self.folder, self.rows)

  @cached_property
  def manifest(self) -> dict[str, Any]:
    """Of the split, but for what is counted."""
    tokens, longest = self.lengths.sum(axis=0, dtype=np.int64), self.lengths.max(axis=0, initial=0)
    counts = {"tokens": dict(zip(SIDES, tokens.tolist(), strict=True)), "count": len(self)}
    return self._whole.manifest | counts | {"longest": dict(zip(SIDES, longest.tolist(), strict=True))}

  @cached_property
  def lengths(self) -> Int32[np.ndarray, "examples 2"]:
    return self._whole.lengths[list(self.rows)]

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: int) -> Example:
    if not 0 <= index < len(self):
      raise IndexError(f"example {index} of {len(self)} of a subset of {self.folder}")
    return self._whole[self.rows[int(index)]]


def write_split(
  folder: Path, examples: Iterable[Example], *, fingerprint: str, ingredients: Any, left_out: Sequence[Any] = ()
) -> CachedSplit:
  """Writes `examples` as one shard, so that `folder` appears complete or not at all, by one rename.

  Args:
    folder: of the split; its parent is made. When it exists already, it is kept and nothing is written.
    examples: dictionaries with the fields of `CachedSplit`.
    fingerprint, ingredients: kept in the manifest, so that a later build can say what changed.
    left_out: (place, reason) of rows that could not be used, complete when `examples` are read to their end.

  Raises:
    UserError: the disk is full, or the folder can not be written.
  """
  if folder.is_dir():
    return CachedSplit(folder)
  unfinished = folder.with_name(f".{uuid.uuid4().hex}-{folder.name}")
  with written(folder):
    try:
      os.mkdir(unfinished)
    except FileNotFoundError:
      folder.parent.mkdir(parents=True, exist_ok=True)
      os.mkdir(unfinished)
    try:
      summary = _write(examples, f"{unfinished}/{_name(0)}", _name(0), left_out)
      manifest = _manifest([summary], fingerprint, ingredients)
      with open(f"{unfinished}/manifest.json", "xb") as file:
        file.write(manifest)
      os.rename(unfinished, folder)
    except BaseException as error:
      shutil.rmtree(unfinished, ignore_errors=True)
      if not (isinstance(error, OSError) and folder.is_dir()):  # otherwise another process was the first
        raise
  return CachedSplit(folder)


def write_shard(
  folder: Path, shard: int, shards: int, examples: Iterable[Example], left_out: Sequence[Any] = ()
) -> None:
  """Writes one of several shards beside `folder`, unless it or the whole folder is there already.

  Raises:
    UserError: the disk is full, or the folder can not be written.
  """
  parts = _parts(folder, shards)
  done = parts / f"shard-{shard:05}.json"
  if folder.is_dir() or done.is_file():
    return
  names = [_name(shard), done.name]
  with written(folder), _unfinished(folder.parent, names) as files:
    summary = _write(examples, files[names[0]], names[0], left_out)
    Path(files[done.name]).write_bytes(json.dumps(summary, ensure_ascii=False).encode())
    try:
      parts.mkdir(exist_ok=True)
      for name in names:  # the summary is the last: it says that the other is whole
        os.replace(files[name], f"{parts}/{name}")
    except FileNotFoundError:
      if not folder.is_dir():  # otherwise another process finished the split meanwhile
        raise


def finish_split(folder: Path, shards: int, *, fingerprint: str, ingredients: Any) -> CachedSplit:
  """Makes a split of its shards, all of which are written."""
  parts = _parts(folder, shards)
  with written(folder):
    try:
      summaries = [json.loads((parts / f"shard-{i:05}.json").read_text(encoding="utf-8")) for i in range(shards)]
      replace(parts / "manifest.json", _manifest(summaries, fingerprint, ingredients))
      parts.rename(folder)
    except OSError:
      if not folder.is_dir():  # otherwise another process built the same fingerprint first
        raise
      shutil.rmtree(parts, ignore_errors=True)
  return CachedSplit(folder)


def _name(shard: int) -> str:
  return f"examples-{shard:05}.array_record"


def _write(examples: Iterable[Example], path: str, name: str, left_out: Sequence[Any]) -> dict[str, Any]:
  """Writes a shard's file; returns its part of the manifest.

  Args:
    name: of the file in the end.
  """
  pack = msgpack.Packer().pack

  def records() -> Iterator[tuple[bytes, int, int]]:
    for example in examples:
      record = dict(example)
      for field, dtype in STORED.items():
        if field in record:
          record[field] = np.asarray(record[field], dtype).tobytes()
      yield pack(record), len(example["inputs"]), len(example["targets"])

  written = write_records(path, records())
  lengths = written.numbers
  return {
    "files": {name: written.content},
    "tables": {name: written.table},
    "count": len(lengths),
    "tokens": lengths.sum(axis=0, dtype=np.int64).tolist(),
    "longest": lengths.max(axis=0, initial=0).tolist(),
    "left_out": [list(each) for each in left_out],
  }


def _manifest(summaries: Sequence[Mapping[str, Any]], fingerprint: str, ingredients: Any) -> bytes:
  """Of a split whose shards are all written."""
  manifest = {
    "format": FORMAT,
    "count": sum(summary["count"] for summary in summaries),
    "shards": len(summaries),
    "tokens": {side: sum(summary["tokens"][i] for summary in summaries) for i, side in enumerate(SIDES)},
    "longest": {side: max(summary["longest"][i] for summary in summaries) for i, side in enumerate(SIDES)},
    "left_out": summaries[0]["left_out"],  # every shard reads all rows
    "files": {name: entry for summary in summaries for name, entry in summary["files"].items()},
    "tables": {name: entry for summary in summaries for name, entry in summary["tables"].items()},
    "fingerprint": fingerprint,
    "ingredients": ingredients,
  }
  return json.dumps(manifest, ensure_ascii=False).encode()


def _parts(folder: Path, shards: int) -> Path:
  # Another number of shards is another set of parts.
  return folder.with_name(f"{folder.name}.parts-{shards}")


@contextmanager
def _unfinished(parent: Path, names: Iterable[str]) -> Iterator[dict[str, str]]:
  """Name -> hidden path for a file that is not whole yet; what still lies there in the end is removed.

  They have no folder of their own: to make and remove one takes as long as to write a small split.
  """
  parent.mkdir(parents=True, exist_ok=True)
  prefix = f"{parent}/.{uuid.uuid4().hex}-"
  files = {name: prefix + name for name in names}
  try:
    yield files
  finally:
    for file in files.values():
      with suppress(FileNotFoundError):
        os.unlink(file)


@contextmanager
def written(path: Path) -> Iterator[None]:
  """Turns what a file system refuses into a message."""
  try:
    yield
  except (OSError, ValueError, RuntimeError) as error:  # array_record has its own kinds
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
      raise UserError(f"{path} can not be written: the disk is full", hint="make room; the build goes on") from error
    if (
      isinstance(error, OSError)
      and error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR)
      and str(error.filename).startswith(str(path.parent))  # not a file of the data that is read
    ):
      raise UserError(
        f"{path} can not be written: {error.strerror}", hint="choose another train.cache_dir, or let it be written to"
      ) from error
    raise


def replace(path: Path, content: bytes) -> None:
  """Writes a file by one rename."""
  temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
  with written(path):
    try:
      temporary.write_bytes(content)
    except FileNotFoundError:  # no such folder yet
      path.parent.mkdir(parents=True, exist_ok=True)
      temporary.write_bytes(content)
    os.replace(temporary, path)
