"""safetensors: 8 bytes little endian, the length of a JSON header; the header; then every tensor's bytes, without gaps.

Source: https://github.com/huggingface/safetensors, "Format". A file is untrusted: everything its header says is held
against the file's size before an array is made, so what is read takes no more memory than the file.
"""

import json
import math
import mmap
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from json.decoder import scanstring  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mtx.errors import UserError, did_you_mean
from mtx.pretrained.lazy import Lazy, Tensors

INDEX = "model.safetensors.index.json"
LONGEST_HEADER = 100_000_000  # the reference reader's bound
LONGEST_ENTRY = 4096  # characters for a dtype, two offsets and as many sizes as an array may have
DTYPES = {
  "BOOL": np.dtype(np.bool_),
  **{f"{kind.upper()}{8 * size}": np.dtype(f"<{kind}{size}") for kind in "ui" for size in (1, 2, 4, 8)},
  "F16": np.dtype("<f2"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "F32": np.dtype("<f4"),
  "F64": np.dtype("<f8"),
  "C64": np.dtype("<c8"),
  "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
  "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
  "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
  "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
  "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
AXES, LARGEST = 64, 2**63 - 1  # what numpy can index
SPACE = re.compile(r"[ \t\r\n]*")
Entry = tuple[np.dtype, tuple[int, ...], int, int]  # dtype, shape, first byte, byte after the last
DAMAGED = "copy or download the file again"


def open_file(path: Path) -> Tensors:
  """One file; its arrays are views of one mapping of it.

  Raises:
    UserError: it is damaged, or has a dtype that is not read; names the tensor.
  """
  arrays = _arrays(path)
  return Tensors(path, arrays, dict.fromkeys(arrays, path))


def open_index(path: Path) -> Tensors:
  """The shards that an index names, as one.

  Raises:
    UserError: the index is damaged or names a file outside its folder, a shard is missing or damaged, or index and
      shards disagree on where a tensor lies.
  """
  where = _weight_map(path)
  folder = path.parent
  arrays: dict[str, Lazy] = {}
  files: dict[str, Path] = {}
  for shard in sorted(set(where.values())):
    file = _inside(folder, shard, path)
    for name, array in _arrays(file).items():
      if name in files:
        raise UserError(f"{file}: tensor `{name}` is in {files[name]} too.", hint=DAMAGED)
      arrays[name], files[name] = array, file
  for name, shard in where.items():
    if name not in arrays:
      raise UserError(f"{path} puts tensor `{name}` into {shard}, which lacks it.", hint=did_you_mean(name, arrays))
    if files[name].name != shard:
      raise UserError(f"{path} puts tensor `{name}` into {shard}, and it is in {files[name].name}.", hint=DAMAGED)
  # A tensor that only its shard names is kept: leftovers are for the importer to list.
  return Tensors(path, arrays, files)


def _weight_map(path: Path) -> dict[str, str]:
  try:
    index = _parse(path.read_bytes().decode("utf-8"))
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f"{path} is not a JSON index: {_brief(error)}.", hint=DAMAGED) from error
  where = index.get("weight_map") if isinstance(index, dict) else None
  if not isinstance(where, dict) or not where or not all(isinstance(shard, str) for shard in where.values()):
    raise UserError(f"{path} has no `weight_map` of names to files.", hint=DAMAGED)
  return where


def _inside(folder: Path, shard: str, index: Path) -> Path:
  """The path of a shard, which lies in the folder of its index.

  The Hugging Face cache is the one exception: its snapshots/<revision> link to the cache's own blobs/.
  """
  if Path(shard).name != shard or "\\" in shard or "\0" in shard or shard in ("", ".", ".."):
    raise UserError(f"{index} names {shard!r}, which is not a file in its folder.", hint="an index names plain files")
  file = folder / shard
  if not file.exists():
    raise UserError(f"{file} is missing, and {index.name} names it.", hint="copy all shards into the folder")
  home, real = folder.resolve(), file.resolve()
  cached = home.parent.name == "snapshots" and real.parent == home.parent.parent / "blobs"
  if real.parent != home and not cached:
    raise UserError(f"{file} is a link to {real}, outside its folder.", hint="copy the shard into the folder")
  return file


def _arrays(path: Path) -> dict[str, np.ndarray]:
  """Read-only views of the mapped file, checked."""
  if not path.is_file():
    raise UserError(f"{path} is not a file.")
  with path.open("rb") as file:
    size = os.fstat(file.fileno()).st_size
    if size < 8:
      raise UserError(f"{path} is truncated: it has {size} bytes.", hint=DAMAGED)
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
      raise UserError(f"{path} is truncated or no safetensors file: its header would have {length} bytes, "
                      f"and {size - 8} follow.", hint=DAMAGED)  # fmt: skip
    if length > LONGEST_HEADER:
      raise UserError(f"{path}: its header has {length} bytes; at most {LONGEST_HEADER} are read.")
    text = file.read(length)
    raw = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)[8 + length :]
  found: dict[str, Entry] = {}
  try:
    for name, entry in _entries(text.decode("utf-8")):
      if name in found:
        raise ValueError(f"{name!r} occurs twice")
      name.encode("utf-8")  # JSON may spell half of a surrogate pair
      found[name] = _entry(f"{path}: tensor `{name}`", entry, raw.size)
  except (ValueError, RecursionError) as error:
    raise UserError(f"{path}: its header is damaged: {_brief(error)}.", hint=DAMAGED) from error
  end, last = 0, "the header"
  for name in sorted(found, key=lambda name: found[name][2:]):
    _, _, begin, stop = found[name]
    if begin != end:
      what = "overlaps" if begin < end else "leaves a hole after"
      raise UserError(f"{path}: tensor `{name}` at bytes {begin} to {stop} {what} {last}.", hint=DAMAGED)
    end, last = stop, f"tensor `{name}`"
  if end != raw.size:
    raise UserError(f"{path}: {raw.size} bytes of data, and its tensors end at {end}.", hint=DAMAGED)
  return {name: raw[begin:stop].view(dtype).reshape(shape) for name, (dtype, shape, begin, stop) in found.items()}


def _entries(text: str) -> Iterator[tuple[str, Any]]:
  """(name, entry) of every tensor, one parsed at a time: Python's objects for a whole header would take 20 times its
  length. `__metadata__` is passed over.

  Raises:
    ValueError: it is not JSON, or not a map of names to flat entries.
  """
  at = _after(text, 0, "{")
  more = not text.startswith("}", at)
  while more:
    name, at = _string(text, at)
    at = _after(text, at, ":")
    if name == "__metadata__":
      at = _after_metadata(text, at)
    else:
      end = text.find("}", at) + 1  # no text of an entry has a brace in it
      if not text.startswith("{", at) or not 0 < end - at <= LONGEST_ENTRY:
        raise ValueError(f"no entry for `{name[:80]}` at {at}, found {text[at : at + 10]!r}")
      yield name, _parse(text[at:end])
      at = _after(text, end)
    more = text.startswith(",", at)
    at = _after(text, at, ",") if more else at
  if _after(text, at, "}") != len(text):
    raise ValueError(f"more follows at {at}")


def _after_metadata(text: str, at: int) -> int:
  """Where a map of text to text that begins at `at` is over."""
  at = _after(text, at, "{")
  more = not text.startswith("}", at)
  while more:
    at = _string(text, _after(text, _string(text, at)[1], ":"))[1]
    more = text.startswith(",", at)
    at = _after(text, at, ",") if more else at
  return _after(text, at, "}")


def _after(text: str, at: int, mark: str = "") -> int:
  """What follows `mark` at `at`, and white space. Raises ValueError if something else is there."""
  if not text.startswith(mark, at):
    raise ValueError(f"{mark!r} expected at {at}, found {text[at : at + 10]!r}")
  return SPACE.match(text, at + len(mark)).end()  # type: ignore[union-attr]


def _string(text: str, at: int) -> tuple[str, int]:
  """(JSON's string at `at`, what follows it and white space)."""
  if not text.startswith('"', at):
    raise ValueError(f"a text expected at {at}, found {text[at : at + 10]!r}")
  found, end = scanstring(text, at + 1, True)
  return found, _after(text, end)


def _parse(text: str) -> Any:
  """JSON, as the standard has it. Raises ValueError or RecursionError for all else."""
  return json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)


def _constant(name: str) -> None:
  raise ValueError(f"{name} is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    seen: set[str] = set()
    twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
    raise ValueError(f"{twice!r} occurs twice")
  return found


def _brief(error: BaseException) -> str:
  return str(error).encode("ascii", "backslashreplace").decode()[:120]


def _entry(place: str, entry: Any, size: int) -> Entry:
  """(dtype, shape, first byte, byte after the last) of one tensor, where `size` bytes of data follow the header."""
  if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
    raise UserError(f"{place}: its header entry lacks dtype, shape or data_offsets.", hint=DAMAGED)
  written = entry["dtype"]
  if not isinstance(written, str) or written not in DTYPES:
    raise UserError(f"{place} has dtype {ascii(written)[:40]}.", hint=did_you_mean(str(written)[:40], DTYPES))
  shape, offsets = (_whole_numbers(place, key, entry[key]) for key in ("shape", "data_offsets"))
  if len(shape) > AXES or math.prod(max(n, 1) for n in shape[:AXES]) > LARGEST // 16:
    raise UserError(f"{place} has shape {_shown(shape)}, larger than any array.", hint=DAMAGED)
  if len(offsets) != 2 or not offsets[0] <= offsets[1] <= size:
    raise UserError(f"{place} lies at bytes {_shown(offsets)}, and there are {size}.", hint=DAMAGED)
  dtype, (begin, stop) = DTYPES[written], offsets
  if math.prod(shape) * dtype.itemsize != stop - begin:
    raise UserError(f"{place} has {stop - begin} bytes; {written} of shape {_shown(shape)} has "
                    f"{math.prod(shape) * dtype.itemsize}.", hint=DAMAGED)  # fmt: skip
  return dtype, tuple(shape), begin, stop


def _whole_numbers(place: str, key: str, value: Any) -> list[int]:
  if not isinstance(value, list) or not all(type(n) is int and 0 <= n <= LARGEST for n in value):
    raise UserError(f"{place}: {key} is {ascii(value)[:60]}, not whole numbers below 2^63.", hint=DAMAGED)
  return value


def _shown(numbers: list[int]) -> str:
  return str(numbers if len(numbers) <= 8 else [*numbers[:8], "..."])


def write_file(path: Path, tensors: Mapping[str, Lazy]) -> None:
  """Writes a file that appears when it is whole; holds one tensor at a time."""
  end = 0
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file without
  order = aligned(tensors)
  for name in order:
    dtype, shape = np.dtype(tensors[name].dtype), [int(n) for n in tensors[name].shape]
    if dtype not in NAMES:
      raise UserError(f"{path}: tensor `{name}` has dtype {dtype}, which safetensors has not.", hint="cast it")
    begin, end = end, end + math.prod(shape) * dtype.itemsize
    header[name] = {"dtype": NAMES[dtype], "shape": shape, "data_offsets": [begin, end]}
  text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
  text += b" " * (-len(text) % 8)
  part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
  try:
    with part.open("wb") as file:
      file.write(len(text).to_bytes(8, "little") + text)
      for name in order:
        array = np.asarray(tensors[name][...], order="C")
        if (list(array.shape), NAMES.get(array.dtype)) != (header[name]["shape"], header[name]["dtype"]):
          raise ValueError(f"{name}: {array.dtype} {array.shape} is not what was declared, {header[name]}")
        file.write(array.reshape(-1).view(np.uint8).data)
        del array
      file.flush()
      os.fsync(file.fileno())
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


def aligned(tensors: Mapping[str, Lazy]) -> list[str]:
  """Names in the order of a file: arrays of wide types first, so that every one is aligned."""
  return sorted(tensors, key=lambda name: -np.dtype(tensors[name].dtype).itemsize)


def split(tensors: Mapping[str, Lazy], most: int) -> Iterable[list[str]]:
  """Names, in their order, in groups of at most `most` bytes; a larger tensor is a group of its own."""
  group: list[str] = []
  filled = 0
  for name, array in tensors.items():
    size = math.prod(array.shape) * np.dtype(array.dtype).itemsize
    if group and filled + size > most:
      yield group
      group, filled = [], 0
    group.append(name)
    filled += size
  if group:
    yield group
