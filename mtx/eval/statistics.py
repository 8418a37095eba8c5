"""What a difference between arms is worth: intervals over seeds and items, exact tests, many comparisons at once.

`mtx.eval.calibration` measures that the tests reject and the intervals cover as often as they say.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int
from scipy import stats

from mtx.errors import UserError, did_you_mean

ALTERNATIVES = ("two-sided", "greater", "less")
Item = tuple[str, str]  # task, id
OTHER = 0.4  # between 0, too wide where seeds and items both matter, and 1, too narrow; see `bootstrap`
SHOWN = 3  # names in a message
WEIGHTS = 2**22  # of resampled items, held at a time


@dataclass(frozen=True)
class Interval:
  """Attributes:
  estimate: of a rate, or of a mean difference.
  low, high: ends of the interval.
  p: two-sided, of no difference; None where nothing is compared.
  """

  estimate: float
  low: float
  high: float
  p: float | None = None


@dataclass(frozen=True)
class Aligned:
  """Scores of arms on the same seeds and items.

  Attributes:
    arms: name -> scores.
    seeds, items: what the axes stand for.
  """

  arms: dict[str, Float64[np.ndarray, "seed item"]]
  seeds: tuple[int, ...]
  items: tuple[Item, ...]

  def task_means(self) -> "Aligned":
    """One item a task, its mean, so that tasks of unequal size count the same and intervals speak of tasks like these
    instead of items like these. Their ids are empty."""
    tasks = list(dict.fromkeys(task for task, _ in self.items))
    mine = [np.array([task == each for task, _ in self.items]) for each in tasks]
    arms = {name: np.stack([s[:, m].mean(1) for m in mine], 1) for name, s in self.arms.items()}
    return Aligned(arms, self.seeds, tuple((task, "") for task in tasks))


def align(arms: Mapping[str, Mapping[int, Mapping[Item, float]]]) -> Aligned:
  """Pairs runs: arm -> seed -> (task, id) -> score. Items keep the order of the first run.

  Raises:
    UserError: a run lacks a seed or an item that another has, or a score is not a finite number; the first are named.
  """
  if not arms:
    raise UserError("no arms to compare.")
  for name, runs in arms.items():
    if not runs or not any(runs.values()):
      raise UserError(f"arm `{name}` has no {'scores' if runs else 'runs'} to compare.")
  first = next(iter(arms))
  seeds = tuple(arms[first])
  items = tuple(arms[first][seeds[0]])
  scores = {}
  for name, runs in arms.items():
    _same(seeds, runs, f"arm `{first}`", f"arm `{name}`", "seeds", "train every arm with the same seeds.")
    for seed in seeds:
      here, there = (f"the run of arm `{n}` with seed {s}" for n, s in ((first, seeds[0]), (name, seed)))
      hint = "evaluate both on the same items: same mixtures, same number of examples, same data."
      _same(items, runs[seed], here, there, "items", hint)
      if bad := [i for i in items if not _finite(runs[seed][i])]:
        raise UserError(f"{there} has scores that are not finite numbers: {_listed(bad)}.")
    scores[name] = np.array([[float(runs[s][i]) for i in items] for s in seeds]).reshape(len(seeds), len(items))
  return Aligned(scores, seeds, items)


def paired_bootstrap(
  a: Float[np.ndarray, "seed item"],
  b: Float[np.ndarray, "seed item"],
  *,
  draws: int = 10_000,
  level: float = 0.95,
  key_seed: int = 0,
) -> Interval:
  """Mean of `a - b` over seeds and items, for new seeds and new items like these. See `bootstrap`.

  With one seed the interval speaks of that run only; with one item (a number a seed), of seeds only. `align` makes
  the arrays.

  Raises:
    UserError: unequal or wrong shapes, scores that are not finite, fewer than two scores an arm.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape or a.ndim != 2:
    raise UserError(
      f"paired_bootstrap got scores of shapes {a.shape} and {b.shape}; it pairs two of shape [seed, item].",
      hint="`align` makes such arrays and names what is missing.",
    )
  return bootstrap((a - b)[None], draws=draws, level=level, rng=np.random.default_rng(key_seed))[0]


def bootstrap(
  differences: Float64[np.ndarray, "case seed item"], *, draws: int, level: float, rng: np.random.Generator
) -> list[Interval]:
  """Percentile intervals of mean differences, one a case, from resampled seeds and, independently, resampled items.

  Every seed has a score of every item, so the two are crossed: items are drawn for all seeds at once, and a draw's
  deviation is that of its seeds plus that of its items. Three things keep coverage at `level`:

  - The scatter that is neither of seeds nor of items (mean square of the residuals of the two-way table) is in the
    deviation of either; it stays in the seeds' and the items' shrinks by it. Drawing from rows and columns of the
    table at once would count it three times (Owen 2007, "The pigeonhole bootstrap").
  - A bootstrap of n units varies too little by (n-1)/n.
  - Quantiles of resampled means never leave the range of the units, so three seeds would cover at most 75 %; BCa moves
    the ends within the same range. So deviations are multiplied by sqrt(n / chi2_n), n = their degrees of freedom,
    which is what Student's t does to the mean of normal units: the variance is only estimated. Where the other
    deviation is larger that would be too much (98 % coverage: the fiducial solution of Behrens and Fisher), so it
    happens with probability v / (v + OTHER * v_other), v the variances of the two deviations.

  What is left, in simulations with normal scores (OTHER was chosen by them): of null data, a test at 5 % rejects 3.9 to
  5.4 % with three seeds and 4.0 to 7.3 % with two, by what share of the variance is theirs; a test at 1 % rejects 0.8
  to 1.5 % with three. Seeds as skewed as an exponential distribution break it as they break Student's t (90 %).

  Raises:
    UserError: fewer than two scores, scores that are not finite, `level` not between 0 and 1, `draws` too few for it.
  """
  if differences[0].size < 2:
    raise UserError(
      "fewer than two scores an arm: there is nothing to resample.", hint="give more seeds or more items."
    )
  if not np.isfinite(differences).all():
    raise UserError("scores to compare are not all finite numbers.", hint="`align` names the items.")
  _check_level(level)
  if draws * (1 - level) < 10:
    least = math.ceil(10 / (1 - level))
    raise UserError(f"{draws} draws are too few for the ends of an interval of level {level}.", hint=f"draw {least}.")
  mean = differences.mean((1, 2))
  of_means = mean[:, None] + _deviations(differences - mean[:, None, None], draws, rng)
  ends = np.quantile(of_means, [(1 - level) / 2, (1 + level) / 2], axis=1)
  beyond = np.minimum((of_means <= 0).sum(1), (of_means >= 0).sum(1))
  p = np.minimum(1, 2 * (1 + beyond) / (1 + draws))
  return [Interval(*map(float, each)) for each in zip(mean, *ends, p, strict=True)]


def _deviations(
  centred: Float64[np.ndarray, "case seed item"], draws: int, rng: np.random.Generator
) -> Float64[np.ndarray, "case draw"]:
  """Of resampled means from the mean."""
  _, seeds, items = centred.shape
  of_seeds, of_items = centred.mean(2), centred.mean(1)
  v_seed = (of_seeds**2).sum(1) / (seeds * max(seeds - 1, 1))
  v_item = (of_items**2).sum(1) / (items * max(items - 1, 1))
  if seeds > 1 and items > 1:
    residual = (centred**2).sum((1, 2)) - items * (of_seeds**2).sum(1) - seeds * (of_items**2).sum(1)
    v_rest = residual.clip(0) / ((seeds - 1) * (items - 1) * seeds * items)
    kept = (1 - v_rest / np.where(v_item > 0, v_item, np.inf)).clip(0)
    v_item, of_items = v_item * kept, of_items * np.sqrt(kept)[:, None]
  both = np.where(v_seed + v_item > 0, v_seed + v_item, 1)
  of_both = _resampled(of_seeds, v_seed / both, draws, rng)
  return of_both + _resampled(of_items, v_item / both, draws, rng)


def _resampled(
  units: Float64[np.ndarray, "case unit"],
  share: Float64[np.ndarray, " case"],
  draws: int,
  rng: np.random.Generator,
) -> Float64[np.ndarray, "case draw"]:
  """Means of units drawn with replacement, as wide as the mean of new units; `share` is theirs in the variance."""
  count = units.shape[1]
  if count == 1:
    return np.zeros((len(units), draws))
  step = max(1, WEIGHTS // count)
  means = np.concatenate([units @ _counts(count, min(step, draws - i), rng).T for i in range(0, draws, step)], axis=1)
  wide = np.sqrt((count - 1) / rng.chisquare(count - 1, draws))
  widened = rng.random(draws) < (share / (share + OTHER * (1 - share)))[:, None]
  return means * math.sqrt(1 / (count * (count - 1))) * np.where(widened, wide, 1)


def _counts(units: int, draws: int, rng: np.random.Generator) -> Float64[np.ndarray, "draw unit"]:
  """How often each unit is drawn, `units` at a time."""
  drawn = rng.integers(units, size=(draws, units)) + units * np.arange(draws)[:, None]
  return np.bincount(drawn.ravel(), minlength=draws * units).reshape(draws, units).astype(np.float64)


def beta_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
  """Posterior of a rate under a uniform prior, Beta(successes + 1, trials - successes + 1): mean and equal tails.

  Raises:
    UserError: counts that do not fit.
  """
  _check_counts(successes, trials)
  _check_level(level)
  posterior = stats.beta(successes + 1, trials - successes + 1)
  low, high = posterior.ppf([(1 - level) / 2, (1 + level) / 2])
  return Interval(float(posterior.mean()), float(low), float(high))


def exact_test(k1: int, n1: int, k2: int, n2: int, alternative: str = "two-sided") -> float:
  """p value of equal rates, from k1 successes of n1 and k2 of n2: Barnard's test, for up to some hundred trials.

  The two samples are independent; scores of the same items are told apart better by `paired_bootstrap`.

  Args:
    alternative: "greater": the first rate is the greater one; "less"; "two-sided".

  Raises:
    UserError: counts that do not fit, an unknown alternative.
  """
  check_alternative(alternative)
  for k, n in ((k1, n1), (k2, n2)):
    _check_counts(k, n)
    if not n:
      raise UserError("exact_test got a sample of 0 trials.")
  # The variance of the Wald statistic is pooled where trials are equal, as robotics' batch tests do.
  table = [[k1, k2], [n1 - k1, n2 - k2]]
  return float(stats.barnard_exact(table, alternative=alternative, pooled=n1 == n2).pvalue)


def holm(p_values: Sequence[float] | Float[np.ndarray, " test"]) -> Float64[np.ndarray, " test"]:
  """Adjusted p values: those <= alpha are rejected with at most alpha chance of any false rejection (Holm 1979).

  Raises:
    UserError: a p value that is not in [0, 1].
  """
  p = np.asarray(p_values, np.float64)
  if not ((p >= 0) & (p <= 1)).all():  # NaN too
    raise UserError(f"p values are between 0 and 1, and these are not: {p[~((p >= 0) & (p <= 1))][:SHOWN].tolist()}.")
  order: Int[np.ndarray, " test"] = p.argsort(kind="stable")
  adjusted = np.empty_like(p)
  adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
  return adjusted


def check_alternative(alternative: str) -> None:
  """Raises UserError unless it is one of ALTERNATIVES."""
  if alternative not in ALTERNATIVES:
    raise UserError(f"no alternative {alternative!r}.", hint=did_you_mean(alternative, ALTERNATIVES))


def _check_counts(successes: int, trials: int) -> None:
  if not 0 <= successes <= trials or int(successes) != successes or int(trials) != trials:
    raise UserError(f"{successes} successes of {trials} trials: counts are whole, and successes at most trials.")


def _check_level(level: float) -> None:
  if not 0 < level < 1:
    raise UserError(f"level {level} is not between 0 and 1.", hint="0.95 is an interval of 95 %.")


def _same(expected, found, first: str, second: str, what: str, hint: str) -> None:
  """UserError unless both have the same keys."""
  if missing := [k for k in expected if k not in found]:
    raise UserError(f"{second} lacks {len(missing)} {what} of {first}: {_listed(missing)}.", hint=hint)
  if len(found) > len(expected):
    extra = [k for k in found if k not in set(expected)]
    raise UserError(f"{first} lacks {len(extra)} {what} of {second}: {_listed(extra)}.", hint=hint)


def _listed(keys: Sequence) -> str:
  shown = ", ".join("/".join(k) if isinstance(k, tuple) else str(k) for k in keys[:SHOWN])
  return shown + (", ..." if len(keys) > SHOWN else "")


def _finite(score) -> bool:
  return isinstance(score, (bool, int, float, np.number)) and math.isfinite(score)
