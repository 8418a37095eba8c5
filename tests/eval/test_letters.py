"""Letters: two arms share one if and only if they are not told apart, and no letter is spare."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtx.errors import UserError
from mtx.eval.letters import compact_letters, compare_arms
from mtx.eval.statistics import paired_bootstrap


def test_golden():
  """A chain: neighbours are alike, the ends are not."""
  assert compact_letters(["x", "y", "z"], [("x", "z")]) == {"x": "a", "y": "ab", "z": "b"}
  assert compact_letters(["x", "y", "z"], []) == {"x": "a", "y": "a", "z": "a"}
  assert compact_letters(["x", "y"], [("y", "x")]) == {"x": "a", "y": "b"}
  assert compact_letters([], []) == {}


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_sharing_a_letter_means_not_significant(data):
  names = [f"arm{i}" for i in range(data.draw(st.integers(1, 8)))]
  pairs = list(combinations(names, 2))
  significant = data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
  letters = compact_letters(names, significant)
  for a, b in pairs:
    assert bool(set(letters[a]) & set(letters[b])) == ((a, b) not in significant)
  members = [{n for n in names if letter in letters[n]} for letter in sorted(set("".join(letters.values())))]
  assert not any(one <= other for one in members for other in members if one is not other)
  assert letters[names[0]].startswith("a")


def test_many_arms_get_more_than_one_alphabet():
  names = [str(i) for i in range(54)]
  letters = compact_letters(names, combinations(names, 2))
  assert letters["0"] == "a" and letters["26"] == "A" and letters["52"] == "a1"
  assert len(set(letters.values())) == len(names)


def test_arms_are_compared_best_first():
  rng = np.random.default_rng(0)
  noise = lambda: 0.05 * rng.normal(size=(3, 60))
  arms = {"shared": noise(), "mhr": 1 + noise(), "poly": 1 + noise()}
  found = compare_arms(arms, draws=2000)
  best, second = ("mhr", "poly") if arms["mhr"].mean() > arms["poly"].mean() else ("poly", "mhr")
  assert list(found.means) == [best, second, "shared"]
  assert found.letters == {best: "a", second: "a", "shared": "b"}
  assert found.intervals[best, "shared"].low > 0.9
  assert found.adjusted[best, second] >= found.intervals[best, second].p
  assert next(iter(compare_arms(arms, draws=2000, lower_is_better=True).means)) == "shared"


def test_a_pair_of_arms_is_the_paired_bootstrap():
  a, b = np.random.default_rng(1).normal(size=(2, 3, 20))
  found = compare_arms({"a": a + 5, "b": b}, draws=1000, key_seed=7)
  assert found.intervals["a", "b"] == paired_bootstrap(a + 5, b, draws=1000, key_seed=7)


@pytest.mark.parametrize(
  ("names", "pairs", "said"),
  [
    (["mhr", "poly", "mhr"], [], "`mhr` is there twice"),
    (["mhr", "poly"], [("mhr", "pol")], "no arm `pol`"),
    (["mhr", "poly"], [("mhr", "mhr")], "differ from itself"),
  ],
)
def test_names_that_do_not_fit(names, pairs, said):
  with pytest.raises(UserError, match=said):
    compact_letters(names, pairs)


def test_arms_that_can_not_be_compared():
  with pytest.raises(UserError, match="two or more"):
    compare_arms({"mhr": np.zeros((3, 4))})
  with pytest.raises(UserError, match=r"\(3, 5\)"):
    compare_arms({"mhr": np.zeros((3, 4)), "poly": np.zeros((3, 5))})
