"""Routing laws of MHR and Poly, and what each way of adapting to a new task trains."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mtx.adapters.poly import ADAPTATIONS, MHR, mixture, new_router, router_init
from mtx.adapters.routes import routing
from mtx.data.convert import padded
from mtx.errors import UserError
from mtx.models.build import build
from mtx.models.context import Context
from mtx.training.parameters import blueprint, partition

DIN, DOUT, TASKS, SKILLS, SPLITS, RANK = 12, 20, 4, 3, 2, 2


def adapter(**changes):
  sizes = dict(tasks=TASKS, skills=SKILLS, splits=SPLITS, rank=RANK) | changes
  return MHR(DIN, DOUT, ("embed", "heads"), rngs=nnx.Rngs(0), **sizes)


@pytest.fixture
def trained():
  """An adapter with everything away from its start."""
  module = adapter()
  rng = np.random.default_rng(0)
  for name in ("a", "b", "router"):
    variable = getattr(module, name)
    variable[...] = jnp.asarray(rng.normal(size=variable.shape), jnp.float32)
  return module


@pytest.fixture
def x():
  return np.random.default_rng(1).normal(size=(3, 5, DIN)).astype(np.float32)


def applied(module, x, task_ids):
  ones = np.ones(x.shape[:2], np.int32)
  return np.asarray(module(x, Context(np.asarray(task_ids, np.int32), segment_ids=ones, positions=ones)))


def test_per_token_equals_per_row(trained, x):
  """One task in all tokens of a row: both forms, to 1e-5. And tokens of other tasks do not mix."""
  rows = applied(trained, x, [2, 0, 3])
  tokens = applied(trained, x, np.repeat([[2], [0], [3]], 5, axis=1))
  scale = np.abs(rows).max()
  np.testing.assert_allclose(tokens, rows, rtol=0, atol=1e-5 * scale)
  mixed = applied(trained, x, [[2, 2, 2, 1, 1]] * 3)
  for columns, task in ((slice(0, 3), 2), (slice(3, 5), 1)):
    wanted = applied(trained, x, [task] * 3)[:, columns]
    np.testing.assert_allclose(mixed[:, columns], wanted, rtol=0, atol=1e-5 * scale)


def test_factors_are_mixed_then_multiplied(trained, x):
  """x (sum w A) (sum w B) / r block by block in float64; the mean of products is another function."""
  a, b = (np.asarray(v[...], np.float64) for v in (trained.a, trained.b))
  w = np.asarray(mixture(trained.router[...]), np.float64)[1]
  mixed_a = np.concatenate([np.einsum("s,sdr->dr", w[q], a[q]) for q in range(SPLITS)], axis=0)
  mixed_b = np.concatenate([np.einsum("s,srd->rd", w[q], b[q]) for q in range(SPLITS)], axis=1)
  wanted = x @ mixed_a @ mixed_b / RANK
  found = applied(trained, x, [1, 1, 1])
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
  whole_a = a.transpose(1, 0, 2, 3).reshape(SKILLS, DIN, RANK)
  whole_b = b.transpose(1, 2, 0, 3).reshape(SKILLS, RANK, DOUT)
  products = x @ np.einsum("s,sdr,sre->de", w.mean(0), whole_a, whole_b) / RANK
  assert np.abs(products - wanted).max() > 0.1 * np.abs(wanted).max()


def test_one_split_is_poly():
  """With one split the whole projection shares a mixture: weights [task, 1, skill], factors whole."""
  poly = adapter(splits=1)
  assert poly.a.shape == (1, SKILLS, DIN, RANK) and poly.b.shape == (1, SKILLS, RANK, DOUT)
  assert poly.router.shape == (TASKS, 1, SKILLS)


def test_mixture_is_a_normalised_sigmoid():
  """Zeros give exactly 1/S; rows sum to 1; the logits' order is kept and a skill's weight depends on all."""
  for skills in (1, 3, 8):
    np.testing.assert_array_equal(mixture(jnp.zeros((2, skills))), np.float32(1 / skills))
  logits = np.random.default_rng(0).normal(size=(5, 2, 7)).astype(np.float32)
  weights = np.asarray(mixture(logits))
  sigmoid = 1 / (1 + np.exp(-logits.astype(np.float64)))
  np.testing.assert_allclose(weights, sigmoid / sigmoid.sum(-1, keepdims=True), rtol=1e-5)


def test_initial_values():
  """B is zero, A uniform within 1/sqrt of a block's inputs, routers uniform within 1e-3 and not all equal."""
  module = adapter(rank=64)
  bound = (DIN / SPLITS) ** -0.5
  a, router = np.asarray(module.a[...]), np.asarray(module.router[...])
  assert not np.asarray(module.b[...]).any()
  assert 0.98 * bound < np.abs(a).max() <= bound
  assert abs(a.std() - bound / 3**0.5) < 0.02 * bound
  assert 0 < np.abs(router).max() <= 1e-3 and len(np.unique(router)) == router.size


@pytest.mark.parametrize("splits", [5, 8])
def test_splits_that_do_not_divide(splits):
  """12 x 20 takes 1, 2 and 4: the error says so."""
  with pytest.raises(UserError, match=rf"MHR.splits.*{splits}.*12 x 20") as error:
    adapter(splits=splits)
  assert error.value.hint == "valid choices: 1, 2, 4"


class TestAdaptations:
  """MHR-z, MHR and MHR-mu (arXiv 2211.03831, section 3)."""

  @pytest.fixture
  def paths(self, tiny, routed):
    return routed(tiny("causal")).shapes

  @pytest.mark.parametrize(
    "name, trained, router",
    [("MHR-z", {"router"}, "random"), ("MHR", {"a", "b", "router"}, "random"), ("MHR-mu", {"a", "b"}, "uniform")],
  )
  def test_trainable_sets(self, paths, name, trained, router):
    """Exactly these parameters of every adapter, and nothing of the base."""
    adaptation = ADAPTATIONS[name]
    found, frozen = partition(paths, {adaptation.trainable: 1.0})
    sites = ("decoder/layers/self_attention/v/adapter", "decoder/layers/mlp/wo/adapter")
    assert set(found) == {f"{site}/{part}" for site in sites for part in trained}
    assert all(not re.search("adapter", p) or p.rsplit("/")[-1] not in trained for p in frozen)
    assert adaptation.router == router

  def test_no_others(self):
    assert set(ADAPTATIONS) == {"MHR-z", "MHR", "MHR-mu"}

  def test_new_rows_are_never_copies(self):
    """Random rows have the initial spread whatever was trained; uniform ones mix by exactly 1/S. Layers stay."""
    trained = jnp.asarray(np.random.default_rng(0).normal(size=(2, TASKS, SPLITS, SKILLS)), jnp.float32)
    fresh = np.asarray(new_router(trained, 6, "random", jax.random.key(0)))
    assert fresh.shape == (2, 6, SPLITS, SKILLS)
    assert 0 < np.abs(fresh).max() <= 1e-3 and len(np.unique(fresh)) == fresh.size
    np.testing.assert_array_equal(fresh, router_init(jax.random.key(0), fresh.shape))
    uniform = new_router(trained, 6, "uniform", jax.random.key(0))
    np.testing.assert_array_equal(mixture(uniform), np.float32(1 / SKILLS))
    assert uniform.shape == fresh.shape


@pytest.mark.parametrize("form", ["row", "token"])
def test_a_task_is_a_low_rank_update(tiny, routed, weights, examples, form):
  """At every site of a model, cross-attention and head too: the base whose kernels gained A_t B_t / r, to 1e-5."""
  config = tiny("encdec", tied_head=False)
  model, plain = routed(config, tasks=3, pattern=".*"), blueprint(lambda rngs: build(config, rngs=rngs))
  params = weights(model)
  batch = padded(examples(3, seed=2), "encdec", 8, 5, [2, 0, 1], rows=3)
  if form == "token":
    del batch["task_ids"]
  found = np.asarray(jax.jit(lambda p, b: model.merge(p)(b).logits)(params, batch))
  merged_logits = jax.jit(lambda p, b: plain.merge(p)(b).logits)
  for row, task in enumerate([2, 0, 1]):
    merged = {p: v + update(params, p, task) if p.endswith("kernel") else v for p, v in params.items()}
    wanted = merged_logits({p: merged[p] for p in plain.shapes}, batch)[row]
    real = batch["decoder_segment_ids"][row] > 0
    np.testing.assert_allclose(found[row][real], wanted[real], rtol=0, atol=1e-5 * np.abs(wanted).max())


def update(params, kernel: str, task: int) -> np.ndarray:
  """What a task's adapter adds to a kernel, layer by layer."""
  site = kernel.removesuffix("kernel")
  a, b, router = (np.asarray(params[f"{site}adapter/{part}"], np.float64) for part in ("a", "b", "router"))
  if stacked := a.ndim == 5:
    layers = zip(a, b, router, strict=True)
  else:
    layers = [(a, b, router)]
  updates = []
  for a, b, router in layers:
    w = np.asarray(mixture(router[task]), np.float64)
    mixed_a = np.concatenate(np.einsum("qs,qsdr->qdr", w, a), axis=0)
    mixed_b = np.concatenate(np.einsum("qs,qsre->qre", w, b), axis=1)
    updates.append(mixed_a @ mixed_b / a.shape[-1])
  return np.stack(updates) if stacked else updates[0]


def test_routing_is_the_mean_over_sites_and_layers(tiny, routed, weights):
  """[task, split, skill], rows of a task sum to 1 in every split; None where nothing is routed."""
  model = routed(tiny("causal"))
  params = weights(model)
  routes = routing(params, model.axes)
  routers = [np.asarray(mixture(params[p])) for p in params if p.endswith("router")]
  np.testing.assert_allclose(routes, np.mean(routers, axis=(0, 1)), rtol=1e-6)
  np.testing.assert_allclose(routes.sum(-1), 1.0, rtol=1e-6)
  plain = {p: v for p, v in params.items() if "adapter" not in p}
  assert routing(plain, model.axes) is None
