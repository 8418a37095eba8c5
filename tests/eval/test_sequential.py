"""The anytime-valid test: its formula by hand, its law in expectation, and what a resumed run needs."""

import math
from dataclasses import asdict
from itertools import product

import numpy as np
import pytest

from mtx.errors import UserError
from mtx.eval.sequential import AnytimeTest, log_evidence

STREAMS = np.random.default_rng(0).random((2, 60)) < np.array([[0.8], [0.4]])


@pytest.mark.parametrize(("a", "b", "e"), [(1, 0, 16 / 9), (0, 1, 4 / 9), (1, 1, 8 / 9), (0, 0, 8 / 9)])
def test_the_first_pair(a, b, e):
  """Predictions 2/3 and 1/3, null 1/2."""
  test = AnytimeTest("greater")
  p = test.update(a, b)
  assert math.exp(test.log_e) == pytest.approx(e)
  assert p == test.p == pytest.approx(min(1, 1 / e))


def test_the_second_pair_is_predicted_by_the_first():
  """After (1, 0): a at 3/4, b at 1/4, null 1/2. (0, 1) then costs what (1, 0) would have gained upside down."""
  test = AnytimeTest("greater")
  test.update([1, 0], [0, 1])
  assert math.exp(test.log_e) == pytest.approx(16 / 9 * (0.25 / 0.5) ** 2)


def test_predictions_that_the_null_allows_change_nothing():
  """b wins until a is predicted to be no better: then evidence for "greater" rests."""
  test = AnytimeTest("greater")
  test.update([0] * 5, [1] * 5)
  before = test.log_e
  test.update([0, 0], [1, 1])
  assert test.log_e == before


def test_p_is_what_one_has_seen_at_best():
  test = AnytimeTest("greater")
  seen = [test.update(a, b) for a, b in zip([1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], strict=True)]
  assert seen == sorted(seen, reverse=True)
  assert test.p < math.exp(-test.log_e)


def test_sides_mirror_and_two_sided_is_their_mean():
  a, b = STREAMS
  evidence = {}
  for side in ("greater", "less", "two-sided"):
    test, mirrored = AnytimeTest(side), AnytimeTest({"greater": "less", "less": "greater"}.get(side, side))
    test.update(a, b)
    mirrored.update(b, a)
    assert test.log_e == pytest.approx(mirrored.log_e)
    evidence[side] = math.exp(test.log_e)
  assert evidence["two-sided"] == pytest.approx((evidence["greater"] + evidence["less"]) / 2)
  assert evidence["greater"] > 20 > 1 > evidence["less"]


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_parts_equal_the_whole_and_the_fields_are_the_state(alternative):
  a, b = STREAMS
  whole, parts = AnytimeTest(alternative), AnytimeTest(alternative)
  whole.update(a, b)
  for start, stop in ((0, 1), (1, 1), (1, 37), (37, 60)):
    parts.update(a[start:stop], b[start:stop])
    parts = AnytimeTest(**asdict(parts))
  assert asdict(parts) == pytest.approx(asdict(whole), abs=1e-9)


@pytest.mark.parametrize("rates", [(0.5, 0.5), (0.1, 0.1), (0.3, 0.6)])
def test_expected_evidence_is_at_most_one_under_the_null(rates):
  """Summed over all outcomes of four pairs: exact, not simulated."""
  outcomes = np.array(list(product((0.0, 1.0), repeat=8))).reshape(-1, 2, 4)
  chance = np.prod([np.where(outcomes[:, i] == 1, r, 1 - r).prod(1) for i, r in enumerate(rates)], axis=0)
  expected = chance @ np.exp(log_evidence(outcomes[:, 0], outcomes[:, 1]))
  assert chance.sum() == pytest.approx(1)
  assert (expected <= 1 + 1e-12).all()
  assert (np.diff(expected) <= 1e-12).all()


def test_expected_evidence_grows_where_the_first_rate_is_higher():
  rng = np.random.default_rng(1)
  a, b = (rng.random((2000, 100)) < rate for rate in (0.7, 0.4))
  assert np.median(log_evidence(a.astype(float), b.astype(float))[:, -1]) > math.log(20)


@pytest.mark.parametrize(
  ("a", "b", "said"),
  [([1, 0], [1], "2 outcomes of one arm and 1"), ([0.5], [1], "got 0.5"), ([1], [float("nan")], "got nan")],
)
def test_outcomes_that_are_none(a, b, said):
  test = AnytimeTest()
  with pytest.raises(UserError, match=said):
    test.update(a, b)
  assert test == AnytimeTest()


def test_an_unknown_alternative():
  with pytest.raises(UserError, match="no alternative 'better'"):
    AnytimeTest("better")
