"""Mixing strategies: how often each task is drawn. A strategy takes the tasks and returns one number a task.

Numbers need not sum to 1. Shares are of *examples*, not of tokens: a task with long examples takes more of a batch.
Bind one with `mixture.rates = @temperature` and its own arguments.
"""

import fnmatch
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import gin

from mtx.errors import UserError, did_you_mean
from mtx.tasks.task import TaskInfo

Rates = list[float]


@gin.configurable(denylist=["tasks"])
def proportional(tasks: Sequence[TaskInfo], *, cap: int | None = None) -> Rates:
  """min(examples, cap): examples-proportional mixing (Raffel et al. 2020, arXiv 1910.10683, section 3.5.2)."""
  if cap is not None and cap < 1:
    raise UserError(f"proportional.cap is {cap}", hint="it is a number of examples, at least 1; None caps nothing")
  return [float(min(t.examples, cap) if cap else t.examples) for t in tasks]


@gin.configurable(denylist=["tasks"])
def temperature(tasks: Sequence[TaskInfo], *, temperature: float = 2.0, cap: int | None = None) -> Rates:
  """min(examples, cap)^(1/T): T = 1 is proportional, large T is uniform (the same section)."""
  if temperature <= 0:
    raise UserError(f"temperature.temperature is {temperature}", hint="it is above 0; 1 is proportional, 2 is T5's")
  return [rate ** (1 / temperature) for rate in proportional(tasks, cap=cap)]


@gin.configurable(denylist=["tasks"])
def uniform(tasks: Sequence[TaskInfo]) -> Rates:
  """The same for every task."""
  return [1.0] * len(tasks)


@gin.configurable(denylist=["tasks"])
def explicit(tasks: Sequence[TaskInfo], *, rates: Mapping[str, float] = gin.REQUIRED) -> Rates:
  """Numbers from a mapping: task name or pattern -> rate; the name, else the longest pattern that matches
  decides; 0 without one.

  Raises:
    UserError: a pattern that matches no task, or a negative rate.
  """
  _known(rates, [t.name for t in tasks], "explicit.rates")
  return [rates.get(_longest(rates, t.name) or "", 0.0) for t in tasks]


@gin.configurable(denylist=["tasks"])
def by_category(tasks: Sequence[TaskInfo], *, within: Callable[[Sequence[TaskInfo]], Rates] = proportional) -> Rates:
  """Every category equally often; inside a category as `within` says."""
  return _shared(tasks, lambda t: t.category, None, within)


@gin.configurable(denylist=["tasks"])
def few(
  tasks: Sequence[TaskInfo],
  *,
  count: int = gin.REQUIRED,
  within: Callable[[Sequence[TaskInfo]], Rates] = proportional,
) -> Rates:
  """As `within` says for the first `count` tasks of every source, 0 for the others: how many tasks are trained on.

  The first are the largest of each category, then the second of each, and so on, so that more tasks contain fewer ones
  and categories stay even.

  Raises:
    UserError: no task is asked for.
  """
  if count < 1:
    raise UserError(f"few.count is {count}", hint="it is a number of tasks, at least 1")
  seen: Counter[tuple[str, str]] = Counter()
  ranks: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)  # source -> (number in its category, index)
  for i, task in sorted(enumerate(tasks), key=lambda pair: -pair[1].examples):
    ranks[task.source].append((seen[task.source, task.category], i))
    seen[task.source, task.category] += 1
  chosen = {i for each in ranks.values() for _, i in sorted(each)[:count]}
  return [rate if i in chosen else 0.0 for i, rate in enumerate(within(tasks))]


@gin.configurable(denylist=["tasks"])
def benchmark_shares(
  tasks: Sequence[TaskInfo],
  *,
  shares: Mapping[str, float] = gin.REQUIRED,
  within: Callable[[Sequence[TaskInfo]], Rates] = proportional,
) -> Rates:
  """A fixed share for each source, inside a source as `within` says.

  OPT-IML (Iyer et al. 2022, arXiv 2212.12017): examples-proportional with a cap of 4096 inside a benchmark, which is
  `benchmark_shares.within = @proportional` and `proportional.cap = 4096`.

  Raises:
    UserError: a source without a share, a share for no source, a negative share.
  """
  sources = list(dict.fromkeys(t.source for t in tasks))
  _known(shares, sources, "benchmark_shares.shares")
  for name in sources:
    if _longest(shares, name) is None:
      raise UserError(
        f"benchmark_shares.shares has no share for source {name!r}", hint=f"it has {', '.join(shares)}; 0 leaves it out"
      )
  return _shared(tasks, lambda t: t.source, lambda name: shares[_longest(shares, name) or name], within)


def _shared(
  tasks: Sequence[TaskInfo],
  group: Callable[[TaskInfo], str],
  share: Callable[[str], float] | None,
  within: Callable[[Sequence[TaskInfo]], Rates],
) -> Rates:
  """Rates that sum to `share(group)` (1 without) over every group of tasks."""
  rates = within(tasks)
  totals: defaultdict[str, float] = defaultdict(float)
  for task, rate in zip(tasks, rates, strict=True):
    totals[group(task)] += rate
  return [
    (share(group(t)) if share else 1.0) * rate / totals[group(t)] if totals[group(t)] else 0.0
    for t, rate in zip(tasks, rates, strict=True)
  ]


def _longest(patterns: Mapping[str, float], name: str) -> str | None:
  if name in patterns:
    return name
  return max((p for p in patterns if fnmatch.fnmatchcase(name, p)), key=len, default=None)


def _known(patterns: Mapping[str, float], names: Sequence[str], binding: str) -> None:
  if not isinstance(patterns, Mapping):
    raise UserError(f"{binding} is {patterns!r}", hint="it is a mapping of names to numbers: {'name': 0.5}")
  for pattern, rate in patterns.items():
    if not isinstance(rate, (int, float)) or not 0 <= rate < float("inf"):
      raise UserError(f"{binding}: {pattern!r} has rate {rate!r}", hint="a rate is a number, 0 or more")
    if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
      raise UserError(f"{binding}: {pattern!r} matches nothing", hint=did_you_mean(pattern, names))
