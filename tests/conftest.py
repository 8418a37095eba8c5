"""What every test may ask for: 8 fake CPU devices, a compilation cache, meshes, real data, tiny models and batches."""

import os
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Before JAX is imported. The environment and not jax.config, so that subprocesses inherit it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtx.adapters.poly import MHR
from mtx.adapters.site import inject
from mtx.models.build import build
from mtx.models.sizes import PRESETS
from mtx.parallel.mesh import AXES
from mtx.training.parameters import blueprint

# Five sites of an encoder-decoder: both streams, and cross-attention's side that reads the encoder.
SITES = r".*/(v|wo)"


@pytest.fixture(autouse=True)
def unbound():
  """What one test binds in gin does not reach the next."""
  yield
  gin.clear_config()


@pytest.fixture(scope="session")
def shared() -> Path:
  """Real data beside the checkout."""
  path = ROOT.parent / "shared" / "data"
  if not path.is_dir():
    pytest.skip(f"real data is not at {path}")
  return path


@pytest.fixture(scope="session")
def mesh_of():
  """mesh_of(data, fsdp, tensor): over the first devices, as many as that takes."""

  def mesh(*sizes: int) -> jax.sharding.Mesh:
    needed = int(np.prod(sizes))
    if len(jax.devices()) < needed:
      pytest.skip(f"needs {needed} devices, and XLA_FLAGS of this process gives {len(jax.devices())}")
    return jax.sharding.Mesh(np.array(jax.devices()[:needed]).reshape(sizes), AXES)

  return mesh


@pytest.fixture(scope="session")
def mesh1(mesh_of):
  return mesh_of(1, 1, 1)


@pytest.fixture(scope="session")
def mesh8(mesh_of):
  return mesh_of(2, 2, 2)


@pytest.fixture(scope="session")
def tiny():
  """tiny(architecture, **changes): sizes of a model that compiles in seconds; no two of its sizes are equal."""

  def config(architecture: str = "encdec", **changes):
    c = PRESETS["t5_micro"]()
    c.update(d_model=16, heads=2, d_kv=12, d_ff=32, vocab_size=48, relative_buckets=8, relative_max_distance=16)
    c.architecture = architecture
    c.update(changes)
    return c

  return config


@pytest.fixture(scope="session")
def routed():
  """routed(config, ...): blueprint of a model with MHR adapters for `tasks` tasks."""

  def make(config, *, tasks: int = 3, pattern: str = SITES, skills: int = 3, splits: int = 2, rank: int = 2):
    method = partial(MHR, skills=skills, splits=splits, rank=rank)

    def module(rngs):
      model = build(config, rngs=rngs)
      inject(model, tasks, rngs, pattern=pattern, method=method)
      return model

    return blueprint(module)

  return make


@pytest.fixture(scope="session")
def weights():
  """weights(blueprint, seed): parameters with nothing at zero, drawn on the host, which costs no compilation."""

  def draw(model, seed: int = 0):
    rng = np.random.default_rng(seed)

    def one(path: str, shape):
      if path.endswith("scale"):
        return 1 + 0.2 * rng.normal(size=shape)
      return rng.normal(size=shape) * (1.0 if path.endswith(("table", "router")) else shape[-2:][0] ** -0.5)

    return {p: jnp.asarray(one(p, s.shape), s.dtype) for p, s in sorted(model.shapes.items())}

  return draw


@pytest.fixture(scope="session")
def examples():
  """examples(count, ...): random tokens of unequal lengths, EOS (1) last."""

  def make(count: int, *, inputs: int = 8, targets: int = 5, vocabulary: int = 48, seed: int = 0):
    rng = np.random.default_rng(seed)
    tokens = lambda longest: np.append(rng.integers(3, vocabulary, rng.integers(1, longest)), 1).astype(np.int32)
    return [{"inputs": tokens(inputs), "targets": tokens(targets)} for _ in range(count)]

  return make
