"""A test of two rates that may be looked at after every outcome, and stopped whenever one likes.

Turner, Ly and Grünwald 2024, "Generic E-variables for exact sequential k-sample tests that allow for optional stopping"
(arXiv 2106.02693), with the null of one-sided tests.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from mtx.errors import UserError
from mtx.eval.statistics import check_alternative

# Beta priors (successes, failures) of the rate that the alternative says is the higher, and of the lower one.
HIGHER, LOWER = (2, 1), (1, 2)


@dataclass
class AnytimeTest:
  """Evidence that the success rate of arm `a` differs from that of `b`, from pairs of outcomes in their order.

  Before each pair, the rates are predicted from all pairs before it; the evidence e is multiplied by the likelihood
  ratio of the two outcomes under the predictions and under the nearest rates that the null allows: the predictions
  themselves if it allows them, else their mean for both arms.

  Why e is evidence: let f_a(r) and f_b(r) be what an outcome of rate r multiplies e by in expectation. They are linear
  in r, sum to 2, and f_a rises while f_b falls. If a's rate is not the higher, f_a(r_a) f_b(r_b) <= f_a(r_b) f_b(r_b)
  <= 1. So e ever reaches 1 / alpha with probability at most alpha (Ville), and p = 1 / (largest e so far) is valid
  whenever one looks. The evidence of "two-sided" is the mean of that of both sides.

  The two outcomes of a pair may be of one item, if they are independent given the item. Items are new ones: to score
  an item again adds no evidence. The fields are the whole state, so that a resumed run goes on testing.

  Attributes:
    alternative: "greater": `a` has the higher rate; "less"; "two-sided".
    pairs, successes_a, successes_b: counts so far.
    log_greater, log_less: log e of either side.
    log_largest: of the evidence for `alternative`, over all times.
  """

  alternative: str = "two-sided"
  pairs: int = 0
  successes_a: int = 0
  successes_b: int = 0
  log_greater: float = 0.0
  log_less: float = 0.0
  log_largest: float = 0.0

  def __post_init__(self):
    check_alternative(self.alternative)

  def update(self, a: Sequence[float] | float, b: Sequence[float] | float) -> float:
    """Takes the next outcomes of both arms, 0 or 1, pair by pair; returns `p`.

    Raises:
      UserError: unequal counts, or a score that is neither 0 nor 1.
    """
    of_a, of_b = (np.atleast_1d(np.asarray(outcomes, np.float64)) for outcomes in (a, b))
    if of_a.shape != of_b.shape or of_a.ndim != 1:
      raise UserError(
        f"AnytimeTest got {of_a.size} outcomes of one arm and {of_b.size} of the other; it takes pairs.",
        hint="evaluate both arms on an item before either goes on.",
      )
    if bad := [score for score in (*of_a, *of_b) if score not in (0, 1)]:
      raise UserError(
        f"AnytimeTest takes successes (1) and failures (0), and got {bad[0]:g}.",
        hint="say from which score on an item is a success.",
      )
    if not of_a.size:
      return self.p
    greater = self.log_greater + log_evidence(of_a, of_b, (self.pairs, self.successes_a, self.successes_b))
    less = self.log_less + log_evidence(of_b, of_a, (self.pairs, self.successes_b, self.successes_a))
    self.log_largest = max(self.log_largest, float(_combined(greater, less, self.alternative).max()))
    self.log_greater, self.log_less = float(greater[-1]), float(less[-1])
    self.pairs += of_a.size
    self.successes_a += int(of_a.sum())
    self.successes_b += int(of_b.sum())
    return self.p

  @property
  def log_e(self) -> float:
    """Log of the evidence now."""
    return float(_combined(np.float64(self.log_greater), np.float64(self.log_less), self.alternative))

  @property
  def p(self) -> float:
    """Valid whenever it is read; never rises."""
    return math.exp(-max(0.0, self.log_largest))


def log_evidence(
  a: Float64[np.ndarray, "*case pair"], b: Float64[np.ndarray, "*case pair"], before: tuple[int, int, int] = (0, 0, 0)
) -> Float64[np.ndarray, "*case pair"]:
  """Log evidence, after every pair, that `a` has the higher rate.

  Args:
    a, b: outcomes, 0 or 1.
    before: pairs, successes of `a` and of `b` that the predictions already know.
  """
  pairs, of_a, of_b = before
  seen = pairs + np.arange(a.shape[-1])
  rate_a = (of_a + a.cumsum(-1) - a + HIGHER[0]) / (seen + sum(HIGHER))
  rate_b = (of_b + b.cumsum(-1) - b + LOWER[0]) / (seen + sum(LOWER))
  null = (rate_a + rate_b) / 2
  factor = _log_bernoulli(a, rate_a) - _log_bernoulli(a, null) + _log_bernoulli(b, rate_b) - _log_bernoulli(b, null)
  return np.where(rate_a > rate_b, factor, 0.0).cumsum(-1)


def log_two_sided(
  a: Float64[np.ndarray, "*case pair"], b: Float64[np.ndarray, "*case pair"]
) -> Float64[np.ndarray, "*case pair"]:
  """Log evidence, after every pair, that the rates differ."""
  return _combined(log_evidence(a, b), log_evidence(b, a), "two-sided")


def _combined(greater, less, alternative: str):
  if alternative == "two-sided":
    return np.logaddexp(greater, less) - math.log(2)
  return greater if alternative == "greater" else less


def _log_bernoulli(outcome: np.ndarray, rate: np.ndarray) -> np.ndarray:
  return np.log(np.where(outcome == 1, rate, 1 - rate))
