"""Which arms can not be told apart, as letters: arms that share one are not separable."""

import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from jaxtyping import Float

from mtx.errors import UserError, did_you_mean
from mtx.eval.statistics import Interval, bootstrap, holm


@dataclass(frozen=True)
class Comparison:
  """All arms against all.

  Attributes:
    means: arm -> mean score, the best first.
    intervals: (better, worse) -> their mean difference; its p is of this pair alone.
    adjusted: (better, worse) -> Holm's p value.
    letters: arm -> its letters; "a" is of the best.
  """

  means: dict[str, float]
  intervals: dict[tuple[str, str], Interval]
  adjusted: dict[tuple[str, str], float]
  letters: dict[str, str]


def compare_arms(
  arms: Mapping[str, Float[np.ndarray, "seed item"]],
  *,
  level: float = 0.95,
  draws: int = 10_000,
  key_seed: int = 0,
  lower_is_better: bool = False,
) -> Comparison:
  """Bootstraps every pair of arms over the same resampled seeds and items; Holm over the pairs decides the letters.

  Args:
    arms: name -> scores; `align` makes them.

  Raises:
    UserError: what `bootstrap` raises, fewer than two arms, or unequal shapes.
  """
  shapes = {name: np.shape(scores) for name, scores in arms.items()}
  if len(arms) < 2 or len(set(shapes.values())) > 1:
    raise UserError(f"arms to compare are two or more, with scores of the same shape [seed, item]: {shapes}.")
  means = {name: float(np.mean(scores)) for name, scores in arms.items()}
  means = dict(sorted(means.items(), key=lambda each: each[1], reverse=not lower_is_better))
  pairs = list(combinations(means, 2))
  differences = np.stack([np.subtract(arms[a], arms[b], dtype=np.float64) for a, b in pairs])
  intervals = bootstrap(differences, draws=draws, level=level, rng=np.random.default_rng(key_seed))
  adjusted = dict(zip(pairs, map(float, holm([each.p or 0.0 for each in intervals])), strict=True))
  letters = compact_letters(list(means), [pair for pair, p in adjusted.items() if p <= 1 - level])
  return Comparison(means, dict(zip(pairs, intervals, strict=True)), adjusted, letters)


def compact_letters(names: Sequence[str], significant: Iterable[tuple[str, str]]) -> dict[str, str]:
  """Letters such that two names share one if and only if their difference is not significant.

  Insert and absorb (Piepho 2004, "An algorithm for a letter-based representation of all-pairwise comparisons"): one
  letter for all; each significant pair splits the letters that both have; a letter whose names all share another one
  goes.

  Args:
    names: in the order of the table; letters begin where they are read first.
    significant: pairs of names, in any order.

  Raises:
    UserError: a name twice, a pair of unknown names or of a name with itself.
  """
  if doubled := [n for i, n in enumerate(names) if n in names[:i]]:
    raise UserError(f"arm `{doubled[0]}` is there twice.", hint="letters are given to distinct names.")
  groups = [frozenset(names)] if names else []
  for pair in significant:
    for name in pair:
      if name not in names:
        raise UserError(f"no arm `{name}` among those that are compared.", hint=did_you_mean(name, names))
    first, second = pair
    if first == second:
      raise UserError(f"arm `{first}` is said to differ from itself.")
    split = dict.fromkeys(
      part for group in groups for part in ((group - {first}, group - {second}) if group.issuperset(pair) else (group,))
    )
    groups = [group for group in split if not any(group < other for other in split)]
  groups.sort(key=lambda group: sorted(map(names.index, group)))
  return {n: "".join(_letter(i) for i, group in enumerate(groups) if n in group) for n in names}


def _letter(index: int) -> str:
  """a to z, A to Z, then a1, b1, ..."""
  around, letter = divmod(index, len(string.ascii_letters))
  return string.ascii_letters[letter] + (str(around) if around else "")
