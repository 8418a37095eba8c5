"""A model as one flat dict: complete, born sharded, the same on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mtx.adapters.poly import MHR
from mtx.adapters.site import inject
from mtx.models.config import config
from mtx.models.layers import RMSNorm
from mtx.models.stack import MLP, stacked
from mtx.training.parameters import blueprint, count, fingerprint, partition, rule_for


class Layers(nnx.Module):
  """Two stacked layers with an adapter, and a norm: every kind of parameter, few to compile."""

  def __init__(self, rngs):
    sizes = config(d_model=16, heads=2, d_kv=8, d_ff=32, decoder_layers=2)
    self.layers = stacked(lambda r: MLP(sizes, rngs=r), 2, rngs)
    self.norm = RMSNorm(16, epsilon=1e-6, rngs=rngs)
    inject(self, 3, rngs, pattern=".*/wo", method=MHR)


@pytest.fixture(scope="module")
def model():
  return blueprint(Layers)


@pytest.fixture(scope="module")
def born(model, mesh8):
  return model.initialise(jax.random.key(0), mesh8)


def test_born_sharded(model, born, mesh8):
  """Every parameter lies as its rule says from the start: a device holds a quarter of a kernel."""
  shardings = model.shardings(mesh8)
  assert born.keys() == model.shapes.keys()
  for path, value in born.items():
    assert value.sharding == shardings[path], path
    assert value.dtype == jnp.float32
  assert born["layers/wi_0/kernel"].addressable_shards[0].data.shape == (2, 8, 16)


def test_mesh_changes_no_value(model, born, mesh1):
  """One key, one model: bitwise on one device and on eight."""
  for path, value in model.initialise(jax.random.key(0), mesh1).items():
    np.testing.assert_array_equal(value, born[path], err_msg=path)


def test_layers_start_apart(born):
  """Layers of a stack and factors of skills are drawn one by one; norms are one, B is zero."""
  for path, value in born.items():
    if path == "norm/scale":
      np.testing.assert_array_equal(value, 1.0)
    elif path.endswith("/b"):
      np.testing.assert_array_equal(value, 0.0)
    else:
      assert len(np.unique(value)) == value.size, path


def test_merge_is_the_module(model, born):
  """The module over the dict holds these very values, and the dict read back from it is the same."""
  module = model.merge(born)
  assert module.layers.wo.adapter.a[...] is born["layers/wo/adapter/a"]
  read = {"/".join(map(str, p)): v[...] for p, v in nnx.to_flat_state(nnx.state(module, nnx.Param))}
  assert read.keys() == born.keys() and all(read[p] is born[p] for p in born)


def test_partition_is_exact(model):
  """A whole path matches or it does not; the two parts are everything."""
  train, frozen = partition(model.shapes, {r".*/adapter/router": 0.1, r".*/adapter/.*": 1e-3})
  assert set(train) == {f"layers/wo/adapter/{part}" for part in ("a", "b", "router")}
  assert {**train, **frozen} == model.shapes and not train.keys() & frozen.keys()
  assert partition(model.shapes, {"adapter": 1.0})[0] == {}
  assert count(train) + count(frozen) == count(model.shapes) == sum(s.size for s in model.shapes.values())


def test_the_longest_pattern_counts():
  """In whatever order the rules stand: gin writes them in another one than the user did."""
  rules = [r".*", r".*/adapter/.*", r".*/adapter/router"]
  for order in (rules, rules[::-1]):
    assert rule_for(order, "layers/wo/adapter/router") == r".*/adapter/router"
    assert rule_for(order, "layers/wo/adapter/a") == r".*/adapter/.*"
    assert rule_for(order, "layers/wo/kernel") == r".*"
  assert rule_for(rules[1:], "layers/wo/kernel") is None
  assert rule_for([".*/wo/a", ".*/wo/."], "x/wo/a") == rule_for([".*/wo/.", ".*/wo/a"], "x/wo/a")


def test_a_fingerprint_is_of_every_bit_in_its_place(born, mesh1):
  """The same on every mesh; another one after any change, however small, and after an exchange."""
  here = jax.sharding.NamedSharding(mesh1, jax.sharding.PartitionSpec())
  values = {path: np.array(value) for path, value in born.items()}
  alone = {path: jax.device_put(value, here) for path, value in values.items()}
  found = fingerprint(born)
  assert fingerprint(alone) == found
  path = "layers/wi_0/kernel"
  for change in (lambda v: np.nextafter(v[-1], np.float32(9)), lambda v: v[0]):
    flat = values[path].ravel().copy()
    assert flat[0] != flat[-1]
    flat[-1] = change(flat)
    assert fingerprint(alone | {path: jnp.array(flat.reshape(values[path].shape))}) != found
  flipped = values[path].ravel()[::-1].reshape(values[path].shape)
  halves = alone | {path: alone[path].astype(jnp.bfloat16)}
  others = [alone | {path: jnp.array(flipped)}, halves, {f"x/{p}": v for p, v in alone.items()}, {}]
  assert len({found, *map(fingerprint, others)}) == 1 + len(others)
