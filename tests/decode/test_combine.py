"""Combinations of logits against their formulas written out in NumPy float64, one row and one candidate at a time."""

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtx.decode.combine import Emulated, LogitFusion, mean_logits, mean_probabilities
from mtx.errors import UserError

ROWS, VOCABULARY = 5, 37


def drawn(models: int, *, width: int = VOCABULARY, scale: float = 2.0, seed: int = 0) -> list[jax.Array]:
  rng = np.random.default_rng(seed)
  return [jnp.asarray(scale * rng.normal(size=(ROWS, width)), jnp.float32) for _ in range(models)]


def log_softmax(x: np.ndarray) -> np.ndarray:
  x = np.asarray(x, np.float64)
  return x - np.log(np.exp(x - x.max()).sum()) - x.max()


def divergence(p: np.ndarray, q: np.ndarray) -> float:
  return float((np.exp(p) * (p - q)).sum())


def brute_force(logits: list[np.ndarray], alphas) -> tuple[np.ndarray, np.ndarray]:
  """(objective of every row, expert and weight; fused distribution of every row, expert and weight), one at a time."""
  large, small, *tuned = (np.asarray(x, np.float64) for x in logits)
  objective = np.zeros((ROWS, len(tuned), len(alphas)))
  fused = np.zeros((*objective.shape, large.shape[1]))
  for row in range(ROWS):
    p, q, *experts = (log_softmax(x[row]) for x in (large, small, *tuned))
    for t, each in enumerate(tuned):
      for i, alpha in enumerate(alphas):
        moved = log_softmax(large[row] + alpha * (each[row] - small[row]))
        fused[row, t, i] = np.exp(moved)
        for u in experts:
          objective[row, t, i] += (divergence(moved, p) - divergence(u, q)) ** 2
          objective[row, t, i] += (divergence(p, moved) - divergence(q, u)) ** 2
  return objective, fused


@pytest.mark.parametrize("experts", [1, 3])
def test_fusion_equals_brute_force(experts):
  """Every row's expert and weight are those of the written-out search, and so is the distribution."""
  logits, fusion = drawn(2 + experts), LogitFusion(steps=2)
  objective, expected = brute_force(logits, fusion.alphas)
  ours = jax.jit(lambda x: fusion._objective(x[0], x[1], x[2:], jnp.ones((ROWS, VOCABULARY), bool)))(logits)
  np.testing.assert_allclose(np.moveaxis(np.asarray(ours), -1, 0), objective, rtol=2e-4, atol=2e-5)
  fused, state = jax.jit(fusion)(logits, fusion.init(ROWS))
  best = [np.unravel_index(each.argmin(), each.shape) for each in objective]
  assert np.asarray(state["expert"][:, 0]).tolist() == [t for t, _ in best]
  np.testing.assert_allclose(state["alpha"][:, 0], [fusion.alphas[i] for _, i in best], rtol=1e-6)
  assert len({i for _, i in best}) > 1 and (experts == 1 or len({t for t, _ in best}) > 1)
  probabilities = np.asarray(jax.nn.softmax(fused))
  np.testing.assert_allclose(probabilities, [expected[row, t, i] for row, (t, i) in enumerate(best)], atol=1e-6)


def test_fusion_does_not_see_other_rows():
  """A row's choice is its own: reversed rows give reversed results, bit for bit."""
  logits, fusion = drawn(4), LogitFusion(steps=1)
  fused, state = jax.jit(fusion)(logits, fusion.init(ROWS))
  back, state_back = jax.jit(fusion)([x[::-1] for x in logits], fusion.init(ROWS))
  np.testing.assert_array_equal(back, fused[::-1])
  np.testing.assert_array_equal(state_back["alpha"], state["alpha"][::-1])


def test_fusion_with_weight_one_is_proxy_tuning():
  """One expert and the one weight 1: bit for bit what `Emulated` gives."""
  logits, fusion = drawn(3), LogitFusion(alphas=(1.0,), steps=1)
  fused, _ = jax.jit(fusion)(logits, fusion.init(ROWS))
  np.testing.assert_array_equal(fused, jax.jit(Emulated())(logits)[0])


def test_an_expert_that_learnt_nothing_changes_nothing():
  """T = 1 and Q_1 = Q: every weight is as good, the first is taken, and the result is P."""
  large, small = drawn(2)
  fusion = LogitFusion(steps=1)
  fused, state = jax.jit(fusion)([large, small, small], fusion.init(ROWS))
  np.testing.assert_array_equal(fused, large)
  assert not np.asarray(state["alpha"]).any() and not np.asarray(state["expert"]).any()


def test_fusion_remembers_its_choices_and_no_more_than_it_has_room_for():
  fusion = LogitFusion(steps=2)
  state = fusion.init(ROWS)
  assert (np.asarray(state["expert"]) == -1).all()
  chosen = []
  for seed in range(3):
    _, state = fusion(drawn(4, seed=seed), state)
    chosen.append(LogitFusion(steps=1)(drawn(4, seed=seed), LogitFusion(steps=1).init(ROWS))[1])
  for step in range(2):
    for name in ("expert", "alpha"):
      np.testing.assert_array_equal(state[name][:, step], chosen[step][name][:, 0])
  assert np.asarray(state["step"]).tolist() == [3] * ROWS


def test_fusion_never_holds_the_grid():
  """Temporaries stay a few [batch, vocab] arrays, with two candidates or with sixty-three."""
  shape = jax.ShapeDtypeStruct((ROWS, 4096), jnp.float32)
  temporary = {}
  for alphas in ((0.0, 1.0), LogitFusion().alphas):
    fusion = LogitFusion(alphas=alphas, steps=1)
    compiled = jax.jit(fusion).lower([shape] * 5, fusion.init(ROWS)).compile()
    temporary[len(alphas)] = compiled.memory_analysis().temp_size_in_bytes
  array = 4 * ROWS * 4096
  assert temporary[21] < temporary[2] + 2 * array
  assert temporary[21] < 40 * array


def test_emulation_equals_its_formula():
  """In log-probabilities, as the paper has it; raw logits give the same distribution."""
  logits, weights = drawn(4), (0.7, -0.4)
  combined, state = jax.jit(Emulated(weights))(logits)
  assert state == ()
  for row in range(ROWS):
    large, small, *tuned = (log_softmax(x[row]) for x in logits)
    total = large + sum(w * (each - small) for w, each in zip(weights, tuned, strict=True))
    np.testing.assert_allclose(jax.nn.log_softmax(combined[row]), log_softmax(total), atol=2e-5)


def test_weight_zero_is_the_base_bit_for_bit():
  """Also where the other models rule tokens out."""
  large, small, tuned = drawn(3)
  tuned = tuned.at[:, 3].set(-jnp.inf)
  for logits in ([large, small, tuned], [large, small[:, :30], tuned[:, :30]]):
    np.testing.assert_array_equal(jax.jit(Emulated((0.0,)))(logits)[0], large)
  one = jax.jit(Emulated((0.5,)))([large, small, large])[0]
  np.testing.assert_array_equal(jax.jit(Emulated((0.5, 0.0)))([large, small, large, tuned])[0], one)


def test_a_base_that_is_the_small_base_becomes_the_tuned_model():
  large, tuned = drawn(2)
  np.testing.assert_allclose(jax.jit(Emulated())([large, large, tuned])[0], tuned, atol=1e-5)


@pytest.mark.parametrize("combine", [Emulated((1.5,)), LogitFusion(steps=1), mean_logits])
@pytest.mark.parametrize("marked", ["infinite", "sliced"])
def test_tokens_that_a_model_lacks(combine, marked):
  """Padded rows come as -inf or not at all: the same result, free of NaN, as if only the common tokens existed."""
  logits, common = drawn(3), VOCABULARY - 6
  state = combine.init(ROWS) if hasattr(combine, "init") else ()
  expected, _ = jax.jit(combine)([x[:, :common] for x in logits], state)
  if marked == "sliced":
    given = [logits[0], logits[1][:, :common], logits[2][:, : common + 2]]
  else:
    given = [logits[0], *(x.at[:, common:].set(-jnp.inf) for x in logits[1:])]
  combined, _ = jax.jit(combine)(given, state)
  assert combined.shape == (ROWS, VOCABULARY)
  np.testing.assert_allclose(combined[:, :common], expected, atol=1e-5)
  assert (np.asarray(combined[:, common:]) == -np.inf).all()


def test_means():
  """The mean of probabilities is a distribution, the mean of logits the normalised geometric mean."""
  logits = drawn(3)
  p = np.stack([np.exp([log_softmax(row) for row in x]) for x in logits])
  np.testing.assert_allclose(jnp.exp(jax.jit(mean_probabilities)(logits)[0]), p.mean(0), atol=1e-6)
  geometric = np.exp(np.log(p).mean(0))
  expected = geometric / geometric.sum(-1, keepdims=True)
  np.testing.assert_allclose(jax.nn.softmax(jax.jit(mean_logits)(logits)[0]), expected, atol=1e-6)
  narrow = [logits[0], logits[1][:, :30].at[:, 4].set(-jnp.inf)]
  mixed = np.asarray(jnp.exp(jax.jit(mean_probabilities)(narrow)[0]))
  np.testing.assert_allclose(mixed.sum(-1), 1, atol=1e-5)
  np.testing.assert_allclose(mixed[:, [4, 33]], p[0][:, [4, 33]] / 2, atol=1e-6)


def test_chosen_in_gin():
  gin.parse_config("a/emulated.weights = (0.25, 0.75)\nlogit_fusion.alphas = (0.5,)")
  gin.external_configurable(lambda combine: combine, "combined", module="test")
  for written, expected in (
    ("@a/emulated()", Emulated((0.25, 0.75))),
    ("@logit_fusion()", LogitFusion((0.5,))),
    ("@mean_logits", None),
  ):
    gin.parse_config(f"combined.combine = {written}")
    combine = gin.query_parameter("combined.combine")
    made = combine.scoped_configurable_fn() if combine.evaluate else combine.scoped_configurable_fn
    assert callable(made) and (expected is None or made == expected)


def test_wrong_number_of_models():
  with pytest.raises(UserError, match=r"emulated.weights`: 2 weights for 3 models"):
    Emulated((1.0, 1.0))(drawn(3))
  fusion = LogitFusion()
  with pytest.raises(UserError, match="2 models"):
    fusion(drawn(2), fusion.init(ROWS))
