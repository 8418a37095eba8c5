"""Checkpoints: bitwise on any mesh, only what is trained, and never of another model."""

from hashlib import blake2b

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtx.errors import UserError
from mtx.parallel.rules import parameter_shardings
from mtx.training.checkpoint import Checkpoints, Record
from mtx.training.optimizer import optimizer
from mtx.training.state import State, abstract_state, state_shardings

KERNEL, FACTOR, ROUTER = (f"decoder/layers/q/{p}" for p in ("kernel", "adapter/a", "adapter/router"))
SHAPES = {KERNEL: (2, 8, 16), FACTOR: (2, 2, 3, 4, 2), ROUTER: (2, 5, 2, 3)}
AXES = {
  KERNEL: ("embed", "heads"),
  FACTOR: ("split", "skill", "adapter_in", "rank"),
  ROUTER: ("task", "split", "skill"),
}
RECORD = Record(step=3, seed=7, data={"feed": "f00", "position": {"next": [1, 2]}}, gin="a.b = 1\n", tasks=["x", "y"])


def described(mesh, shapes=SHAPES):
  """(abstract state, its shardings)"""
  structs = {p: jax.ShapeDtypeStruct(s, jnp.float32) for p, s in shapes.items()}
  abstract = abstract_state(structs, optimizer(structs, {".*": 1e-3}, 10))
  return abstract, state_shardings(abstract, parameter_shardings(structs, AXES, mesh), mesh)


def random_state(mesh, shapes=SHAPES, seed=0) -> State:
  """Random values in every array of a state on `mesh`, moments and counters too."""
  rng = np.random.default_rng(seed)

  def one(struct, sharding):
    values = rng.integers(0, 99, struct.shape) if struct.dtype == jnp.int32 else rng.normal(size=struct.shape)
    return jax.device_put(values.astype(struct.dtype), sharding)

  state = jax.tree.map(one, *described(mesh, shapes))
  return State(jax.device_put(np.int32(3), state.step.sharding), state.train, state.opt)


@pytest.fixture
def checkpoints(tmp_path):
  made = Checkpoints(tmp_path / "checkpoints")
  yield made
  made.close()


@pytest.fixture
def reopened(checkpoints):
  """reopened(): the same folder, with everything on disk, as a later process sees it."""
  made = []

  def reopen() -> Checkpoints:
    checkpoints.wait()
    made.append(Checkpoints(checkpoints.folder))
    return made[-1]

  yield reopen
  for each in made:
    each.close()


def assert_equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(one), jax.device_get(other))


def test_round_trip_across_meshes(checkpoints, reopened, mesh_of, mesh8, mesh1):
  """Saved on 1 x 4 x 2: bitwise the same there, on 2 x 2 x 2 and on one device, placed as each mesh has it."""
  state = random_state(mesh_of(1, 4, 2))
  checkpoints.save(state, RECORD)
  checkpoints = reopened()
  for mesh in (mesh_of(1, 4, 2), mesh8, mesh1):
    abstract, shardings = described(mesh)
    restored = checkpoints.restore(checkpoints.latest(), abstract, shardings)
    assert_equal(restored, state)
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, restored, shardings))
    assert jax.tree.all(jax.tree.map(lambda x, s: x.dtype == s.dtype, restored, abstract))


def test_parameters_alone(checkpoints, reopened, mesh8, mesh1):
  """What a complete stage loads: the trained arrays, on another mesh too."""
  state = random_state(mesh8)
  checkpoints.save(state, RECORD)
  abstract, shardings = described(mesh1)
  assert_equal(reopened().restore_train(3, abstract.train, shardings.train), state.train)


@pytest.mark.parametrize("data", [RECORD.data, b"\x00\xffbytes", None], ids=["dict", "bytes", "none"])
def test_record(checkpoints, reopened, mesh1, data):
  """Step, seed, data position, gin and tasks come back as they went."""
  record = Record(**{**vars(RECORD), "data": data})
  checkpoints.save(random_state(mesh1), record)
  assert reopened().record(3) == record


def test_adapter_checkpoint_holds_adapters_alone(tmp_path, mesh1):
  """A frozen base is not on disk: neither its names nor its bytes."""
  base = SHAPES | {KERNEL: (2, 1024, 256)}
  adapters = {p: s for p, s in base.items() if "/adapter/" in p}
  sizes = {}
  for name, shapes in (("all", base), ("adapters", adapters)):
    checkpoints = Checkpoints(tmp_path / name)
    checkpoints.save(random_state(mesh1, shapes), RECORD)
    checkpoints.close()
    files = [f for f in (tmp_path / name).rglob("*") if f.is_file()]
    sizes[name] = sum(f.stat().st_size for f in files)
    assert any(b"q.kernel" in f.read_bytes() for f in files) == (name == "all")
  trained = sum(4 * 3 * int(np.prod(s)) for s in adapters.values())
  assert sizes["all"] > 4 * 3 * 2 * 1024 * 256 * 0.9  # random floats do not compress
  assert sizes["adapters"] < trained + 100_000


@pytest.mark.parametrize(
  "other, first",
  [
    (SHAPES | {KERNEL: (3, 8, 16)}, f"{KERNEL}: checkpoint (2, 8, 16), model (3, 8, 16)"),
    ({p: s for p, s in SHAPES.items() if p != FACTOR}, f"{FACTOR}: checkpoint (2, 2, 3, 4, 2), model absent"),
    ({**SHAPES, "decoder/a": (4,)}, "decoder/a: checkpoint absent, model (4,)"),
  ],
)
def test_another_model(checkpoints, reopened, mesh1, tmp_path, monkeypatch, other, first):
  """The first path that differs is named with both shapes; what is saved stays, to the byte, and can be restored."""
  monkeypatch.setitem(AXES, "decoder/a", ("norm",))
  state = random_state(mesh1)
  checkpoints.save(state, RECORD)
  checkpoints = reopened()
  before = contents(tmp_path)
  abstract, shardings = described(mesh1, other)
  with pytest.raises(UserError, match="is of another model") as error:
    checkpoints.restore(3, abstract, shardings)
  assert error.value.message.splitlines()[1].strip().replace(".", "/") == first.replace(".", "/")
  with pytest.raises(UserError, match="is of another model"):
    checkpoints.restore_train(3, abstract.train, shardings.train)
  assert contents(tmp_path) == before
  assert_equal(checkpoints.restore(3, *described(mesh1)), state)


def contents(folder) -> dict:
  return {f.relative_to(folder): blake2b(f.read_bytes()).digest() for f in folder.rglob("*") if f.is_file()}


def test_saving_does_not_wait_and_does_not_mix(checkpoints, mesh8):
  """Steps that donate the state go on while it is written: what is restored is the state at the save."""
  # Twice the same, because a host view of an array keeps its memory from being reused.
  state, saved = (random_state(mesh8, SHAPES | {KERNEL: (2, 512, 512)}) for _ in range(2))
  step = jax.jit(lambda s: jax.tree.map(lambda x: -2 * x + 1, s), donate_argnums=0)
  checkpoints.save(state, RECORD)
  for _ in range(20):
    state = step(state)
  jax.block_until_ready(state)
  checkpoints.wait()
  abstract, shardings = described(mesh8, SHAPES | {KERNEL: (2, 512, 512)})
  assert_equal(checkpoints.restore(3, abstract, shardings), saved)


def test_newest_are_kept(checkpoints, mesh1):
  """Two by default; `latest` is the newest; a step that is saved is not written again."""
  assert checkpoints.latest() is None
  states = [random_state(mesh1, seed=n) for n in range(4)]
  for n, state in enumerate(states[:3], 1):
    checkpoints.save(state, Record(**{**vars(RECORD), "step": n}))
  checkpoints.save(states[3], Record(**{**vars(RECORD), "step": 3}))
  checkpoints.wait()
  assert checkpoints.latest() == 3
  assert sorted(int(f.name) for f in checkpoints.folder.iterdir()) == [2, 3]
  abstract, shardings = described(mesh1)
  for step in (2, 3):
    assert_equal(checkpoints.restore_train(step, abstract.train, shardings.train), states[step - 1].train)
