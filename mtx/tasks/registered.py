"""Any SeqIO mixture that a module of the user's registers, as a source of tasks."""

import importlib
import sys
from collections.abc import Iterable, Sequence

import gin

from mtx.errors import UserError, did_you_mean
from mtx.tasks.metrics import METRICS
from mtx.tasks.source import Source, seqio


@gin.configurable
def registered(
  module: str = gin.REQUIRED,
  train: str = gin.REQUIRED,
  heldout: str = gin.REQUIRED,
  *,
  metrics: tuple[str, ...] = ("exact_match",),
  cached: Sequence[str] = (),
) -> Source:
  """Imports `module` and wraps two mixtures that it registers with SeqIO.

  A task's category is its mixture. Its examples may carry the string fields `id` and `references` (a JSON
  list), else they are made from position and target.

  Args:
    module: its import name; the working directory is searched too.
    train, heldout: names of a Mixture or a single Task. They share no task, unless they are one and the same: its
      tasks are then trained on by their split `train` and judged by `test`.
    metrics: names in `mtx.tasks.metrics.METRICS`, used for every task.
    cached: folders in which SeqIO's own Beam job (`seqio.scripts.cache_tasks_main`) left tasks; those are read from
      there, and only what their preprocessors do after SeqIO's cache is done.

  Raises:
    UserError: a module that is not found, a name that is not registered, a task in both mixtures, an unknown metric,
      mixtures whose tasks have more than one vocabulary.
  """
  for metric in metrics:
    if metric not in METRICS:
      raise UserError(f"registered.metrics: {metric!r} is not known", hint=did_you_mean(metric, METRICS))
    if METRICS[metric].chooses:
      texts = [name for name, each in METRICS.items() if not each.chooses]
      raise UserError(
        f"registered.metrics: {metric!r} needs options, which SeqIO's tasks do not have",
        hint=f"those of texts are: {', '.join(texts)}",
      )
  if "" not in sys.path:
    sys.path.insert(0, "")  # a console script does not see the working directory, `python -m` does
  try:
    importlib.import_module(module)
  except ModuleNotFoundError as error:
    if error.name is None or not f"{module}.".startswith(f"{error.name}."):
      raise  # the module is there; something that it imports is not
    raise UserError(
      f"registered.module is {module!r}: there is no such module",
      hint="give a name that `import` finds from the working directory",
    ) from error
  names = {*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()}
  for role, name in (("train", train), ("heldout", heldout)):
    if name not in names:
      raise UserError(
        f"registered.{role} is {name!r}: {module} registers no such mixture or task",
        hint=did_you_mean(name, names),
      )
  seqio.add_global_cache_dirs(list(cached))
  members = {name: _tasks(name) for name in (train, heldout)}
  both = sorted({task.name for task in members[train]} & {task.name for task in members[heldout]})
  if both and train != heldout:
    raise UserError(
      f"task {both[0]!r} is listed in registered.train, {train!r}, and in registered.heldout, {heldout!r}, at once"
      + (f" (and {len(both) - 1} others are)" if len(both) > 1 else ""),
      hint="a task that is judged on must not be trained on: take it off one of the two mixtures",
    )
  tasks = {task.name: task for each in members.values() for task in each}
  return Source(
    name=module,
    vocabulary=_vocabulary(tasks.values()),
    train=train,
    heldout=heldout,
    categories={task.name: mixture for mixture, each in members.items() for task in each},
    metrics={name: tuple(metrics) for name in tasks},
  )


def _tasks(name: str) -> list[seqio.Task]:
  provider = seqio.get_mixture_or_task(name)
  return list(provider.tasks) if isinstance(provider, seqio.Mixture) else [provider]


def _vocabulary(tasks: Iterable[seqio.Task]) -> seqio.Vocabulary:
  """The one vocabulary of all features of all tasks."""
  found: seqio.Vocabulary | None = None
  for task in tasks:
    for feature in task.output_features.values():
      if found is not None and feature.vocabulary != found:
        raise UserError(
          f"task {task.name!r} has another vocabulary than the tasks before it",
          hint="inputs and targets of all tasks share one vocabulary",
        )
      found = feature.vocabulary
  return found
