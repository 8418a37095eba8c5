"""Some of another source's tasks: what a recipe of few tasks trains on and is judged on."""

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import replace

import gin

from mtx.errors import UserError, did_you_mean
from mtx.tasks.task import Collection, TextTask


@gin.configurable
def chosen(
  source: Collection | Callable[[], Collection] = gin.REQUIRED,
  *,
  train: Sequence[str] = (),
  heldout: Sequence[str] = (),
  without: Sequence[str] = (),
  metrics: Sequence[str] | None = None,
  name: str = "chosen",
) -> Collection:
  """The source with fewer tasks, and the vocabulary that it has with all of them.

  Args:
    source: a provider, `@procedural`.
    train, heldout: names or patterns of the tasks to keep; empty: all.
    without: of tasks to leave out of both.
    metrics: of all that is left; None: each task's own.
    name: of what is left; caches of two selections need two names.

  Raises:
    UserError: a pattern that matches no task, or nothing left to train on.
  """
  whole = source() if callable(source) else source
  everyone = (*whole.train, *whole.heldout)
  gone = {task.name for task in _matching(everyone, without, "without")} if without else set()
  own = lambda task: task if metrics is None else replace(task, metrics=tuple(metrics))
  left = lambda tasks: tuple(own(task) for task in tasks if task.name not in gone)
  kept = left(_matching(whole.train, train, "train"))
  if not kept:
    raise UserError(f"chosen: no training task of {whole.name} is left.", hint="leave out fewer")
  return replace(whole, name=name, train=kept, heldout=left(_matching(whole.heldout, heldout, "heldout")))


def _matching(tasks: Sequence[TextTask], patterns: Sequence[str], argument: str) -> tuple[TextTask, ...]:
  """Tasks that a pattern matches, in the source's order; all without patterns."""
  for pattern in patterns:
    if not any(fnmatch.fnmatchcase(task.name, pattern) for task in tasks):
      raise UserError(
        f"binding `chosen.{argument}`: {pattern!r} matches no task.",
        hint=did_you_mean(pattern, (t.name for t in tasks)),
      )
  return tuple(t for t in tasks if not patterns or any(fnmatch.fnmatchcase(t.name, p) for p in patterns))
