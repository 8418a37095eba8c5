"""`python -m mtx.eval.calibration`: how often tests reject and intervals cover, in worlds whose truth is known.

A nominal 5 % test should reject 4 to 6 % of null worlds, an interval of 95 % cover 93 to 97 %; exact and anytime-valid
tests promise at most 5 %. Rows without a range show what goes wrong with plainer methods, or with two seeds. Exit code
1 if a row is out of its range by more than two standard errors.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float64
from rich.console import Console
from rich.table import Table
from scipy import stats
from scipy.special import expit

from mtx.eval.letters import compact_letters
from mtx.eval.sequential import log_evidence, log_two_sided
from mtx.eval.statistics import beta_interval, bootstrap, exact_test, holm

ALPHA = 0.05
SIZE, COVERAGE, AT_MOST = (0.04, 0.06), (0.93, 0.97), (0.0, 0.05)
BATCH = 250  # worlds that share resampled units
DRAWS = 2000


@dataclass(frozen=True)
class Row:
  """Attributes:
  check, world: what was measured, and on which data.
  measured: share of worlds.
  error: standard error of it; None: nothing was simulated, the chances of all outcomes are summed.
  range: where it should be; None: shown for comparison.
  """

  check: str
  world: str
  measured: float
  error: float | None
  range: tuple[float, float] | None

  @property
  def verdict(self) -> str:
    """ "yes" where it should be, "no" where it is not by more than two standard errors, "within error" in between."""
    if self.range is None:
      return ""
    outside = max(self.range[0] - self.measured, self.measured - self.range[1])
    return "yes" if outside <= 0 else "no" if outside > 2 * (self.error or 0.0) else "within error"


@dataclass(frozen=True)
class Normal:
  """Scores whose mean has this variance from seeds, from items, and from neither."""

  seeds: int
  items: int
  variances: tuple[float, float, float]

  def draw(
    self, count: int, arms: int, effect: float, rng: np.random.Generator
  ) -> Float64[np.ndarray, "world arm seed item"]:
    of_seed, of_item, rest = (math.sqrt(v / 2) for v in self.variances)  # an arm's: the difference of two has it
    s, i = self.seeds, self.items
    noise = of_seed * math.sqrt(s) * rng.normal(size=(count, arms, s, 1))
    noise = noise + of_item * math.sqrt(i) * rng.normal(size=(count, arms, 1, i))
    noise = noise + rest * math.sqrt(s * i) * rng.normal(size=(count, arms, s, i))
    noise[:, 0] += effect
    return noise

  def truth(self, effect: float) -> float:
    return effect


@dataclass(frozen=True)
class Answers:
  """Answers that are right (1) or wrong (0): items differ in difficulty, arms in what they find difficult, and runs of
  an arm in ability. All are normal on the scale of log odds, so that the mean score is a one-dimensional integral."""

  seeds: int
  items: int
  ability: float = 0.5
  difficulty: float = 1.5
  of_arm: float = 0.7
  of_run: float = 0.3

  def draw(
    self, count: int, arms: int, effect: float, rng: np.random.Generator
  ) -> Float64[np.ndarray, "world arm seed item"]:
    logits = self.ability + self.difficulty * rng.normal(size=(count, 1, 1, self.items))
    logits = logits + self.of_arm * rng.normal(size=(count, arms, 1, self.items))
    logits = logits + self.of_run * rng.normal(size=(count, arms, self.seeds, 1))
    logits[:, 0] += effect
    return (rng.random(logits.shape) < expit(logits)).astype(np.float64)

  def truth(self, effect: float) -> float:
    nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    scatter = math.sqrt(self.difficulty**2 + self.of_arm**2 + self.of_run**2)
    mean = lambda ability: float(weights @ expit(ability + scatter * nodes) / weights.sum())
    return mean(self.ability + effect) - mean(self.ability)


World = Normal | Answers
WORLDS: tuple[tuple[str, World, float], ...] = (
  ("right or wrong, 3 seeds x 100 items", Answers(3, 100), 0.5),
  ("right or wrong, 3 seeds x 30 items", Answers(3, 30), 0.5),
  ("right or wrong, 5 seeds x 200 items", Answers(5, 200), 0.5),
  ("right or wrong, 95 % right, 3 seeds x 100 items", Answers(3, 100, ability=4.5), -0.5),
  ("right or wrong, 1 seed x 100 items, of that run", Answers(1, 100, of_run=0.0), 0.5),
  ("normal, 3 seeds x 100 items, seeds scatter", Normal(3, 100, (1, 0, 0)), 1.0),
  ("normal, 3 seeds x 100 items, items scatter", Normal(3, 100, (0, 1, 0)), 1.0),
  ("normal, 3 seeds x 100 items, both scatter", Normal(3, 100, (1, 1, 0)), 1.0),
  ("normal, 3 seeds x 100 items, mostly seeds", Normal(3, 100, (0.85, 0.15, 0)), 1.0),
  ("normal, 3 seeds x 100 items, neither does", Normal(3, 100, (0, 0, 1)), 1.0),
  ("normal, 2 seeds x 100 items, mostly seeds", Normal(2, 100, (0.8, 0.2, 0)), 1.0),
  ("normal, 3 seeds x 1 number", Normal(3, 1, (1, 0, 0)), 1.0),
  ("normal, 5 seeds x 8 tasks, all scatter", Normal(5, 8, (1, 1, 1)), 1.0),
)


def rows(worlds: int, rng: np.random.Generator) -> Iterator[Row]:
  """All checks, each on `worlds` simulated worlds."""
  for name, world, effect in WORLDS:
    yield from of_bootstrap(name, world, effect, worlds, rng)
  for name, world, _ in WORLDS:
    if isinstance(world, Normal) and (world.seeds, world.items) == (3, 100):
      yield of_plain_percentiles(name, world, worlds, rng)
  yield of_holm(worlds, rng)
  yield from of_beta()
  yield from of_exact_test()
  yield from of_anytime(worlds, rng)


def of_bootstrap(name: str, world: World, effect: float, worlds: int, rng: np.random.Generator) -> Iterator[Row]:
  """Two arms that are equal, and two that differ by `effect`. Of two seeds too little is known to keep the ranges."""
  size, coverage = (None, None) if world.seeds == 2 else (SIZE, COVERAGE)
  rejected = [p <= ALPHA for _, _, p in _intervals(world, 0.0, worlds, rng)]
  yield _row("paired bootstrap rejects", name, rejected, size)
  truth = world.truth(effect)
  covered = [low <= truth <= high for low, high, _ in _intervals(world, effect, worlds, rng)]
  yield _row("paired bootstrap covers", name, covered, coverage)


def of_plain_percentiles(name: str, world: World, worlds: int, rng: np.random.Generator) -> Row:
  """The bootstrap that draws seeds and items with replacement and takes quantiles."""
  covered: list[bool] = []
  for d in _differences(world, 0.0, worlds, rng):
    _, seeds, items = d.shape
    of_seeds, of_items = (rng.multinomial(n, np.full(n, 1 / n), DRAWS) / n for n in (seeds, items))
    means = np.einsum("wsd,ds->wd", d @ of_items.T, of_seeds)
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2], axis=1)
    covered += list((low <= 0) & (high >= 0))
  return _row("plain percentile bootstrap covers", name, covered, None)


def of_holm(worlds: int, rng: np.random.Generator) -> Row:
  """Four equal arms, six pairs: how often any two are given different letters."""
  world, arms = Answers(3, 50), list("pqrs")
  pairs = [(a, b) for a in range(len(arms)) for b in range(a)]
  told_apart: list[bool] = []
  for start in range(0, worlds, BATCH):
    scores = world.draw(min(BATCH, worlds - start), len(arms), 0.0, rng)
    d = np.concatenate([scores[:, a] - scores[:, b] for a, b in pairs])
    p = np.array([each.p for each in bootstrap(d, draws=2 * DRAWS, level=1 - ALPHA, rng=rng)], np.float64)
    for each in p.reshape(len(pairs), -1).T:
      significant = [(arms[a], arms[b]) for (a, b), q in zip(pairs, holm(each), strict=True) if q <= ALPHA]
      told_apart.append(len(set(compact_letters(arms, significant).values())) > 1)
  return _row(
    "Holm's letters part equal arms", "right or wrong, 4 arms, 3 seeds x 50 items", told_apart, (0.0, SIZE[1])
  )


def of_beta() -> Iterator[Row]:
  """Coverage of a fixed rate, summed over all counts."""
  for trials, rate in ((20, 0.5), (50, 0.5), (50, 0.8), (200, 0.95)):
    found = [beta_interval(k, trials) for k in range(trials + 1)]
    chance = stats.binom.pmf(np.arange(trials + 1), trials, rate)
    covered = float(chance @ [i.low <= rate <= i.high for i in found])
    yield Row("Beta posterior covers", f"rate {rate}, {trials} trials", covered, None, COVERAGE)


def of_exact_test() -> Iterator[Row]:
  """Chance of p <= 5 %, summed over all counts."""
  for trials, rates in ((10, (0.5,)), (20, (0.5, 0.3))):
    p_value = cache(lambda k1, k2: exact_test(k1, trials, k2, trials))
    counts = range(trials + 1)
    # The test does not change where the samples or success and failure are exchanged.
    same = lambda i, j: min((i, j), (j, i), (trials - i, trials - j), (trials - j, trials - i))
    rejected = np.array([[p_value(*same(i, j)) <= ALPHA for j in counts] for i in counts])
    for rate in rates:
      chance = stats.binom.pmf(counts, trials, rate)
      rejects = float(chance @ rejected @ chance)
      yield Row("exact test rejects", f"rates {rate}, 2 x {trials} trials", rejects, None, AT_MOST)


def of_anytime(worlds: int, rng: np.random.Generator) -> Iterator[Row]:
  """Runs of 200 pairs that are looked at on the way, and stopped at the first p <= 5 %."""
  watched, waited = "anytime test after every pair rejects", "z test at the end rejects"
  for rate in (0.5, 0.1):
    a, b = _outcomes(worlds, rate, rate, rng)
    yield _row(watched, f"rates {rate}, 200 pairs, one-sided", ever(log_evidence(a, b)), AT_MOST)
    yield _row(watched, f"rates {rate}, 200 pairs, two-sided", ever(log_two_sided(a, b)), AT_MOST)
  a, b = _outcomes(worlds, 0.5, 0.5, rng)
  yield _row("z test every 10 pairs rejects", "rates 0.5, 200 pairs, one-sided", z_test(a, b, 10), None)
  yield _row(waited, "rates 0.5, 200 pairs, one-sided", z_test(a, b, 200), None)
  a, b = _outcomes(worlds, 0.7, 0.5, rng)
  yield _row(watched, "rates 0.7 and 0.5, 200 pairs, one-sided", ever(log_evidence(a, b)), None)
  yield _row(waited, "rates 0.7 and 0.5, 200 pairs, one-sided", z_test(a, b, 200), None)


def ever(log_e: Float64[np.ndarray, "world pair"]) -> Bool[np.ndarray, " world"]:
  """Whether p fell to 5 % at any time."""
  return log_e.max(1) >= -math.log(ALPHA)


def z_test(
  a: Float64[np.ndarray, "world pair"], b: Float64[np.ndarray, "world pair"], every: int
) -> Bool[np.ndarray, " world"]:
  """Whether any look of the usual test of two proportions finds that `a` has the higher rate."""
  looks = np.arange(every, a.shape[1] + 1, every)
  of_a, of_b = (x.cumsum(1)[:, looks - 1] / looks for x in (a, b))
  pooled = (of_a + of_b) / 2
  scale = np.sqrt(2 * pooled * (1 - pooled) / looks)
  return (of_a - of_b > stats.norm.isf(ALPHA) * scale).any(1)


def table(measured: Sequence[Row]) -> Table:
  """One line a row, in percent."""
  shown = Table(title="mtx.eval.calibration: % of simulated worlds", caption="+-: one standard error")
  for name in ("check", "world", "measured", "+-", "should be", "is"):
    shown.add_column(name, justify="right" if name in ("measured", "+-") else "left", overflow="fold")
  for row in measured:
    bounds = "" if row.range is None else f"{100 * row.range[0]:.0f} to {100 * row.range[1]:.0f}"
    error = "exact" if row.error is None else f"{100 * row.error:.2f}"
    color = {"yes": "green", "no": "bold red"}.get(row.verdict, "default")
    shown.add_row(row.check, row.world, f"{100 * row.measured:.1f}", error, bounds, f"[{color}]{row.verdict}[/]")
  return shown


def main(arguments: Sequence[str] | None = None) -> int:
  """Prints the table; 1 if a row misses."""
  parser = argparse.ArgumentParser(prog="python -m mtx.eval.calibration", description=__doc__)
  parser.add_argument("--worlds", type=int, default=10_000, help="simulated for each row (default 10000)")
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args(arguments)
  if options.worlds < 1:
    parser.error("--worlds is at least 1")
  measured = list(rows(options.worlds, np.random.default_rng(options.seed)))
  Console().print(table(measured))
  return int(any(row.verdict == "no" for row in measured))


def _outcomes(worlds: int, rate_a: float, rate_b: float, rng: np.random.Generator):
  a, b = ((rng.random((worlds, 200)) < rate).astype(np.float64) for rate in (rate_a, rate_b))
  return a, b


def _differences(
  world: World, effect: float, worlds: int, rng: np.random.Generator
) -> Iterator[Float64[np.ndarray, "world seed item"]]:
  for start in range(0, worlds, BATCH):
    scores = world.draw(min(BATCH, worlds - start), 2, effect, rng)
    yield scores[:, 0] - scores[:, 1]


def _intervals(
  world: World, effect: float, worlds: int, rng: np.random.Generator
) -> Iterator[tuple[float, float, float]]:
  """Low, high and p of every world."""
  for d in _differences(world, effect, worlds, rng):
    for each in bootstrap(d, draws=DRAWS, level=1 - ALPHA, rng=rng):
      assert each.p is not None
      yield each.low, each.high, each.p


def _row(check: str, world: str, happened: Sequence[bool] | np.ndarray, within: tuple[float, float] | None) -> Row:
  share = float(np.mean(happened))
  return Row(check, world, share, math.sqrt(share * (1 - share) / len(happened)), within)


if __name__ == "__main__":
  sys.exit(main())
