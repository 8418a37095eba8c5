"""Records in an ArrayRecord file, with two numbers of each: what a reader wants to know of all before it reads any.

The numbers, int32[n, 2], are the file's last record. A file of their own would double the time that small splits take.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import Int32

# One record is read at a time. Compressed, it would take a third of the space, ten times as long to write and twice as
# long to read.
WRITER, READER = "group_size:1,uncompressed", "readahead_buffer_size:0"


@dataclass(frozen=True)
class Written:
  """A file of records that was written.

  Attributes:
    content: its bytes, and the hash of all of it.
    table: hash of the numbers.
    numbers: of every record.
  """

  content: tuple[int, str]
  table: str
  numbers: Int32[np.ndarray, "records 2"]


def write_records(path: str, records: Iterable[tuple[bytes, int, int]]) -> Written:
  """Writes a new file for `Records` to read. Of each record come its bytes and two numbers."""
  writer = ArrayRecordWriter(path, WRITER)
  found: list[tuple[int, int]] = []
  try:
    for content, first, second in records:
      writer.write(content)
      found.append((first, second))
    numbers = np.array(found, "<i4").reshape(-1, 2)
    writer.write(numbers.tobytes())
  finally:
    writer.close()
  return Written((Path(path).stat().st_size, file_hash(Path(path))), _hash(numbers.tobytes()), numbers)


class Records:
  """A file of records, opened."""

  def __init__(self, path: Path):
    self._reader = ArrayRecordReader(str(path), READER)

  def read(self, place: int) -> bytes:
    """The record at `place`."""
    return self._reader.read([place])[0]


def numbers_of(path: Path, count: int) -> tuple[Int32[np.ndarray, "records 2"], str]:
  """(the numbers of a file's `count` records, their hash).

  Raises:
    ValueError, OSError, RuntimeError, IndexError: the file is damaged.
  """
  table = ArrayRecordReader(str(path), READER).read([count])[0]
  return np.frombuffer(table, "<i4").reshape(-1, 2), _hash(table)


def file_hash(path: Path) -> str:
  """Of a file's content."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _hash(content: bytes) -> str:
  return hashlib.blake2b(content, digest_size=16).hexdigest()
