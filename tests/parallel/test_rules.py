"""From logical axes to shardings: of parameters, of optimizer state, of batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from mtx.errors import UserError
from mtx.parallel.rules import RULES, batch_sharding, optimizer_shardings, place, spec
from mtx.training.optimizer import optimizer


def test_specs_of_a_routed_model(tiny, routed, mesh8):
  """d_model over fsdp; heads, d_ff and vocabulary over tensor; layers, norms and adapters whole."""
  model = routed(tiny("encdec", tied_head=False, absolute_positions=6), pattern=".*/(q|wo)")
  found = {p: s.spec for p, s in model.shardings(mesh8).items()}
  layers = "decoder/layers/"
  wanted = {
    "head/embedding/table": P("tensor", "fsdp"),
    "head/projection/kernel": P("fsdp", "tensor"),
    "head/entry/position_table": P(None, "fsdp"),
    "encoder/relative_bias/table": P(None, "tensor"),
    "decoder/norm/scale": P(None),
    layers + "self_norm/scale": P(None, None),
    layers + "self_attention/q/kernel": P(None, "fsdp", "tensor"),
    layers + "cross_attention/o/kernel": P(None, "tensor", "fsdp"),
    layers + "mlp/wi_0/kernel": P(None, "fsdp", "tensor"),
    layers + "mlp/wo/kernel": P(None, "tensor", "fsdp"),
    layers + "mlp/wo/adapter/a": P(None, None, None, None, None),
    layers + "self_attention/q/adapter/router": P(None, None, None, None),
  }
  assert {p: found[p] for p in wanted} == wanted


def test_every_axis_of_every_model_has_a_rule(tiny, routed):
  """Start-up would name the parameter otherwise; here it is all of them at once."""
  for architecture in ("encdec", "prefix"):
    model = routed(tiny(architecture, tied_head=False, absolute_positions=6), pattern=".*")
    assert {a for axes in model.axes.values() for a in axes} <= set(RULES)


def test_an_axis_without_a_rule(mesh8):
  with pytest.raises(UserError, match="encoder/x/kernel: no rule for axis 'embd'") as error:
    spec("encoder/x/kernel", (4, 8), ("embd", "mlp"), mesh8)
  assert "`embed`" in error.value.hint


def test_a_size_that_does_not_divide(mesh_of):
  mesh = mesh_of(1, 2, 4)
  with pytest.raises(UserError, match=r"encoder/x/kernel \(2, 8, 6\): axis 'heads' of size 6 .*'tensor' of size 4"):
    spec("encoder/x/kernel", (2, 8, 6), ("embed", "heads"), mesh)


def test_vocabulary_rows_that_do_not_divide_stay_whole(mesh_of):
  """A pre-trained table has as many rows as it has; that axis alone, and only where it does not divide."""
  mesh = mesh_of(1, 2, 4)
  assert spec("head/embedding/table", (50257, 8), ("vocab", "embed"), mesh) == P(None, "fsdp")
  assert spec("head/embedding/table", (50256, 8), ("vocab", "embed"), mesh) == P("tensor", "fsdp")
  with pytest.raises(UserError, match="axis 'embed' of size 9"):
    spec("head/embedding/table", (50257, 9), ("vocab", "embed"), mesh)


def state_shardings(tx, shapes, shardings, mesh):
  abstract = jax.eval_shape(tx.init, shapes)
  return abstract, optimizer_shardings(abstract, shardings, shapes, mesh)


@pytest.mark.parametrize("algorithm", ["adamw", "adafactor"])
def test_optimizer_state_follows_its_parameter(tiny, routed, mesh8, algorithm):
  """Moments of a parameter's shape lie as it does, through clipping, groups and masks; all other state is whole."""
  model = routed(tiny("causal", d_model=128, d_ff=256))  # Adafactor factors from 128 on
  rates = {".*/adapter/.*": 1e-3, ".*/kernel": 1e-4, ".*": 1e-4}
  tx = optimizer(model.shapes, rates, 10, algorithm=algorithm)
  parameters = model.shardings(mesh8)
  abstract, shardings = state_shardings(tx, model.shapes, parameters, mesh8)
  followed = set()
  for (path, leaf), sharding in zip(
    jax.tree_util.tree_leaves_with_path(abstract), jax.tree.leaves(shardings), strict=True
  ):
    name = [k.key for k in path if isinstance(k, jax.tree_util.DictKey)][-1:]
    if name and name[0] in parameters and leaf.shape == model.shapes[name[0]].shape:
      assert sharding.spec == parameters[name[0]].spec
      followed.add(name[0])
    else:
      assert sharding.spec == P()
  factored = {p for p, s in model.shapes.items() if len(s.shape) > 1 and sorted(s.shape)[-2] >= 128}
  assert followed == set(model.shapes) - (factored if algorithm == "adafactor" else set())
  assert factored


def test_state_is_born_with_these_shardings(mesh8):
  """jit(init) with them gives arrays that lie so; optax alone would replicate."""
  shapes = {"a/kernel": jax.ShapeDtypeStruct((4, 8), jnp.float32)}
  parameters = {"a/kernel": jax.sharding.NamedSharding(mesh8, P("fsdp", "tensor"))}
  tx = optax.adam(1e-3)
  _, shardings = state_shardings(tx, shapes, parameters, mesh8)
  weights = {"a/kernel": jax.device_put(jnp.ones((4, 8)), parameters["a/kernel"])}
  state = jax.jit(tx.init, out_shardings=shardings)(weights)
  assert state[0].mu["a/kernel"].sharding == parameters["a/kernel"]
  assert state[0].mu["a/kernel"].addressable_shards[0].data.shape == (2, 4)


def test_place_splits_rows(mesh8):
  """Rows over data and fsdp, columns whole, values as they were."""
  batch = {"decoder_input_tokens": np.arange(24, dtype=np.int32).reshape(8, 3), "task_ids": np.arange(8)}
  placed = place(batch, mesh8)
  assert placed["decoder_input_tokens"].sharding == batch_sharding(mesh8)
  assert {s.data.shape for s in placed["decoder_input_tokens"].addressable_shards} == {(2, 3)}
  for name, values in batch.items():
    np.testing.assert_array_equal(placed[name], values)
