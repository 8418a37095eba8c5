"""Mixtures in which some tasks are drawn from a fixed part of their training examples (`mtx.tasks.replay`)."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from mtx.data.cache import CachedSplit, CachedSubset, CachedTask, digest, open_mixture
from mtx.errors import UserError
from mtx.tasks.replay import Replay


def replayed(
  cached: tuple[CachedTask, ...],
  rates: tuple[float, ...],
  replays: Mapping[str, Replay],
  known: Mapping[str, CachedTask],
) -> tuple[tuple[CachedTask, ...], tuple[float, ...]]:
  """Tasks of which a part is replayed have that part alone, and are drawn as much less often as it is smaller.

  Args:
    rates: of the tasks, those of a replay times its fraction.
    known: what `earlier` found: to read all ids again would take seconds.

  Raises:
    UserError: not one example is replayed.
  """
  tasks, numbers, found = [], [], 0
  for task, rate in zip(cached, rates, strict=True):
    if (replay := replays.get(task.name)) and (whole := task.splits.get("train")):
      part = _part(task, whole, replay, known.get(task.name))
      fingerprint = _fingerprint(task, replay)
      task = dataclasses.replace(task, fingerprint=fingerprint, splits={**task.splits, "train": part})
      rate *= len(part) / (len(whole) * replay.fraction)  # of the examples that were found, not of those asked for
      found += len(part)
    tasks.append(task)
    numbers.append(rate)
  if not found:
    largest = max(replay.fraction for replay in replays.values())
    raise UserError(
      f"mixture.parts replays {largest:.2g} of {', '.join(sorted(replays)[:3])}, which is no example at all",
      hint="replay a larger fraction",
    )
  total = sum(numbers)
  return tuple(tasks), tuple(number / total for number in numbers)


def _fingerprint(task: CachedTask, replay: Replay) -> str:
  return digest([task.fingerprint, replay.fraction, replay.seed])


def _part(task: CachedTask, whole: CachedSplit, replay: Replay, known: CachedTask | None) -> CachedSubset:
  if known and known.fingerprint == _fingerprint(task, replay) and isinstance(known.splits["train"], CachedSubset):
    return known.splits["train"]
  return CachedSubset(whole.folder, replay.rows(task.name, [whole[i]["id"] for i in range(len(whole))]))


def earlier(root: Path, mixture_name: str) -> dict[str, CachedTask]:
  """Task -> what an earlier build of a mixture left of it."""
  try:
    return {task.name: task for task in open_mixture(root, mixture_name).tasks}
  except UserError:  # not there, or of another format
    return {}
