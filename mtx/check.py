"""`mtx check`: versions, devices, a five-step sharded train; OK, or the one thing to mend."""

import sys
from functools import partial
from importlib import metadata

PACKAGES = (
  "mtx", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "gin-config", "ml_collections", "seqio",
  "tensorflow", "tensorflow-datasets",
)  # fmt: skip


def versions() -> dict[str, str]:
  """Installed version of everything that a run depends on."""
  found = {"python": sys.version.split()[0]}
  for name in PACKAGES:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      found[name] = "not installed"
  return found


def check() -> int:
  """Prints what is there and trains; returns the exit code."""
  for name, version in versions().items():
    print(f"{name:20} {version}")
  try:
    import jax

    devices = jax.devices()
  except RuntimeError as error:
    print(f"mend: JAX finds no device: {error}")
    return 2
  print(f"{'devices':20} {len(devices)} x {devices[0].device_kind} ({devices[0].platform})")
  try:
    losses, mesh = five_steps()
  except Exception as error:  # whatever a broken installation raises, the user needs one line
    print(f"mend: five training steps failed: {type(error).__name__}: {error}")
    return 2
  print(f"{'mesh':20} {mesh}")
  print(f"{'five steps':20} loss {losses[0]:.3f} -> {losses[-1]:.3f}")
  if not losses[-1] < losses[0]:
    print("mend: the loss did not fall; the backend computes wrong gradients")
    return 2
  if versions()["seqio"] == "not installed":
    print("note: SeqIO is not installed; training needs caches that were built elsewhere")
  print("OK")
  return 0


def five_steps() -> tuple[list[float], dict[str, int]]:
  """Trains MHR adapters of a small encoder-decoder on random tokens, on a mesh over all devices."""
  import jax
  import numpy as np

  from mtx.adapters.poly import MHR
  from mtx.adapters.site import inject
  from mtx.data.convert import padded
  from mtx.models.build import build
  from mtx.models.sizes import PRESETS
  from mtx.objectives.cross_entropy import cross_entropy
  from mtx.parallel.mesh import batch_ways, make_mesh
  from mtx.parallel.rules import place
  from mtx.training.optimizer import optimizer
  from mtx.training.parameters import blueprint, partition
  from mtx.training.state import abstract_state, initial_state, state_shardings
  from mtx.training.step import make_step

  n = len(jax.devices())
  mesh = make_mesh(data=-1, fsdp=2 if n % 2 == 0 else 1, tensor=2 if n % 4 == 0 else 1)
  config = PRESETS["t5_micro"]()
  config.update(vocab_size=128, architecture="encdec")

  def make(rngs):
    model = build(config, rngs=rngs)
    inject(model, 4, rngs, pattern=r".*/(q|v)", method=MHR)
    return model

  model = blueprint(make)
  rates = {".*": 1e-2}
  shapes, _ = partition(model.shapes, rates)
  tx = optimizer(shapes, rates, 5, schedule="constant")
  parameters = model.shardings(mesh)
  shardings = state_shardings(abstract_state(shapes, tx), parameters, mesh)
  state = initial_state(model.initialise(jax.random.key(0), mesh), tx, shardings)
  step = make_step(model, partial(cross_entropy, tasks=4), tx, shardings, {}, mesh)
  rng = np.random.default_rng(0)
  tokens = lambda length: rng.integers(3, 128, length).astype(np.int32)
  rows = batch_ways(mesh) * 4
  examples = [{"inputs": tokens(12), "targets": tokens(6)} for _ in range(rows)]
  batch = place(padded(examples, "encdec", 12, 6, [i % 4 for i in range(rows)], rows=rows), mesh)
  losses = []
  for _ in range(5):
    state, metrics = step(state, {}, batch, jax.random.key(1))
    losses.append(float(metrics["loss"]))
  return losses, dict(mesh.shape)
