"""Optimizer: groups by regex, schedules, decay and clipping, on trees small enough to compute by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtx.errors import UserError
from mtx.training.optimizer import check_rules, optimizer, schedule

ROUTER, A, B = (f"decoder/layers/self_attention/q/adapter/{part}" for part in ("router", "a", "b"))
RATES = {r".*/adapter/router": 0.1, r".*/adapter/.*": 1e-3}


@pytest.fixture
def params():
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return {ROUTER: 1e-3 * draw(4, 2, 3), A: draw(2, 3, 8, 2), B: jnp.zeros((2, 3, 2, 8))}


@pytest.fixture
def grads(params):
  rng = np.random.default_rng(1)
  return {p: jnp.asarray(rng.normal(size=v.shape), jnp.float32) for p, v in params.items()}


def updates(params, grads, rates=RATES, steps=100, count=1, **settings):
  """(updates of the last of `count` equal steps, state)"""
  tx = optimizer(jax.eval_shape(lambda: params), rates, steps, **({"schedule": "constant"} | settings))
  state = tx.init(params)
  for _ in range(count):
    update, state = tx.update(grads, state, params)
  return update, state


def adam_state(state) -> optax.ScaleByAdamState:
  """Moments of all groups as one tree."""
  is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)
  found = [s for s in jax.tree.leaves(state, is_leaf=is_adam) if is_adam(s)]
  merged = lambda trees: {p: v for t in trees for p, v in t.items() if hasattr(v, "shape")}
  return optax.ScaleByAdamState(found[0].count, merged([s.mu for s in found]), merged([s.nu for s in found]))


@pytest.mark.parametrize(
  "kind, warmup, values",
  [
    ("constant", 0, {0: 1, 50: 1, 99: 1}),
    ("linear", 0, {0: 1, 50: 0.5, 75: 0.25, 99: 0.01, 100: 0}),
    ("linear", 20, {0: 1 / 20, 9: 0.5, 19: 1, 20: 1, 60: 0.5, 100: 0}),
    ("cosine", 0, {0: 1, 50: 0.5, 25: 0.5 + 0.5 * 2**-0.5, 100: 0}),
    ("cosine", 20, {0: 1 / 20, 19: 1, 20: 1, 60: 0.5, 100: 0}),
    ("rsqrt", 0, {0: 1, 3: 0.5, 99: 0.1}),
    ("rsqrt", 25, {0: 1 / 25, 24: 1, 25: 1, 25 + 75: 0.5}),
  ],
)
def test_schedules(kind, warmup, values):
  """Learning rate at named steps of 100, peak 3, to 1e-6: warm-up moves from its first step on."""
  rate = schedule(kind, 3.0, 100, warmup)
  for step, share in values.items():
    np.testing.assert_allclose(rate(step), 3.0 * share, atol=1e-6, err_msg=f"step {step}")


@pytest.mark.parametrize("algorithm", ["adamw", "adafactor"])
def test_groups_have_their_own_rates(params, grads, algorithm):
  """The first step of either algorithm moves every entry by its group's rate; the longest pattern counts."""
  update, _ = updates(params, grads, RATES, algorithm=algorithm, clip=0)
  for path, rate in {ROUTER: 0.1, A: 1e-3, B: 1e-3}.items():
    np.testing.assert_allclose(update[path], -rate * np.sign(grads[path]), rtol=2e-2, err_msg=path)


def test_adafactor_moves_zeros_and_small_routers(params, grads):
  """Without parameter scaling: 10 equal steps move B from 0, and routers of 1e-3, by about 10 rates."""
  tx = optimizer(jax.eval_shape(lambda: params), RATES, 100, algorithm="adafactor", schedule="constant")
  state, moved = tx.init(params), params
  for _ in range(10):
    update, state = tx.update(grads, state, moved)
    moved = optax.apply_updates(moved, update)
  for path, rate in {ROUTER: 0.1, B: 1e-3}.items():
    np.testing.assert_allclose(np.abs(moved[path] - params[path]).mean(), 10 * rate, rtol=0.1, err_msg=path)


@pytest.mark.parametrize("algorithm", ["adamw", "adafactor"])
def test_decay_only_where_asked(params, algorithm):
  """Zero gradients: a parameter with a rule shrinks by rate * decay, all others stay; either algorithm the same."""
  still = jax.tree.map(jnp.zeros_like, params)
  update, _ = updates(params, still, algorithm=algorithm, weight_decay={r".*/a": 0.2, r".*/none": 0.5})
  np.testing.assert_allclose(update[A], -1e-3 * 0.2 * params[A], rtol=1e-5, atol=1e-12)
  for path in (ROUTER, B):
    np.testing.assert_array_equal(update[path], 0.0)


def test_clip_is_one_norm_over_all_groups(params, grads):
  """Gradients above the norm are scaled to it together; below it, and with 0, they are as they are."""
  norm = float(optax.global_norm(grads))
  for clip, scale in ((1.0, 1 / norm), (2 * norm, 1.0), (0, 1.0)):
    _, state = updates(params, grads, clip=clip)
    for path, mu in adam_state(state).mu.items():
      np.testing.assert_allclose(mu, 0.1 * scale * grads[path], rtol=1e-5, err_msg=f"{clip} {path}")


def test_state_is_two_moments_a_parameter(params, grads):
  """AdamW: exactly two arrays of a parameter's shape each, once, whatever the groups; counters beside them."""
  _, state = updates(params, grads, weight_decay={r".*/a": 0.1})
  moments = adam_state(state)
  assert moments.mu.keys() == moments.nu.keys() == params.keys()
  arrays = [x for x in jax.tree.leaves(state) if x.ndim]
  assert sum(x.size for x in arrays) == 2 * sum(v.size for v in params.values())


def test_all_groups_follow_the_schedule(params, grads):
  """The last of 100 linear steps is a hundredth of the first in every group."""
  first, _ = updates(params, grads, schedule="linear")
  last, _ = updates(params, grads, schedule="linear", count=100)
  for path in params:
    np.testing.assert_allclose(last[path], 0.01 * first[path], rtol=0.02, err_msg=path)


@pytest.mark.parametrize(
  "settings, message, hint",
  [
    ({"algorithm": "adamW"}, r"optimizer.algorithm.*'adamW'", "`adamw`"),
    ({"schedule": "cosin"}, r"optimizer.schedule.*'cosin'", "`cosine`"),
  ],
)
def test_unknown_names(params, grads, settings, message, hint):
  with pytest.raises(UserError, match=message) as error:
    updates(params, grads, **settings)
  assert hint in error.value.hint


def test_rules_that_match_nothing(params):
  """A pattern has to match a whole path; the paths are listed."""
  check_rules(RATES, params)
  with pytest.raises(UserError, match=r"'adapter/.*' matches no parameter") as error:
    check_rules({"adapter/.*": 1.0}, params)
  assert all(p in error.value.hint for p in params)
  with pytest.raises(UserError, match="no regular expression"):
    check_rules({"(": 1.0}, params)
