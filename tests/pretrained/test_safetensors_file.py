"""safetensors files: what the reference writes is read, what mtx writes the reference reads, and lies are refused."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
from safetensors import deserialize
from safetensors.numpy import load_file, save_file

from mtx.errors import UserError
from mtx.pretrained.lazy import Made
from mtx.pretrained.safetensors_file import DTYPES, INDEX, write_file
from mtx.pretrained.tensors import open_tensors


def pack(header, data: bytes = b"") -> bytes:
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
  return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def arrays():
  rng = np.random.default_rng(0)
  found = {"odd": rng.integers(0, 9, 3).astype(np.uint8), "scalar": np.array(3.5, np.float32)}
  found |= {f"t/{name}": rng.normal(size=(3, 4)).astype(name) for name in ("float16", "float32", "float64", "bool")}
  found |= {f"i/{name}": rng.integers(-9, 9, (2, 3)).astype(name) for name in ("int8", "int16", "int32", "int64")}
  return found | {
    "b": rng.normal(size=(5, 2)).astype(ml_dtypes.bfloat16),
    "none": np.zeros((0, 7), np.float32),
    "eighth": rng.normal(size=6).astype(ml_dtypes.float8_e4m3fn),
  }


def same(a, b):
  return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(np.asarray(a).tobytes(), np.asarray(b).tobytes())


def test_what_the_reference_writes_is_read(tmp_path, arrays):
  plain = {name: a for name, a in arrays.items() if name != "eighth"}  # numpy's side of it has no float8
  save_file(plain, tmp_path / "model.safetensors", metadata={"format": "np"})
  read = open_tensors(tmp_path)
  assert set(read) == set(plain) and all(same(read[name], plain[name]) for name in plain)
  assert not any(array.flags.writeable or array.flags.owndata for array in read.values())
  assert read.bytes == sum(a.nbytes for a in plain.values())


def test_what_is_written_the_reference_reads(tmp_path, arrays):
  del arrays["eighth"]  # numpy's side of it has no float8
  write_file(tmp_path / "model.safetensors", arrays)
  read = open_tensors(tmp_path / "model.safetensors")
  assert set(read) == set(arrays) and all(same(read[name], a) for name, a in arrays.items())
  assert all(array.flags.aligned for array in read.values())
  reference = load_file(tmp_path / "model.safetensors")
  assert all(same(reference[name], a) for name, a in arrays.items())
  assert os.listdir(tmp_path) == ["model.safetensors"]


def test_torch_reads_bfloat16_and_float8(tmp_path, arrays):
  torch = pytest.importorskip("torch")
  from safetensors.torch import load_file as load

  write_file(tmp_path / "m.safetensors", {name: arrays[name] for name in ("b", "eighth", "scalar")})
  read = load(tmp_path / "m.safetensors")
  assert np.array_equal(read["b"].float().numpy(), arrays["b"].astype(np.float32))
  assert read["eighth"].dtype == torch.float8_e4m3fn and read["scalar"].item() == 3.5


def test_a_file_that_fails_half_way_leaves_nothing(tmp_path):
  def fail():
    raise RuntimeError("device is gone")

  with pytest.raises(RuntimeError):
    write_file(tmp_path / "m.safetensors", {"a": np.ones(3), "b": Made((2,), np.float32, fail)})
  with pytest.raises(ValueError, match="declared"):
    write_file(tmp_path / "m.safetensors", {"b": Made((2,), np.float32, lambda: np.ones(3, np.float32))})
  with pytest.raises(UserError, match="`s` has dtype <U1"):
    write_file(tmp_path / "m.safetensors", {"s": np.array(["a"])})
  assert not os.listdir(tmp_path)


EIGHT = bytes(8)
LIES = {
  "empty": (b"", "truncated: it has 0 bytes"),
  "seven bytes": (b"1234567", "truncated"),
  "header beyond the file": ((1 << 20).to_bytes(8, "little") + b"{}", "its header would have 1048576 bytes, and 2"),
  "header of 2^64 - 1": (b"\xff" * 8 + b"{}", "18446744073709551615"),
  "not JSON": (pack(b"{nothing}"), "a text expected at 1, found 'nothing"),
  "not an object": (pack(b"[1, 2]"), "'{' expected at 0"),
  "cut short": (pack(json.dumps({"w": entry()}).encode()[:-1], EIGHT), "'}' expected"),
  "an entry without its end": (pack(b'{"w": {"dtype": "F32"', EIGHT), "no entry for `w`"),
  "more after it": (pack(json.dumps({"w": entry()}).encode() + b"{}", EIGHT), "more follows"),
  "a comma too many": (pack(b"{,}"), "a text expected"),
  "a comma at the end": (pack(json.dumps({"w": entry()}).encode()[:-1] + b",}", EIGHT), "a text expected"),
  "not UTF-8": (pack(b'{"\xff": 1}'), "'utf-8' codec"),
  "half a surrogate pair": (pack({"\ud800": entry()}, EIGHT), "'utf-8' codec"),
  "deep": (pack(b'{"a":' + b"[" * 100_000), "no entry for `a`"),
  "deep in an entry": (pack(b'{"a":{"shape":' + b"[" * 4000 + b"}"), "its header is damaged"),
  "an entry that is too long": (pack(b'{"a":{' + b" " * 5000 + b"}}"), "no entry for `a`"),
  "a number of 4,000 digits": (pack({"a": entry(shape=(10**4000,))}), "damaged|no entry|shape is"),
  "NaN": (pack(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', EIGHT), "NaN is no number"),
  "the same name twice": (pack(json.dumps({"a": entry(), "b": entry()}).replace('"b"', '"a"').encode(), EIGHT),
                          "'a' occurs twice"),
  "the same key twice": (pack(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "'dtype' occurs twice"),
  "entry is a list": (pack({"w": [1]}), "no entry for `w`"),
  "no offsets": (pack({"w": {"dtype": "F32", "shape": [2]}}, EIGHT), "`w`.*lacks"),
  "unknown dtype": (pack({"w": entry("F33")}, EIGHT), r"`w` has dtype 'F33'"),
  "dtype is a number": (pack({"w": entry(7)}, EIGHT), "`w` has dtype 7"),
  "dtype is a list": (pack({"w": entry(["F32"])}, EIGHT), "`w` has dtype"),
  "negative shape": (pack({"w": entry(shape=(-2,))}, EIGHT), "`w`: shape is"),
  "true in a shape": (pack({"w": entry(shape=(True, 2))}, EIGHT), "`w`: shape is"),
  "float in a shape": (pack({"w": entry(shape=(2.0,))}, EIGHT), "`w`: shape is"),
  "shape that overflows": (pack({"w": entry(shape=(2**32, 2**31 + 1, 2**33))}, EIGHT), "larger than any array"),
  "shape that wraps to the right size": (pack({"w": entry(shape=(2**63, 2**62))}, EIGHT), "`w`: shape is"),
  "empty and huge": (pack({"w": entry(shape=(0, 2**62, 2**62), offsets=(0, 0))}), "larger than any array"),
  "too many axes": (pack({"w": entry(shape=[1] * 65 + [2])}, EIGHT), "larger than any array"),
  "size contradicts shape": (pack({"w": entry(shape=(3,))}, EIGHT), "`w` has 8 bytes; F32 of shape .3. has 12"),
  "size contradicts dtype": (pack({"w": entry("F64")}, EIGHT), "F64 of shape .2. has 16"),
  "beyond the end": (pack({"w": entry(offsets=(0, 16))}, EIGHT), "`w` lies at bytes .0, 16., and there are 8"),
  "truncated data": (pack({"w": entry()}, EIGHT[:5]), "`w` lies at bytes .0, 8., and there are 5"),
  "backwards": (pack({"w": entry(offsets=(8, 0))}, EIGHT), "`w` lies at"),
  "three offsets": (pack({"w": entry(offsets=(0, 4, 8))}, EIGHT), "`w` lies at"),
  "overlap": (pack({"v": entry(), "w": entry(offsets=(4, 12))}, EIGHT + b"1234"), "`w` at bytes 4 to 12 overlaps .*v"),
  "the same bytes": (pack({"v": entry(), "w": entry()}, EIGHT), "overlaps"),
  "hole": (pack({"v": entry(), "w": entry(offsets=(12, 20))}, EIGHT * 3), "`w` at bytes 12 to 20 leaves a hole after"),
  "hole at the start": (pack({"w": entry(offsets=(8, 16))}, EIGHT * 2), "leaves a hole after the header"),
  "bytes left over": (pack({"w": entry()}, EIGHT * 2), "16 bytes of data, and its tensors end at 8"),
  "metadata of numbers": (pack({"__metadata__": {"a": 1}}), "a text expected at 23, found '1}}'"),
  "metadata is a list": (pack({"__metadata__": ["a"]}), "'{' expected"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused_naming_file_and_tensor(tmp_path, lie):
  data, message = LIES[lie]
  path = tmp_path / "model.safetensors"
  path.write_bytes(data)
  with pytest.raises(UserError, match=message) as refused:
    open_tensors(tmp_path)
  assert str(path) in str(refused.value)


def test_a_header_may_have_spaces_metadata_and_any_text(tmp_path):
  header = {"__metadata__": {"a": '}"{', "b": ""}, '},"é\\😀': entry()}
  for number, indent in enumerate((None, 2)):
    path = tmp_path / f"{number}.safetensors"
    path.write_bytes(pack(json.dumps(header, indent=indent).encode() + b"  ", EIGHT))
    assert list(open_tensors(path)) == ['},"é\\😀'] == [name for name, _ in deserialize(path.read_bytes())]
  path.write_bytes(pack({"__metadata__": {}}))
  assert not open_tensors(path)


def test_an_unknown_dtype_names_the_nearest(tmp_path):
  (tmp_path / "m.safetensors").write_bytes(pack({"w": entry("BF17")}, EIGHT))
  with pytest.raises(UserError, match="did you mean `BF16`"):
    open_tensors(tmp_path)


def test_every_dtype_of_the_table_is_read(tmp_path):
  for name, dtype in DTYPES.items():
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(pack({"x": entry(name, (3,), (0, 3 * dtype.itemsize))}, bytes(3 * dtype.itemsize)))
    assert open_tensors(path)["x"].dtype == dtype and open_tensors(path)["x"].tobytes() == bytes(3 * dtype.itemsize)


class TestIndex:
  @pytest.fixture
  def folder(self, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": np.ones(2, np.float32)}, folder / "one.safetensors")
    save_file({"b": np.zeros(3, np.float16)}, folder / "two.safetensors")
    self.write(folder, {"a": "one.safetensors", "b": "two.safetensors"})
    return folder

  def write(self, folder, where):
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 14}, "weight_map": where}))

  def test_shards_are_one_mapping(self, folder):
    read = open_tensors(folder)
    assert {name: a.shape for name, a in read.items()} == {"a": (2,), "b": (3,)}
    assert read.where("b") == f"{folder / 'two.safetensors'}: tensor `b`"
    assert set(open_tensors(folder / INDEX)) == {"a", "b"}

  def test_what_only_a_shard_names_is_kept(self, folder):
    save_file({"b": np.zeros(3, np.float16), "c": np.zeros(1, np.float16)}, folder / "two.safetensors")
    assert set(open_tensors(folder)) == {"a", "b", "c"}

  @pytest.mark.parametrize(
    "name", ["../one.safetensors", "/etc/passwd", "x/../../one.safetensors", "..", ".", "", "x\\..\\y", "a\0b"]
  )
  def test_files_outside_the_folder_are_refused(self, folder, name):
    save_file({"a": np.ones(2, np.float32)}, folder.parent / "one.safetensors")
    self.write(folder, {"a": name})
    with pytest.raises(UserError, match="not a file in its folder"):
      open_tensors(folder)

  def test_links_out_of_the_folder_are_refused(self, folder):
    outside = folder.parent / "outside.safetensors"
    (folder / "one.safetensors").rename(outside)
    (folder / "one.safetensors").symlink_to(outside)
    with pytest.raises(UserError, match="outside its folder"):
      open_tensors(folder)
    (folder / "one.safetensors").unlink()
    (folder / "three.safetensors").write_bytes(outside.read_bytes())
    (folder / "one.safetensors").symlink_to("three.safetensors")
    assert set(open_tensors(folder)) == {"a", "b"}

  def test_a_snapshot_in_the_hub_cache_links_to_its_blobs(self, folder):
    snapshot = folder.parent / "snapshots" / "0a1b"
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
      file.rename(blobs / str(number))
      (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert set(open_tensors(snapshot)) == {"a", "b"}

  def test_a_missing_shard(self, folder):
    (folder / "two.safetensors").unlink()
    with pytest.raises(UserError, match=r"two.safetensors is missing"):
      open_tensors(folder)

  def test_a_tensor_that_its_shard_lacks(self, folder):
    self.write(folder, {"a": "one.safetensors", "bb": "two.safetensors"})
    with pytest.raises(UserError, match=r"`bb` into two.safetensors, which lacks it"):
      open_tensors(folder)
    self.write(folder, {"a": "two.safetensors", "b": "one.safetensors"})
    with pytest.raises(UserError, match=r"`a` into two.safetensors, and it is in one.safetensors"):
      open_tensors(folder)

  def test_a_tensor_in_two_shards(self, folder):
    save_file({"a": np.zeros(3, np.float16), "b": np.zeros(3, np.float16)}, folder / "two.safetensors")
    with pytest.raises(UserError, match=r"two.safetensors: tensor `a` is in .*one.safetensors too"):
      open_tensors(folder)

  @pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 100_000])
  def test_no_index(self, folder, text):
    (folder / INDEX).write_text(text)
    with pytest.raises(UserError, match=r"model.safetensors.index.json"):
      open_tensors(folder)

  def test_a_name_twice_in_the_index(self, folder):
    (folder / INDEX).write_text('{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}')
    with pytest.raises(UserError, match="'a' occurs twice"):
      open_tensors(folder)


@pytest.mark.parametrize(
  "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "x.pt", "x.pth", "x.ckpt", "flax_model.msgpack",
           "adapter_model.bin", "model.bin", "tf_model.h5"]
)  # fmt: skip
def test_pickles_are_refused_with_the_reason_and_the_way_out(tmp_path, name):
  (tmp_path / name).write_bytes(b"\x80\x02}q\x00.")
  for path in (tmp_path, tmp_path / name):
    with pytest.raises(UserError, match="safe_serialization=True") as refused:
      open_tensors(path)
    reason = {"flax_model.msgpack": "msgpack", "tf_model.h5": "Keras"}.get(name, "runs the code")
    assert reason in str(refused.value) and name in str(refused.value)


def test_safetensors_beside_a_pickle_are_read(tmp_path):
  (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
  save_file({"a": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
  assert set(open_tensors(tmp_path)) == {"a"}


def test_no_checkpoint(tmp_path):
  with pytest.raises(UserError, match="not there"):
    open_tensors(tmp_path / "gone")
  with pytest.raises(UserError, match="it has nothing"):
    open_tensors(tmp_path)
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(UserError, match=r"it has config.json"):
    open_tensors(tmp_path)
  with pytest.raises(UserError, match="no format ends like this"):
    open_tensors(tmp_path / "config.json")
  (tmp_path / "model.safetensors").mkdir()
  with pytest.raises(UserError, match="is not a file"):
    open_tensors(tmp_path)
  (tmp_path / "model.safetensors").rmdir()
  os.mkfifo(tmp_path / "model.safetensors")  # reading it would never end
  with pytest.raises(UserError, match="is not a file"):
    open_tensors(tmp_path)
  (tmp_path / "model.safetensors").unlink()
  for name in "xy":
    save_file({"a": np.ones(2, np.float32)}, tmp_path / f"{name}.safetensors")
  with pytest.raises(UserError, match=r"has x.safetensors, y.safetensors and no"):
    open_tensors(tmp_path)
