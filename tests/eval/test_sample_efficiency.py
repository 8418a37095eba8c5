"""Learning curves are monotone, and what is needed of the data lies where the curve crosses the level."""

import math

import numpy as np
import pytest

from mtx.errors import UserError
from mtx.eval.sample_efficiency import ALL, data_needed, fraction_needed, learning_curve

FRACTIONS = (0.0, 0.01, 0.06, 0.25, 0.5, 1.0)


def test_a_curve_never_falls_and_keeps_what_rises():
  rng = np.random.default_rng(0)
  for _ in range(20):
    scores = rng.normal(size=len(FRACTIONS)).cumsum()
    x, y = learning_curve(FRACTIONS[::-1], scores[::-1])
    assert tuple(x) == FRACTIONS and (np.diff(y) >= 0).all() and y.mean() == pytest.approx(scores.mean())
    rising = np.sort(scores)
    np.testing.assert_allclose(learning_curve(FRACTIONS, rising)[1], rising)


def test_what_is_needed_is_where_the_curve_crosses():
  scores = (10, 20, 30, 50, 60, 80)
  for fraction, score in zip(FRACTIONS, scores, strict=True):
    assert fraction_needed(FRACTIONS, scores, score) == pytest.approx(fraction)
  assert fraction_needed(FRACTIONS, scores, 5) == 0 and fraction_needed(FRACTIONS, scores, 81) == math.inf
  assert fraction_needed(FRACTIONS, scores, 70) == pytest.approx(0.75)
  # A dip is levelled with what comes before it: 40 and 20 are both 30.
  assert fraction_needed((0, 1, 2, 3), (0, 40, 20, 60), 30) == pytest.approx(1)
  needed = [fraction_needed(FRACTIONS, scores, level) for level in range(0, 81)]
  assert needed == sorted(needed)


@pytest.mark.parametrize(("fractions", "scores"), [((), ()), ((0.5,), (1, 2)), ((0.5, 0.5), (1, 2))])
def test_what_is_no_curve_is_refused(fractions, scores):
  with pytest.raises(ValueError, match="one score a fraction"):
    learning_curve(fractions, scores)


def rows(single: dict, multi: dict) -> list[dict]:
  """Two tasks, b 10 better than a, and zero-shot scores of 0."""
  made = []
  for setting, curve in (("", {0.0: 0.0}), ("single", single), ("multi", multi)):
    for fraction, score in curve.items():
      for task, more in (("a", 0), ("b", 10 * bool(fraction))):
        about = {"task": task, "category": f"of {task}", "setting": setting, "fraction": fraction}
        made.append({"stage": "tune", "metric": "rouge_l", "value": score + more, **about})
  return [*made, {"stage": "other", "metric": "rouge_l", "task": "a", "category": "c", "value": 1.0}]


def test_what_an_arm_needs_to_be_as_good_as_another_with_all():
  runs = {
    "plain": rows({0.5: 20, 1.0: 40}, {0.5: 10, 1.0: 30}),
    "quick": rows({0.5: 60, 1.0: 70}, {0.5: 10, 1.0: 20}),
  }
  found = data_needed(runs, reference="plain", metric="rouge_l", most=3.0)
  values = {
    arm: {(row["method"], row["task"], row["metric"]): row["value"] for row in of_arm} for arm, of_arm in found.items()
  }
  for group in (ALL, "of a", "of b"):
    for setting in ("single", "multi"):
      assert values["plain"][setting, group, "data_needed"] == pytest.approx(1.0)
  assert values["quick"]["single", "of a", "data_needed"] == pytest.approx(0.5 * 40 / 60)
  assert values["quick"]["single", ALL, "data_needed"] == pytest.approx(0.5 * 45 / 65)
  assert values["quick"]["multi", ALL, "data_needed"] == 3.0
  assert values["quick"]["single", ALL, "curve_mean"] == pytest.approx(70)


def test_a_reference_that_is_none_is_named():
  runs = {"plain": rows({1.0: 1}, {1.0: 1})}
  with pytest.raises(UserError, match=r"(?s)'plan' is no arm.*`plain`"):
    data_needed(runs, reference="plan")
  with pytest.raises(UserError, match=r"(?s)no 'rouge_l' of stage 'tone'.*`tune`"):
    data_needed(runs, reference="plain", metric="rouge_l", stages=["tone"])
