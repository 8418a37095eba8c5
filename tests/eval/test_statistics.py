"""Intervals and tests: golden numbers, laws, and what is refused. How often they are right: test_calibration.py."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mtx.errors import UserError
from mtx.eval.statistics import align, beta_interval, exact_test, holm, paired_bootstrap


@pytest.fixture(scope="module")
def scores():
  """scores(seeds, items): of two arms that share items."""

  def make(seeds: int, items: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=items)
    return [shared + rng.normal(size=(seeds, items)) + mean for mean in (0.4, 0.0)]

  return make


def runs(**arms):
  """{arm: {seed: {(task, id): score}}} from {arm: {seed: "task/id task/id"}}; the score is the item's place."""
  return {
    arm: {seed: {tuple(i.split("/")): float(n) for n, i in enumerate(items.split())} for seed, items in by_seed.items()}
    for arm, by_seed in arms.items()
  }


def test_the_estimate_is_the_mean_difference_and_lies_inside(scores):
  a, b = scores(3, 40)
  found = paired_bootstrap(a, b)
  assert found.estimate == pytest.approx((a - b).mean())
  assert found.low < found.estimate < found.high


def test_a_number_a_seed_gives_the_paired_t_test(scores):
  """Of normal numbers; the bootstrap does not know that they are, hence the tolerance."""
  a, b = (each.T for each in scores(1, 12))
  found = paired_bootstrap(a, b, draws=100_000)
  peer = stats.ttest_rel(a[:, 0], b[:, 0])
  interval = peer.confidence_interval(0.95)
  assert (found.low, found.high) == pytest.approx(
    (interval.low, interval.high), abs=0.08 * (interval.high - interval.low)
  )
  assert found.p == pytest.approx(peer.pvalue, rel=0.25)


def test_three_seeds_are_wider_than_their_range(scores):
  """The plain bootstrap's intervals end where the seeds do."""
  a, b = np.array([[1.0], [1.2], [1.7]]), np.zeros((3, 1))
  found = paired_bootstrap(a, b)
  assert found.low < 1.0 and found.high > 1.7
  t = stats.t(2).ppf(0.975) * a[:, 0].std(ddof=1) / 3**0.5
  assert (found.high - found.low) / 2 == pytest.approx(t, rel=0.1)


def test_items_are_paired(scores):
  """What is hard for both arms does not widen their difference; shuffled items do not know that."""
  a, b = scores(3, 200)
  hard = 10 * np.random.default_rng(1).normal(size=200)
  paired, shuffled = paired_bootstrap(a + hard, b + hard), paired_bootstrap(a + hard, b + np.roll(hard, 1))
  assert paired.high - paired.low == pytest.approx(paired_bootstrap(a, b).high - paired_bootstrap(a, b).low, rel=1e-6)
  assert shuffled.high - shuffled.low > 5 * (paired.high - paired.low)


def test_one_run_is_not_as_much_evidence_as_three_of_the_same_mean():
  """Runs that scatter widen the interval; the same scores averaged before do not know it."""
  rng = np.random.default_rng(2)
  b = rng.normal(size=(3, 300))
  a = b + np.array([[0.2], [1.0], [1.8]]) + 0.1 * rng.normal(size=(3, 300))
  over_seeds = paired_bootstrap(a, b)
  of_these_runs = paired_bootstrap(a.mean(0, keepdims=True), b.mean(0, keepdims=True))
  assert over_seeds.estimate == pytest.approx(of_these_runs.estimate)
  assert over_seeds.p > 0.05 > 0.001 > of_these_runs.p


@settings(max_examples=20, deadline=None)
@given(seeds=st.integers(1, 4), items=st.integers(2, 12), shift=st.floats(-3, 3), scale=st.floats(0.1, 100))
def test_intervals_move_with_the_scores(seeds, items, shift, scale):
  """Shift and scale of scores shift and scale the interval; exchanging the arms mirrors it."""
  rng = np.random.default_rng(seeds * 100 + items)
  a, b = rng.normal(size=(2, seeds, items))
  base, moved = paired_bootstrap(a, b, draws=400), paired_bootstrap(scale * a + shift, scale * b, draws=400)
  expected = [scale * end + shift for end in (base.low, base.high)]
  assert [moved.low, moved.high] == pytest.approx(expected, abs=1e-9 * (1 + scale))
  mirrored = paired_bootstrap(b, a, draws=400)
  assert mirrored.estimate == pytest.approx(-base.estimate, abs=1e-12)
  assert mirrored.p == pytest.approx(base.p, rel=0.6)


def test_zero_lies_outside_exactly_when_p_says_so(scores):
  for seed in range(40):
    a, b = scores(3, 30, seed)
    found = paired_bootstrap(a, b - 0.25, draws=2000, key_seed=seed)
    if not 0.045 < found.p < 0.055:  # quantiles are interpolated
      assert (found.p <= 0.05) == (not found.low <= 0 <= found.high), found


def test_draws_are_reproduced_by_their_seed(scores):
  a, b = scores(3, 20)
  assert paired_bootstrap(a, b, key_seed=3) == paired_bootstrap(a, b, key_seed=3)
  assert paired_bootstrap(a, b, key_seed=3) != paired_bootstrap(a, b, key_seed=4)


def test_many_items_are_resampled_in_parts(monkeypatch, scores):
  """Memory does not grow with draws x items."""
  a, b = scores(2, 50)
  whole = paired_bootstrap(a, b)
  monkeypatch.setattr("mtx.eval.statistics.WEIGHTS", 1000)
  parts = paired_bootstrap(a, b)
  assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), rel=0.1)


def test_equal_arms_do_not_differ():
  found = paired_bootstrap(np.ones((3, 5)), np.ones((3, 5)))
  assert (found.low, found.estimate, found.high, found.p) == (0, 0, 0, 1)


@pytest.mark.parametrize(
  ("a", "b", "said"),
  [
    (np.zeros((2, 3)), np.zeros((2, 4)), r"shapes \(2, 3\) and \(2, 4\)"),
    (np.zeros(3), np.zeros(3), r"shape \[seed, item\]"),
    (np.zeros((1, 1)), np.ones((1, 1)), "nothing to resample"),
    (np.array([[0.0, np.nan]]), np.ones((1, 2)), "not all finite"),
  ],
)
def test_scores_that_can_not_be_compared(a, b, said):
  with pytest.raises(UserError, match=said):
    paired_bootstrap(a, b)


def test_too_few_draws_and_no_level():
  a, b = np.zeros((2, 3)), np.ones((2, 3))
  with pytest.raises(UserError, match="100 draws are too few") as error:
    paired_bootstrap(a, b, draws=100, level=0.99)
  assert "1000" in error.value.hint
  with pytest.raises(UserError, match="level 95"):
    paired_bootstrap(a, b, level=95)


def test_runs_are_aligned_by_item_whatever_their_order():
  arms = runs(lora={0: "t/1 t/2 u/1", 1: "u/1 t/2 t/1"}, mhr={1: "t/1 t/2 u/1", 0: "t/2 t/1 u/1"})
  found = align(arms)
  assert found.seeds == (0, 1) and found.items == (("t", "1"), ("t", "2"), ("u", "1"))
  np.testing.assert_array_equal(found.arms["lora"], [[0, 1, 2], [2, 1, 0]])
  np.testing.assert_array_equal(found.arms["mhr"], [[1, 0, 2], [0, 1, 2]])


def test_task_means_weigh_tasks_equally():
  found = align(runs(a={0: "t/1 t/2 t/3 u/1"})).task_means()
  assert found.items == (("t", ""), ("u", ""))
  np.testing.assert_array_equal(found.arms["a"], [[1.0, 3.0]])


def test_missing_pairs_are_named():
  with pytest.raises(UserError) as error:
    align(runs(lora={0: "t/1 t/2 t/3 t/4 t/5"}, mhr={0: "t/2"}))
  assert "`mhr` with seed 0 lacks 4 items" in error.value.message and "`lora` with seed 0" in error.value.message
  assert "t/1, t/3, t/4, ..." in error.value.message and "t/2" not in error.value.message
  with pytest.raises(UserError, match="`lora` with seed 0 lacks 1 items of the run of arm `lora` with seed 7: v/9"):
    align(runs(lora={0: "t/1", 7: "t/1 v/9"}))
  with pytest.raises(UserError, match="arm `mhr` lacks 2 seeds of arm `lora`: 1, 2"):
    align(runs(lora={0: "t/1", 1: "t/1", 2: "t/1"}, mhr={0: "t/1"}))
  with pytest.raises(UserError, match="arm `lora` lacks 1 seeds of arm `mhr`: 3"):
    align(runs(lora={0: "t/1"}, mhr={0: "t/1", 3: "t/1"}))
  with pytest.raises(UserError, match="arm `mhr` has no runs"):
    align(runs(lora={0: "t/1"}, mhr={}))
  with pytest.raises(UserError, match="arm `mhr` has no scores"):
    align(runs(lora={0: "t/1"}, mhr={0: ""}))
  with pytest.raises(UserError, match="no arms"):
    align({})


@pytest.mark.parametrize("score", [float("nan"), None, "0.3"])
def test_a_score_that_is_no_number_is_named(score):
  arms = runs(lora={0: "t/1 t/2"})
  arms["lora"][0]["t", "2"] = score
  with pytest.raises(UserError, match=r"arm `lora` with seed 0 has scores that are not finite numbers: t/2\."):
    align(arms)


@pytest.mark.parametrize(("trials", "width"), [(20, 0.404), (50, 0.268), (200, 0.137)])
def test_posterior_widths(trials, width):
  found = beta_interval(trials // 2, trials)
  assert found.high - found.low == pytest.approx(width, abs=5e-4)
  assert found.estimate == pytest.approx(0.5) and found.p is None


def test_posterior_of_nothing_is_the_prior():
  found = beta_interval(0, 0, level=0.9)
  assert (found.low, found.estimate, found.high) == pytest.approx((0.05, 0.5, 0.95))


def test_exact_test_golden():
  assert exact_test(25, 50, 29, 50, "less") == pytest.approx(0.265, abs=5e-4)
  assert exact_test(25, 50, 36, 50, "less") == pytest.approx(0.0129, abs=5e-5)
  assert exact_test(36, 50, 25, 50, "greater") == pytest.approx(0.0129, abs=5e-5)
  assert exact_test(25, 50, 36, 50) == pytest.approx(2 * 0.0129, abs=1e-4)


def test_exact_test_is_exact_where_trials_are_unequal():
  """The chance that p falls to 5 % is at most 5 % at any rate, summed over all tables."""
  small = np.array([[exact_test(k, 6, j, 9) <= 0.05 for j in range(10)] for k in range(7)])
  for rate in np.linspace(0.05, 0.95, 7):
    chance = np.outer(stats.binom.pmf(range(7), 6, rate), stats.binom.pmf(range(10), 9, rate))
    assert (chance * small).sum() <= 0.05


@pytest.mark.parametrize(
  "call",
  [
    lambda: beta_interval(3, 2),
    lambda: beta_interval(-1, 2),
    lambda: exact_test(3, 2, 1, 2),
    lambda: exact_test(0, 0, 1, 2),
    lambda: exact_test(0.5, 1, 1, 2),
  ],
)
def test_counts_that_do_not_fit(call):
  with pytest.raises(UserError, match="trials"):
    call()


def test_an_unknown_alternative():
  with pytest.raises(UserError) as error:
    exact_test(1, 2, 1, 2, "grater")
  assert "`greater`" in error.value.hint


def test_holm_golden():
  """Worked by hand: 4 x .01, 3 x .02, then never smaller than the one before."""
  np.testing.assert_allclose(holm([0.02, 0.01, 0.04, 0.03]), [0.06, 0.04, 0.06, 0.06])
  np.testing.assert_allclose(holm([0.5, 0.9]), [1, 1])
  assert holm([]).shape == (0,)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_the_step_down_procedure(p):
  """Rejected by adjusted p at alpha: the smallest, as long as each is at most alpha over how many are left."""
  alpha = 0.05
  rejected = set()
  for step, index in enumerate(np.argsort(p, kind="stable")):
    if p[index] * (len(p) - step) > alpha:
      break
    rejected.add(int(index))
  assert set(np.flatnonzero(holm(p) <= alpha)) == rejected


def test_holm_equals_statsmodels():
  multitest = pytest.importorskip("statsmodels.stats.multitest")
  p = np.random.default_rng(0).random(20) ** 3
  np.testing.assert_allclose(holm(p), multitest.multipletests(p, method="holm")[1])


@pytest.mark.parametrize("p", [[0.1, 1.2], [float("nan")], [-0.1]])
def test_p_values_that_are_none(p):
  with pytest.raises(UserError, match="between 0 and 1"):
    holm(p)
