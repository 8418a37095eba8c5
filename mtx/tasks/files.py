"""Data files as lines, records and tables; what is wrong in one is said with file, line and column."""

import codecs
import csv
import functools
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from mtx.errors import UserError, did_you_mean
from mtx.tasks.task import Reading

BYTE_ORDER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class DataFile:
  """A file that a task reads; `.gz` is decompressed. Lines and rows are read as they are asked for.

  Bound to a task's `rows`, it brings its content into the cache's fingerprint.
  """

  path: Path

  @property
  def name(self) -> str:
    """Of file and folder: enough to find it, and free of where the data lies."""
    return f"{self.path.parent.name}/{self.path.name}"

  def fingerprint(self) -> str:
    """Hash of the content."""
    stat = self.path.stat()
    return _hash(self.path, stat.st_size, stat.st_mtime_ns)

  def text(self) -> str:
    """The whole content.

    Raises:
      UserError: the file can not be read, or is not UTF-8 (byte, line and column are named).
    """
    with self._opened() as stream:
      content = stream.read()
    try:
      return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
      before = error.object[: error.start]  # without the byte order mark
      byte = error.start + len(content) - len(error.object)
      line, column = before.count(b"\n") + 1, _column(before.rpartition(b"\n")[2])
      raise UserError(
        f"{self.name} is not UTF-8: byte {byte}, line {line}, column {column}",
        hint=f"convert it: iconv -f {'UTF-16' if content.startswith(BYTE_ORDER_MARKS) else 'LATIN1'} -t UTF-8",
      ) from error

  @contextmanager
  def decoded(self, newline: str = "\n") -> Iterator[TextIO]:
    """The content as a stream of text. Lines keep their ends.

    Args:
      newline: "" if lines end with any of \\n, \\r and \\r\\n.

    Raises:
      UserError: see `text`; what is not UTF-8 is found when it is reached.
    """
    with self._opened() as stream:
      try:
        yield io.TextIOWrapper(stream, "utf-8-sig", newline=newline)
      except UnicodeDecodeError:
        self.text()  # says where
        raise

  def json(self) -> Any:
    """The content of a file that is one JSON value.

    Raises:
      UserError: it is not JSON (line and column are named), or has half a character.
    """
    text = self.text()
    try:
      value = json.loads(text)
    except json.JSONDecodeError as error:
      raise UserError(f"{self.name}: line {error.lineno}, column {error.colno}: {error.msg}") from error
    if reason := _half_characters(text, value):
      raise UserError(f"{self.name}: {reason}")
    return value

  def lines(self, reading: Reading, *, start: int = 0, stop: int | None = None) -> Iterator[tuple[str, str]]:
    """(place, line without its end) of every line that is not empty; one that is not UTF-8 goes to `reading.skip`.

    Args:
      reading: decides about bad lines.
      start, stop: only these of the `count()` lines, as in a slice; the others may be bad.
    """
    with self._opened() as stream:
      numbered = ((number, raw) for number, raw in enumerate(stream, 1) if raw.strip())
      for number, raw in itertools.islice(numbered, start, stop):
        place = f"{self.name}:{number}"
        try:
          line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
          reading.skip(place, f"not UTF-8 at column {_column(error.object[: error.start])}")
          continue
        if line.strip():
          yield place, line

  def jsonl(
    self,
    fields: Mapping[str, type | tuple[type, ...]],
    reading: Reading,
    *,
    start: int = 0,
    stop: int | None = None,
  ) -> Iterator[tuple[str, dict]]:
    """(place, object) of every line of a JSON-lines file; lines without the fields go to `reading.skip`.

    Args:
      fields: name -> type that every object must have.
      reading: decides about bad lines.
      start, stop: only these of the lines, see `lines`.
    """
    for place, line in self.lines(reading, start=start, stop=stop):
      try:
        record = json.loads(line)
      except json.JSONDecodeError as error:
        reading.skip(place, f"column {error.colno}: not JSON: {error.msg}")
        continue
      if reason := lacks(record, fields) or _half_characters(line, record):
        reading.skip(place, reason)
        continue
      yield place, record

  def tsv(self, columns: Sequence[str], reading: Reading) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, column -> value) of every line of a tab-separated file without header or quoting."""
    for place, line in self.lines(reading):
      values = line.split("\t")
      if len(values) != len(columns):
        reading.skip(place, f"{len(values)} columns, {len(columns)} are wanted ({', '.join(columns)})")
        continue
      yield place, dict(zip(columns, values, strict=True))

  def csv(self, columns: Sequence[str], reading: Reading) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, column -> value) of every row of a CSV file with a header that has `columns` (RFC 4180).

    Raises:
      UserError: the header lacks a column, or is no CSV.
    """
    with self.decoded(newline="") as text:
      table = csv.reader(text, strict=True)
      header = self._header(table)
      if missing := [c for c in columns if c not in header]:
        raise UserError(f"{self.name}:1 has no column {missing[0]!r}", hint=f"columns: {', '.join(header) or 'none'}")
      while True:
        place = f"{self.name}:{table.line_num + 1}"
        try:
          values = next(table)
        except StopIteration:
          return
        except csv.Error as error:
          reading.skip(place, f"not CSV: {error}")
          continue
        if not values:
          continue
        if len(values) != len(header):
          reading.skip(place, f"{len(values)} columns, the header has {len(header)}")
          continue
        yield place, dict(zip(header, values, strict=True))

  def csv_header(self) -> list[str]:
    """Columns of a CSV file; none of an empty one.

    Raises:
      UserError: it is no CSV.
    """
    with self.decoded(newline="") as text:
      return self._header(csv.reader(text, strict=True))

  def _header(self, table: Iterator[list[str]]) -> list[str]:
    try:
      return next(table, [])
    except csv.Error as error:
      raise UserError(f"{self.name}:1: not CSV: {error}") from error

  def count(self) -> int:
    """Lines that are not empty; a quoted CSV field may have several."""
    with self._opened() as stream:
      return sum(1 for line in stream if line.strip())

  @contextmanager
  def _opened(self) -> Iterator[BinaryIO]:
    """The content as a stream of bytes; what goes wrong while it is read is said."""
    try:
      if self.path.suffix == ".gz":
        with gzip.open(self.path) as packed, io.BufferedReader(packed, 1 << 16) as stream:
          yield stream
      else:
        with self.path.open("rb") as stream:
          yield stream
    except FileNotFoundError:
      raise UserError(f"{self.path} is not there") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
      raise UserError(f"{self.name} is not a whole gzip file: {error}", hint="copy it again") from error
    except OSError as error:  # a folder, a file of another user
      raise UserError(f"{self.path} can not be read: {error.strerror}") from error


def plain_or_packed(root: Path, name: str) -> DataFile:
  """A folder's file of that name, or `<name>.gz` where there is none."""
  return DataFile(root / name if (root / name).exists() else root / f"{name}.gz")


def lacks(record: Any, fields: Mapping[str, type | tuple[type, ...]]) -> str:
  """What `record` lacks of `fields`, in words; empty when nothing."""
  if not isinstance(record, dict):
    return f"not an object but {type(record).__name__}"
  for field, kind in fields.items():
    if field not in record:
      return f"no field {field!r} (fields: {', '.join(record)})"
    if not isinstance(record[field], kind) or (isinstance(record[field], bool) and kind in (int, float)):
      names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
      return f"field {field!r} is {type(record[field]).__name__}, not {names}"
  return ""


def chosen(binding: str, written: Sequence[str], valid: Iterable[str]) -> tuple[str, ...]:
  """What a binding lists of the valid names.

  Raises:
    UserError: a name that is not valid (the near ones are named), or something else where a list of names belongs.
  """
  valid = tuple(valid)
  if isinstance(written, str) or not isinstance(written, Iterable):
    raise UserError(f"{binding} is {written!r}, not a list of names", hint=f"write [{written!r}]")
  for name in written:
    if name not in valid:
      raise UserError(f"{binding}: {name!r} is not known", hint=did_you_mean(str(name), valid))
  return tuple(written)


def located(path: str | Path) -> Path:
  """A path that a config names; if it is relative and not there, it is looked for under $MTX_DATA."""
  if not isinstance(path, (str, Path)):
    raise UserError(f"{path!r} is not a path", hint="paths are text: 'folder/file'")
  found = Path(path).expanduser()
  under = Path(os.environ.get("MTX_DATA", "")).expanduser() / found
  return under if not found.exists() and under.exists() else found


def sought(path: Path) -> str:
  """Where else `located` looked for a path that is not there; empty for an absolute one."""
  if path.is_absolute():
    return ""
  under = os.environ.get("MTX_DATA")
  return (
    f"nor is it in $MTX_DATA, {under}" if under else "relative paths are looked for in $MTX_DATA too: it is not set"
  )


def folder(binding: str, path: str | Path, *contains: str) -> Path:
  """The folder that a binding names (see `located`), if everything in `contains` (file names or globs) lies in it.

  Raises:
    UserError: no such folder, or it lacks something; the binding is named.
  """
  if not isinstance(path, (str, Path)):
    raise UserError(f"{binding} is {path!r}, not the path of a folder")
  root = located(path)
  if not root.is_dir():
    raise UserError(f"{binding} is {str(path)!r}: there is no such folder", hint=sought(root))
  for pattern in contains:
    if not any(root.glob(pattern)):
      raise UserError(f"{binding} is {str(path)!r}: it holds no {pattern}")
  return root


def _column(before: bytes) -> int:
  """Of the character after these bytes of a line, from 1."""
  return len(before.decode()) + 1


_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _half_characters(text: str, value: Any) -> str:
  """Why JSON `text`, whose value is `value`, can not be written as UTF-8; empty when it can.

  A string cut between the two escapes of an emoji is valid JSON, and no tokenizer takes it.
  """
  if _ESCAPED_SURROGATE.search(text):
    try:
      json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
      return f"a string has half a character: \\u{ord(error.object[error.start]):04x}"
  return ""


@functools.cache
def _hash(path: Path, size: int, mtime_ns: int) -> str:
  # Size and time are in the key, so that a file that changed in this process is read again.
  with path.open("rb") as file:
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=10)).hexdigest()
