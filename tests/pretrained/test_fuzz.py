"""The reader meets damaged and malicious files and configs: it reads them as they should be, or raises UserError."""

import json
import re
import shutil
import tracemalloc
from collections import Counter
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import deserialize

from mtx.errors import UserError
from mtx.pretrained.model import open_model
from mtx.pretrained.safetensors_file import DTYPES, INDEX, write_file
from mtx.pretrained.tensors import open_tensors

# Of memory beside the mapped file: its header as text, and an array for each of its tensors.
FACTOR, MARGIN = 4, 100_000
ODD = st.one_of(
  st.sampled_from([0, 1, 2, 4, 8, 16, -1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63)]),
  st.sampled_from(
    [None, True, False, 1.0, 1e999, "", "F32", "BF16", "F8_E4M3", "F33", "4", [], {}, [[]], [0, 0], [1e3]]
  ),
  st.integers(-5, 70),
)
JSON = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
  lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
  max_leaves=20,
)
VALUES = re.compile(r"'.*?'|`.*`|\b(None|True|False)\b|-?\d+|[\[{].*[\]}]|[\[{'].*|\\.*", re.S)  # of messages
ARRAYS = {
  "a": np.arange(6, dtype=np.float32).reshape(2, 3),
  "b.weight": np.arange(4, dtype=np.int64),
  "c": np.zeros((0, 5), np.float16),
  "d": np.array(3, np.uint8),
}


@st.composite
def headers(draw, valid):
  """Headers with values of another kind, keys gone, renamed or twice, or no header of tensors at all."""
  if draw(st.integers(0, 9)) == 0:
    return json.dumps(draw(JSON)).encode()
  header = {name: dict(entry) for name, entry in valid.items()}
  for _ in range(draw(st.integers(1, 3))):
    name = draw(st.sampled_from(sorted(header)))
    entry = header[name]
    match draw(st.integers(0, 6)):
      case 0:
        header[name] = draw(ODD | JSON)
        break
      case 1 if isinstance(entry, dict):
        entry.pop(draw(st.sampled_from(["dtype", "shape", "data_offsets"])), None)
      case 2 if isinstance(entry, dict):
        entry[draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))] = draw(ODD | JSON)
      case 3 if isinstance(entry.get("shape"), list):
        entry["shape"] = [*entry["shape"], *draw(st.lists(ODD, max_size=3))]
      case 4 if isinstance(entry.get("data_offsets"), list):
        entry["data_offsets"] = [draw(ODD) if draw(st.booleans()) else n for n in entry["data_offsets"]]
      case 5 if isinstance(entry, dict):
        entry["dtype"] = draw(st.sampled_from(sorted(DTYPES)))
      case _:
        header[draw(st.text(max_size=3))] = dict(header[draw(st.sampled_from(sorted(header)))])
  text = json.dumps(header).encode()
  if draw(st.integers(0, 9)) == 0:
    twice = draw(st.sampled_from(sorted(header)))
    text = b"{" + json.dumps(twice).encode() + b":0," + text[1:]
  return text + b" " * draw(st.integers(0, 3))


@st.composite
def files(draw, valid):
  """Bytes of a file that was written well, changed."""
  length = int.from_bytes(valid[:8], "little")
  if draw(st.booleans()):
    parsed = {name: entry for name, entry in json.loads(valid[8 : 8 + length]).items() if name != "__metadata__"}
    text = draw(headers(parsed))
    told = draw(st.sampled_from([len(text)] * 8 + [0, len(text) - 1, len(text) + 1, 2**63, 2**64 - 1])) % 2**64
    data = valid[8 + length :] + draw(st.binary(max_size=3))
    return told.to_bytes(8, "little") + text + data
  found = bytearray(valid)
  for _ in range(draw(st.integers(0, 3))):
    first = draw(st.sampled_from([0, 8, 8 + length]))  # of the file, its header, its data
    at = draw(st.integers(min(first, len(found)), max(first, len(found) - 1)))
    match draw(st.integers(0, 9)):
      case 0:
        del found[at:]
      case 1:
        del found[at : at + draw(st.integers(1, 9))]
      case 2:
        found[at:at] = draw(st.binary(min_size=1, max_size=9))
      case 3:
        found[at:at] = draw(st.sampled_from([b"[", b"{", b'"', b"9", b"-", b"\\ud800", b"e9"])) * draw(
          st.integers(1, 3000)
        )
      case _ if at < len(found):
        found[at] = draw(st.integers(0, 255))
  return bytes(found)


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
  path = tmp_path_factory.mktemp("valid") / "m.safetensors"
  write_file(path, ARRAYS)
  return path.read_bytes()


def fuzz(valid, folder, cases: int, *, derandomize: bool) -> Counter:
  """Reads `cases` files; returns how often which answer came."""
  seen: Counter = Counter()
  path = folder / "m.safetensors"

  @settings(
    max_examples=cases,
    derandomize=derandomize,
    database=None,
    deadline=timedelta(seconds=10),  # a hang, not a busy machine
    suppress_health_check=list(HealthCheck),
  )
  @given(files(valid))
  def one(data):
    path.write_bytes(data)
    tracemalloc.start()
    try:
      read = open_tensors(path)
      total = sum(array.nbytes for array in read.values())
    except UserError as error:
      assert str(path) in str(error)
      said = error.message.removeprefix(str(path)).replace("tensor `", "`").strip(": ")
      seen[
        re.sub(r"'.*?'|`.*`|\b(None|True|False)\b|-?\d+|[\[{].*[\]}]|[\[{'].*|\\.*", "_", said, flags=re.S)[:34]
      ] += 1
      return
    finally:
      peak = tracemalloc.get_traced_memory()[1]
      tracemalloc.stop()
      assert peak <= FACTOR * len(data) + MARGIN
    seen["read"] += 1
    assert total <= len(data)
    reference = dict(deserialize(data))
    assert set(read) == set(reference)
    for name, array in read.items():
      assert list(array.shape) == reference[name]["shape"]
      assert array.tobytes() == bytes(reference[name]["data"])

  one()
  return seen


def check(seen: Counter, cases: int) -> None:
  print(f"\n{sum(seen.values())} files, {seen['read']} read as the reference reads them:")
  for answer, count in seen.most_common():
    print(f"{count:7d}  {answer}")
  assert sum(seen.values()) >= cases
  assert seen["read"] >= cases // 50 and len(seen) > 15  # else the files are too wild, or too tame


def test_damaged_files(valid, tmp_path):
  check(fuzz(valid, tmp_path, 400, derandomize=True), 400)


@pytest.mark.slow
def test_many_damaged_files(valid, tmp_path):
  check(fuzz(valid, tmp_path, 20_000, derandomize=False), 20_000)


def test_damaged_indexes(valid, tmp_path):
  (tmp_path / "one.safetensors").write_bytes(valid)
  (tmp_path / "nested").mkdir()
  seen: Counter = Counter()
  shard = st.sampled_from(
    ["one.safetensors"] * 5 + ["two.safetensors", "../one.safetensors", "nested", "/dev/zero", ""]
  )
  where = st.dictionaries(st.sampled_from([*ARRAYS, "other"]), shard | JSON, max_size=5)
  text = st.fixed_dictionaries({"weight_map": where}) | JSON

  @settings(max_examples=200, derandomize=True, database=None, deadline=timedelta(seconds=10))
  @given(text, st.integers(0, 9), st.binary(max_size=4))
  def one(index, at, noise):
    written = json.dumps(index).encode()
    (tmp_path / INDEX).write_bytes(written if at else written + noise)
    try:
      read = open_tensors(tmp_path)
    except UserError:
      seen["refused"] += 1
      return
    seen["read"] += 1
    assert all(np.array_equal(read[name], ARRAYS[name]) for name in read) and len(read) == len(ARRAYS)

  one()
  assert seen["read"] > 5 and seen["refused"] > 50


NUMBERS = (0, 1, -1, 2, 3, 7, 1000, 2**31 - 1, 2**31, 2**40, 2**63, 10**30, 1.5, 1e308, float("nan"), float("-inf"))
WRONG = st.sampled_from([*NUMBERS, None, True, False, "", "16", [], [1], [["a"]], {}, {"a": 1}])


def contradict(saved, mesh, folder, cases: int, *, derandomize: bool) -> Counter:
  """Opens models whose config.json has one or two values of another kind, size or sign."""
  names = ("t5", "llama", "gpt2", "neox", "phi3")
  seen: Counter = Counter()
  for name in names:
    shutil.copytree(saved(name), folder / name)
  written = {name: json.loads((folder / name / "config.json").read_text()) for name in names}

  @settings(
    max_examples=cases,
    derandomize=derandomize,
    database=None,
    deadline=timedelta(seconds=20),
    suppress_health_check=list(HealthCheck),
  )
  @given(st.sampled_from(names), st.data())
  def one(name, data):
    config = json.loads(json.dumps(written[name]))
    for _ in range(data.draw(st.integers(1, 2))):
      part = config
      key = data.draw(st.sampled_from(sorted(config.keys() - {"model_type"})))
      if isinstance(config[key], dict) and config[key] and data.draw(st.booleans()):
        part, key = config[key], data.draw(st.sampled_from(sorted(config[key])))
      part[key] = data.draw(WRONG)
    (folder / name / "config.json").write_text(json.dumps(config))
    try:
      open_model(folder / name, mesh)
      seen["opened"] += 1  # nothing that counts was changed
    except UserError:
      seen["refused"] += 1

  one()
  return seen


def test_configs_that_are_wrong(saved, mesh1, tmp_path):
  seen = contradict(saved, mesh1, tmp_path, 100, derandomize=True)
  assert min(seen["opened"], seen["refused"]) > 10


@pytest.mark.slow
def test_many_configs_that_are_wrong(saved, mesh1, tmp_path):
  print(contradict(saved, mesh1, tmp_path, 2_000, derandomize=False))


def test_many_tensors_take_a_kilobyte_each(tmp_path):
  path, count = tmp_path / "m.safetensors", 20_000
  write_file(path, {str(n): np.zeros(1, np.uint8) for n in range(count)})
  tracemalloc.start()
  try:
    assert len(open_tensors(path)) == count
    assert tracemalloc.get_traced_memory()[1] <= FACTOR * path.stat().st_size + 1000 * count
  finally:
    tracemalloc.stop()


LARGE = {
  "deep": b'{"a":' + b"[[],[]," * 100_000,
  "a list of lists": b'{"a":[' + b"[]," * 300_000 + b"0]}",
  "the same name": b'{"' + b'a":{},"' * 200_000 + b'b":0}',
  "spaces": b"{" + b" " * 10**6,
  "surrogates": b'{"a":"' + b"\\ud83d\\ude00" * 10**5 + b'"}',
  "cut short": b"{" + b'"\\u0061":1,' * 10**5,
}


@pytest.mark.parametrize("text", LARGE.values(), ids=list(LARGE))
def test_large_headers_take_memory_like_their_file(tmp_path, text):
  path = tmp_path / "m.safetensors"
  path.write_bytes(len(text).to_bytes(8, "little") + text)
  tracemalloc.start()
  try:
    with pytest.raises(UserError, match=r"m\.safetensors"):
      open_tensors(path)
    assert tracemalloc.get_traced_memory()[1] <= FACTOR * len(text) + MARGIN
  finally:
    tracemalloc.stop()
