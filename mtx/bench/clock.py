"""Timing that survives a busy machine: contestants take turns, and medians count."""

import time
from collections.abc import Callable, Mapping


def interleaved(contestants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
  """Seconds of every run of every contestant; each call must return only when its work is done.

  Each contestant runs once untimed (compilation, allocation), then all take turns, so that whatever else the machine
  does slows all of them alike. The order is reversed every other round.
  """
  for run in contestants.values():
    run()
  seconds: dict[str, list[float]] = {name: [] for name in contestants}
  for repeat in range(repeats):
    for name in list(contestants)[:: -1 if repeat % 2 else 1]:
      start = time.perf_counter()
      contestants[name]()
      seconds[name].append(time.perf_counter() - start)
  return seconds
