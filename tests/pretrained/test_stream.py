"""Import and export are inverse to each other bit by bit, sharded like the model, and nothing is left out unsaid."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import save_file

from mtx.errors import UserError
from mtx.models.families.family import Name
from mtx.pretrained import stream
from mtx.pretrained.lazy import Made, Tensors
from mtx.pretrained.stream import exported, read_params, write_folder
from mtx.pretrained.tensors import open_tensors

LAYERS, D, HEADS, KV, FF, VOCAB = 3, 8, 4, 6, 20, 16
FUSED = (HEADS, 3, KV, D)
# A made-up family with every kind of name: transposed, fused and interleaved, split, tied twice, one array a layer.
NAMES = [
  Name("head/table", "wte.weight"),
  Name("head/table", "lm_head.weight", optional=True),
  *(
    Name(f"layers/{p}/kernel", "h.{layer}.qkv.weight", stored=(HEADS * 3 * KV, D), shape=FUSED,
         take=(slice(None), n), order=(2, 0, 1))
    for n, p in enumerate("qkv")
  ),
  *(
    Name(f"layers/{p}/bias", "h.{layer}.qkv.bias", stored=(HEADS * 3 * KV,), shape=FUSED[:3], take=(slice(None), n))
    for n, p in enumerate("qkv")
  ),
  *(
    Name(f"layers/{p}/kernel", "h.{layer}.up.weight", stored=(2 * FF, D), take=(slice(n * FF, (n + 1) * FF),),
         order=(1, 0))
    for n, p in enumerate(("gate", "up"))
  ),
  Name("layers/norm/scale", "h.{layer}.ln.weight"),
  Name("each/{layer}/table", "h.{layer}.rel.weight", order=(1, 0)),
  Name("final/scale", "ln_f.weight"),
  Name("elsewhere/kernel", "no_such.{layer}.weight"),
]  # fmt: skip
KEPT = {"rope.inv_freq": np.arange(3, dtype=np.float32), "h.0.mask": np.tri(4, dtype=bool)}
SHAPES = {
  "head/table": (VOCAB, D),
  **{f"layers/{p}/kernel": (LAYERS, D, HEADS * KV) for p in "qkv"},
  **{f"layers/{p}/bias": (LAYERS, HEADS * KV) for p in "qkv"},
  **{f"layers/{p}/kernel": (LAYERS, D, FF) for p in ("gate", "up")},
  "layers/norm/scale": (LAYERS, D),
  **{f"each/{n}/table": (2, HEADS) for n in range(2)},
  "final/scale": (D,),
}
SPECS = {
  "head/table": P("tensor", "fsdp"),
  **{f"layers/{p}/kernel": P(None, "fsdp", "tensor") for p in ("q", "k", "v", "gate", "up")},
  **{f"layers/{p}/bias": P(None, "tensor") for p in "qkv"},
}


def abstract(dtype=jnp.float32):
  return {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in SHAPES.items()}


def placed(mesh):
  return {path: NamedSharding(mesh, SPECS.get(path, P())) for path in SHAPES}


def checkpoint(dtype=np.float32):
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(dtype)
  found = {"wte.weight": draw(VOCAB, D), "ln_f.weight": draw(D)}
  found["lm_head.weight"] = found["wte.weight"].copy()
  for n in range(LAYERS):
    found[f"h.{n}.qkv.weight"] = draw(HEADS * 3 * KV, D)
    found[f"h.{n}.qkv.bias"] = draw(HEADS * 3 * KV)
    found[f"h.{n}.up.weight"] = draw(2 * FF, D)
    found[f"h.{n}.ln.weight"] = draw(D).astype(np.float32)
  for n in range(2):
    found[f"h.{n}.rel.weight"] = draw(HEADS, 2)
  return found | KEPT


def bits(array):
  return np.asarray(array).tobytes()


def same(a, b):
  return set(a) == set(b) and all(
    np.dtype(a[n].dtype) == np.dtype(b[n].dtype) and tuple(a[n].shape) == tuple(b[n].shape)
    and bits(a[n][...]) == bits(b[n][...])
    for n in a
  )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
  save_file(checkpoint(), tmp_path / "model.safetensors")
  return tmp_path


@pytest.fixture
def tensors(folder):
  return open_tensors(folder)


def test_every_kind_of_name_is_read(tensors, mesh8):
  found = checkpoint()
  params, report = read_params(tensors, NAMES, abstract(), placed(mesh8))
  assert set(params) == set(SHAPES) and not report.missing
  assert report.unused == tuple(name for name in tensors if name in KEPT)
  assert {p: a.sharding for p, a in params.items()} == placed(mesh8)
  for n in range(LAYERS):
    fused = found[f"h.{n}.qkv.weight"].reshape(FUSED)
    for which, p in enumerate("qkv"):
      for head in range(HEADS):
        columns = slice(head * KV, (head + 1) * KV)
        assert np.array_equal(params[f"layers/{p}/kernel"][n, :, columns], fused[head, which].T)
    assert np.array_equal(params["layers/up/kernel"][n], found[f"h.{n}.up.weight"][FF:].T)
  assert np.array_equal(params["each/1/table"], found["h.1.rel.weight"].T)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_import_then_export_is_the_identity(tmp_path, mesh8, dtype):
  """Bit by bit, with what is tied, what the model does not know and norms of another type."""
  write_folder(tmp_path / "a", checkpoint(dtype), max_shard_bytes=4000)
  before = open_tensors(tmp_path / "a")
  params, _ = read_params(before, NAMES, abstract(), placed(mesh8))
  assert all(a.dtype == jnp.float32 for a in params.values())
  files = write_folder(tmp_path / "b", exported(params, NAMES, like=before), max_shard_bytes=4000)
  assert len(files) > 2
  assert same(open_tensors(tmp_path / "b"), before)


def test_export_without_a_model_of_it(tensors, mesh8):
  params, _ = read_params(tensors, NAMES, abstract(), placed(mesh8))
  plain = exported(params, NAMES)
  wanted = {n: a for n, a in checkpoint().items() if n not in KEPT and n != "lm_head.weight"}
  assert same(plain, wanted)
  half = exported(params, NAMES, dtype=jnp.bfloat16)
  assert same(half, {n: a.astype(ml_dtypes.bfloat16) for n, a in wanted.items()})
  host = {path: np.asarray(a) for path, a in params.items()}
  assert same(exported(host, NAMES), wanted)


def test_what_a_like_lacks_is_written_all_the_same(tensors, mesh1):
  params, _ = read_params(tensors, NAMES, abstract(), placed(mesh1))
  like = {name: tensors[name] for name in tensors if name not in ("ln_f.weight", "wte.weight")}
  found = exported(params, NAMES, like=like)
  assert set(found) == set(tensors) - {"wte.weight"} and list(found)[-1] == "ln_f.weight"


def test_a_hole_in_the_table_is_no_export(tensors, mesh8):
  params, _ = read_params(tensors, NAMES, abstract(), placed(mesh8))
  del params["layers/k/kernel"]
  with pytest.raises(ValueError, match=r"qkv.weight .*: 384 of 576 numbers have a name"):
    exported(params, NAMES)


def test_dtypes_are_cast_and_kept(tensors, mesh1):
  params, _ = read_params(tensors, NAMES, abstract(), placed(mesh1), dtype=jnp.bfloat16)
  assert all(a.dtype == jnp.bfloat16 for a in params.values())
  assert np.array_equal(params["head/table"], checkpoint()["wte.weight"].astype(ml_dtypes.bfloat16))


class Watched:
  """An array that tells which of its numbers were asked for."""

  def __init__(self, array):
    self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, np.zeros(array.shape, int)

  def __getitem__(self, index):
    self.read[index] += 1
    return self.array[index]


def test_a_shard_reads_its_slice_and_nothing_else(mesh8):
  """On one device of eight the other halves of rows and columns stay unread; replicas are read once."""
  found = {name: Watched(a) for name, a in checkpoint().items()}
  mesh = mesh8
  read_params(Tensors(Path("x"), found), NAMES[:1], {"head/table": abstract()["head/table"]}, placed(mesh))
  assert (found["wte.weight"].read == 1).all()
  sharding = NamedSharding(mesh, P("tensor", "fsdp"))
  (index, devices), *_ = stream._places(sharding, (VOCAB, D))
  assert len(devices) == 2
  found["wte.weight"].read[:] = 0
  part = next(stream.parts(NAMES, abstract()))
  stream._place(Tensors(Path("x"), found), [[part]], index, np.dtype(np.float32), devices)
  assert found["wte.weight"].read.sum() == VOCAB * D // 4 and (found["wte.weight"].read[index] == 1).all()


def test_transposed_slices_of_what_is_not_in_memory(mesh8):
  found = {"h.0.rel.weight": Watched(checkpoint()["h.0.rel.weight"])}
  part = next(p for p in stream.parts(NAMES, abstract()) if p.ours == "each/0/table")
  got = part.view(found["h.0.rel.weight"], (slice(1, 2), slice(0, 3)))
  assert np.array_equal(got, checkpoint()["h.0.rel.weight"].T[1:2, :3])
  assert found["h.0.rel.weight"].read.sum() == 3


def test_blocks_fill_a_shard_on_its_device(tensors, mesh8, monkeypatch):
  """What an accelerator does with a shard that is larger than a block."""
  wanted, _ = read_params(tensors, NAMES, abstract(), placed(mesh8))

  class Device:
    platform = "accelerator"

    def __init__(self, device):
      self.device = device

  put, zeros = jax.device_put, stream.zeros
  monkeypatch.setattr(stream, "BLOCK", 100)
  monkeypatch.setattr(jax, "device_put", lambda x, d: put(x, getattr(d, "device", d)))
  monkeypatch.setattr(stream, "zeros", lambda shape, dtype, d: zeros(shape, dtype, d.device))
  groups = stream._grouped(stream.parts(NAMES, abstract()))
  for path in ("head/table", "layers/q/kernel", "layers/norm/scale"):
    layers = [group[:1] for (p, _), group in groups.items() if p == path]
    for index, devices in stream._places(placed(mesh8)[path], SHAPES[path]):
      got = stream._place(tensors, layers, index, np.dtype(np.float32), [Device(d) for d in devices])
      assert [next(iter(a.devices())) for a in got] == devices
      assert all(np.array_equal(a, np.asarray(wanted[path])[index]) for a in got)


def test_arrays_do_not_change_with_the_file(folder, mesh1):
  params, _ = read_params(open_tensors(folder), NAMES, abstract(), placed(mesh1))
  before = {path: bits(a) for path, a in params.items()}
  with (folder / "model.safetensors").open("r+b") as file:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    file.write(b"\xff" * size)
  assert {path: bits(a) for path, a in params.items()} == before


class TestWhatDoesNotFit:
  def test_missing_and_left_over_are_listed(self, mesh1):
    found = checkpoint()
    found["h.1.qkv.bais"] = found.pop("h.1.qkv.bias")
    del found["ln_f.weight"], found["wte.weight"]
    shapes = abstract() | {"lora/a": jax.ShapeDtypeStruct((2,), jnp.float32)}
    places = placed(mesh1) | {"lora/a": NamedSharding(mesh1, P())}
    params, report = read_params(Tensors(Path("ckpt"), found), NAMES, shapes, places)
    assert report.missing == {
      **{f"layers/{p}/bias": ("h.1.qkv.bias",) for p in "qkv"},
      "final/scale": ("ln_f.weight",),
      "lora/a": (),
    }
    assert set(report.unused) == {*KEPT, "h.1.qkv.bais"}
    assert set(params) == set(shapes) - set(report.missing)
    assert np.array_equal(params["head/table"], found["lm_head.weight"])  # the tied name serves
    with pytest.raises(UserError, match="ckpt lacks tensors of 5 parameters") as refused:
      report.check("ckpt")
    assert "final/scale: ln_f.weight" in str(refused.value) and "h.1.qkv.bais" in str(refused.value)

  def test_nothing_missing_is_fine(self, tensors, mesh1):
    read_params(tensors, NAMES, abstract(), placed(mesh1))[1].check("x")

  @pytest.mark.parametrize("name, shape", [("wte.weight", (VOCAB + 1, D)), ("h.2.qkv.weight", (D, HEADS * 3 * KV)),
                                           ("h.0.rel.weight", (2, HEADS)), ("ln_f.weight", (D, 1))])  # fmt: skip
  def test_another_shape_says_both(self, tmp_path, mesh1, name, shape):
    found = checkpoint()
    expected = found[name].shape
    found[name] = np.zeros(shape, np.float32)
    save_file(found, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as refused:
      read_params(open_tensors(tmp_path), NAMES, abstract(), placed(mesh1))
    text = str(refused.value)
    assert f"`{name}`" in text and str(shape) in text and str(expected) in text and "model.safetensors" in text

  @pytest.mark.parametrize("dtype", [np.int8, np.int32, np.bool_, ml_dtypes.float8_e4m3fn, np.complex64])
  def test_numbers_that_are_no_weights(self, mesh1, dtype):
    found = checkpoint() | {"ln_f.weight": np.ones(D, dtype)}
    with pytest.raises(UserError, match=f"`ln_f.weight` has dtype {np.dtype(dtype)}; the model's final/scale wants"):
      read_params(Tensors(Path("ckpt"), found), NAMES, abstract(), placed(mesh1))

  def test_twins_that_differ(self, mesh8):
    found = checkpoint()
    found["lm_head.weight"][-1, -1] += 1
    with pytest.raises(UserError, match=r"`lm_head.weight` differs from `wte.weight`"):
      read_params(Tensors(Path("ckpt"), found), NAMES, abstract(), placed(mesh8))

  def test_twins_may_both_be_nan(self, mesh1):
    found = checkpoint()
    for name in ("lm_head.weight", "wte.weight"):
      found[name][0, 0] = np.nan
    read_params(Tensors(Path("ckpt"), found), NAMES, abstract(), placed(mesh1))


class TestFolder:
  def test_one_file_or_shards(self, tmp_path):
    found = checkpoint()
    assert [f.name for f in write_folder(tmp_path / "one", found)] == ["model.safetensors"]
    files = write_folder(tmp_path / "many", iter(found.items()), max_shard_bytes=3000)
    count = len(files) - 1
    assert count > 2 and files[0].name == f"model-00001-of-{count:05d}.safetensors"
    assert max(f.stat().st_size for f in files[:-1]) < 3000 + 2000  # and their headers
    index = json.loads(files[-1].read_text())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in found.values())
    for name in ("one", "many"):
      assert same(open_tensors(tmp_path / name), found)

  def test_a_tensor_larger_than_a_shard_has_one_of_its_own(self, tmp_path):
    files = write_folder(tmp_path, {n: np.ones(100, np.float32) for n in "abc"}, max_shard_bytes=8)
    assert len(files) == 4 and set(open_tensors(tmp_path)) == set("abc")

  def test_what_is_there_is_not_overwritten(self, tmp_path):
    write_folder(tmp_path, {"a": np.ones(2)})
    with pytest.raises(UserError, match=r"has model.safetensors already"):
      write_folder(tmp_path, {"a": np.ones(2)}, max_shard_bytes=1)
    assert [f.name for f in write_folder(tmp_path, {"b": np.ones(2)}, stem="adapter_model")] == [
      "adapter_model.safetensors"
    ]

  def test_no_index_until_every_shard_is_there(self, tmp_path):
    def fail():
      raise RuntimeError("device is gone")

    with pytest.raises(RuntimeError):
      write_folder(tmp_path, {"a": np.ones(9), "b": Made((9,), float, fail)}, max_shard_bytes=72)
    assert [p.name for p in tmp_path.iterdir()] == ["model-00001-of-00002.safetensors"]

  def test_one_tensor_is_made_at_a_time(self, tmp_path):
    made = []

    def make(name):
      made.append(name)
      return np.ones(1000, np.float32)

    lazy = {n: Made((1000,), np.float32, lambda n=n: make(n)) for n in "abcd"}
    write_folder(tmp_path, lazy, max_shard_bytes=8000)
    assert made == list("abcd")

  def test_transformers_loads_it(self, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=32, num_key_value_heads=1, **sizes)
    model = transformers.LlamaForCausalLM(config)
    state = {name: t.detach().numpy() for name, t in model.state_dict().items()}
    config.save_pretrained(tmp_path)
    write_folder(tmp_path, state, max_shard_bytes=4000)
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    for name, value in loaded.state_dict().items():
      assert torch.equal(value, model.state_dict()[name]), name


IMPORT = """
import sys, time
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from mtx.models.families.family import Name
from mtx.pretrained.stream import exported, read_params, write_folder
from mtx.pretrained.tensors import open_tensors

LAYERS, IN, OUT, VOCAB = (int(n) for n in sys.argv[3:])
shapes = {"table": (VOCAB, IN), "kernel": (LAYERS, IN, OUT)}
names = [Name("table", "table.weight"), Name("kernel", "{layer}.weight", order=(1, 0))]
mesh = Mesh(np.array(jax.devices()).reshape(2, -1), ("a", "b"))
places = {"table": NamedSharding(mesh, P("b")), "kernel": NamedSharding(mesh, P(None, "b", "a"))}
abstract = {p: jax.ShapeDtypeStruct(s, jnp.float32) for p, s in shapes.items()}
jax.block_until_ready(jax.device_put(np.ones((4, 4)), places["table"]))
print("ready", flush=True); sys.stdin.readline()
params, report = read_params(open_tensors(Path(sys.argv[1])), names, abstract, places)
report.check("x")
print("imported", flush=True); sys.stdin.readline()
write_folder(sys.argv[2], exported(params, names), max_shard_bytes=10**8)
print("exported", flush=True); sys.stdin.readline()
"""


def anonymous(pid: int) -> int:
  """Bytes of a process's memory that no file backs."""
  lines = Path(f"/proc/{pid}/status").read_text().splitlines()
  return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is measured by Linux's /proc")
def test_import_and_export_take_no_second_copy_on_the_host(tmp_path):
  """270 MB of weights: import takes their size and a margin far below it, export that of two tensors."""
  layers, d, out, vocab = 6, 2048, 4096, 8192
  tensors = {f"{n}.weight": Made((out, d), np.float32, lambda n=n: np.full((out, d), n, np.float32))
             for n in range(layers)}  # fmt: skip
  tensors["table.weight"] = Made((vocab, d), np.float32, lambda: np.ones((vocab, d), np.float32))
  write_folder(tmp_path / "in", tensors)
  size, largest = 4 * d * (layers * out + vocab), 4 * d * vocab
  command = [sys.executable, "-c", IMPORT, str(tmp_path / "in"), str(tmp_path / "out"), str(layers), str(d), str(out),
             str(vocab)]  # fmt: skip
  root = str(Path(__file__).parents[2])
  env = {**os.environ, "PYTHONPATH": root, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
  with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
    os.set_blocking(process.stdout.fileno(), False)
    start: dict[str, int] = {}
    peak: dict[str, int] = {}
    stage, deadline = "starting", time.monotonic() + 120
    while stage != "exported" and process.poll() is None and time.monotonic() < deadline:
      now = anonymous(process.pid)
      peak[stage] = max(peak.get(stage, 0), now)
      if line := process.stdout.readline():
        stage = line.strip()
        start[stage] = anonymous(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
      time.sleep(0.002)
    process.communicate(input="\n")
  assert stage == "exported", stage
  megabyte = 2**20
  imported = peak["ready"] - start["ready"]
  assert size <= imported + 16 * megabyte, "the arrays were not all in memory at once: this measures nothing"
  assert imported <= size + 100 * megabyte, f"{imported / megabyte:.0f} MB for {size / megabyte:.0f} MB of weights"
  assert peak["imported"] - start["imported"] <= 2 * largest + 40 * megabyte
  assert same(open_tensors(tmp_path / "out"), open_tensors(tmp_path / "in"))
