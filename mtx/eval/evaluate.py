"""Every task of the evaluation mixtures: generate, score, one row a task and metric."""

import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress
from pathlib import Path

import gin

from mtx.adapters.poly import new_router
from mtx.adapters.routes import routing
from mtx.data.cache import CachedTask, Example
from mtx.eval.generate import ROWS, Generator
from mtx.eval.rank import Ranked, Ranker
from mtx.eval.scoring import check_examples, fits, score_lines, with_scores, write_lines
from mtx.tasks.metrics import find
from mtx.training.parameters import Params
from mtx.training.session import Carried, Row, Session, rerouted


@gin.configurable("evaluation")
class Evaluation:
  """Evaluates the test split (validation, where a task has no test split) of whole mixtures.

  A mixture that the model's routers have rows for is evaluated with those; any other one with uniform routing, which
  is what an inventory of skills can do for a task that it has never seen (MHR-mu zero-shot, arXiv 2211.03831).

  Args:
    mixtures: "train", "heldout", or names of mixtures.
    examples: of each task, the first ones.
    sample: of each task in evaluations during a stage; 0 = none.
    before: whether to evaluate what a stage starts from, too.
    metrics: beside each task's own, where its examples have what they need: ("accuracy", "ece") ranks the options of
      every task that has some.
    rows: most prompts that are decoded at once. Every batch is filled up to it: few where few examples are judged.
    losses: mixtures of which the loss a token is measured too, as metric `loss`: of text that was learned before.
    rank: whether an example that has options is answered by the likeliest of them (`mtx.eval.rank`), not by generating.

  Raises:
    UserError: an unknown metric.
  """

  def __init__(
    self,
    mixtures: Sequence[str] = ("heldout",),
    examples: int = 100,
    sample: int = 8,
    before: bool = True,
    metrics: Sequence[str] = (),
    rank: bool = False,
    losses: Sequence[str] = (),
    rows: int = ROWS,
  ):
    self.mixtures, self.examples, self.sample, self.before, self.rank = mixtures, examples, sample, before, rank
    self.metrics = tuple(metrics)
    for metric in self.metrics:
      find(metric)
    self.losses, self.rows = tuple(losses), rows
    self._generators: dict[tuple[int, int], Generator] = {}

  def __call__(self, session: Session, carried: Carried, stage: str, step: int, quick: bool) -> list[Row]:
    """Rows of all mixtures; predictions of a full evaluation are written beside the stage's checkpoints."""
    limit = self.sample if quick else self.examples
    if step == 0 and not self.before:
      return []
    weights = routing(carried.params, carried.model.axes)
    if weights is not None:
      session.reporter.routes(stage, step, carried.tasks, weights)
    rows: list[Row] = []
    for name in self.mixtures if limit else ():
      mixture = session.mixture(name)
      names = [t.name for t in mixture.tasks]
      model, ids = carried, list(range(len(names)))
      if set(names) <= set(carried.tasks):
        ids = [carried.tasks.index(n) for n in names]
      elif carried.adapter is not None:
        model, ids = uniform(session, carried), [0] * len(names)
      heldout = name != "train"
      method = ("zero-shot" if heldout else "trained") if carried.trained else "untrained"
      common = {
        "stage": stage,
        "method": method,
        "split": "heldout" if heldout else "train",
        "step": step,
        "seed": session.seed,
      }
      predictions = None if quick else session.folder(stage) / f"predictions-{name}-{step}.jsonl"
      samples = partial(session.reporter.samples, stage, step, name)
      rows += self.score(session, model, mixture.tasks, ids, common, predictions, limit=limit, samples=samples)
    if limit and not quick:
      rows += self._losses(session, carried, {"stage": stage, "method": "likelihood", "step": step})
    return rows

  def score(
    self,
    session: Session,
    model: Carried,
    tasks: Sequence[CachedTask],
    task_ids: Sequence[int],
    common: Row,
    predictions_file: Path | None,
    *,
    limit: int | None = None,
    samples: Callable[[list[Row]], None] = lambda lines: None,
  ) -> list[Row]:
    """`score_tasks` with this evaluation's settings.

    Args:
      limit: examples of each task; None: `examples`.
    """
    return score_tasks(
      self.generator(session, model),
      model.params,
      tasks,
      task_ids,
      self.examples if limit is None else limit,
      common,
      predictions_file,
      samples,
      self.metrics,
      choose=self.rank,
    )

  def _losses(self, session: Session, carried: Carried, common: Row) -> list[Row]:
    """Mean negative log-likelihood of a target token, of every task that the mixtures in `losses` draw from: over
    all examples of the split that the task is judged on, since a loss costs little."""
    rows: list[Row] = []
    for name in self.losses:
      likelihood, mixture = self.generator(session, carried).likelihood, session.mixture(name)
      for task in [task for task, rate in zip(mixture.tasks, mixture.rates, strict=True) if rate > 0]:
        examples = scored_examples(task, sys.maxsize)
        row = carried.tasks.index(task.name) if task.name in carried.tasks else 0
        sums = likelihood.targets(carried.params, examples, [row] * len(examples), session.targets_length)
        value = -sum(each.log_p for each in sums) / max(1, sum(each.tokens for each in sums))
        about = {"split": name, "task": task.name, "category": task.category, "metric": "loss", "seed": session.seed}
        rows.append({**common, **about, "value": value, "count": len(sums)})
    return rows

  def generator(self, session: Session, model: Carried) -> Generator:
    """One a model and router size, so that each prompt length compiles once in a run."""
    key = (id(model.adapter), len(model.tasks))
    if key not in self._generators:
      parts = model.model, session.config, session.mesh, session.mixture("train").vocabulary
      inputs, targets = session.inputs_length, session.targets_length
      self._generators[key] = Generator(*parts, inputs_length=inputs, targets_length=targets, rows=self.rows)
    return self._generators[key]


def uniform(session: Session, carried: Carried) -> Carried:
  """The model with one router row that mixes all skills alike, for tasks that it has no row for."""
  model = session.blueprint(carried.adapter, 1)
  route = lambda router, tasks, key: new_router(router, tasks, "uniform", key)
  params = rerouted(carried.params, carried.model, model, route, session.key("uniform"))
  return Carried(model, params, carried.adapter, ("any",), carried.trained)


def judged_split(task: CachedTask) -> str:
  """The split that a task is judged on: test, or validation where there is no test."""
  return "test" if task.splits.get("test") else "validation"


def scored_examples(task: CachedTask, limit: int) -> list[Example]:
  """The first `limit` examples of the split that the task is judged on."""
  split = task.splits[judged_split(task)]
  return [split[i] for i in range(min(limit, len(split)))]


def score_tasks(
  generator: Callable[[Params, Sequence[Example], Sequence[int]], list[str]],
  params: Params,
  tasks: Sequence[CachedTask],
  task_ids: Sequence[int],
  limit: int,
  common: Row,
  predictions_file: Path | None,
  samples: Callable[[list[Row]], None] = lambda lines: None,
  metrics: Sequence[str] = (),
  choose: bool = False,
  rank: Callable[[Params, Sequence[Example], Sequence[int]], list[Ranked]] | None = None,
) -> list[Row]:
  """Answers all tasks in one go (batches mix tasks) and scores each task by its own metrics.

  Args:
    task_ids: router row of each task.
    common: fields that every row gets.
    predictions_file: JSON lines, one an example, with all that metrics read (`mtx.eval.scoring.FIELDS`) and the score
      of every metric that gives examples one.
    samples: called with those lines, as dicts.
    metrics: beside each task's own, where its examples have what they need.
    choose: whether the likeliest option is the answer where an example has options, and only others are generated.
    rank: ranks options, of tasks with a metric that needs it, or where one is chosen; None: by `rank`
      (`mtx.eval.rank`) with the generator's model.

  Returns:
    A row a task and metric; none where a metric is undefined for the examples, as a correlation of equal numbers.

  Raises:
    UserError: a metric needs what an example of its task has not; before anything is generated.
  """
  chosen = [scored_examples(t, limit) for t in tasks]
  by_task = [_metrics(task, examples, metrics) for task, examples in zip(tasks, chosen, strict=True)]
  flat = [e for examples in chosen for e in examples]
  ids = [i for i, examples in zip(task_ids, chosen, strict=True) for _ in examples]
  needs = [choose or any(find(metric).ranks for metric in names) for names in by_task]
  asked = [need and bool(e.get("options")) for need, examples in zip(needs, chosen, strict=True) for e in examples]
  ranks = _ranked(generator, params, flat, ids, asked, rank)
  texts = _texts(generator, params, flat, ids, ranks if choose else [None] * len(flat))
  answers = zip(texts, ranks, strict=True)
  rows: list[Row] = []
  written: list[Row] = []
  for task, examples, names in zip(tasks, chosen, by_task, strict=True):
    lines = [
      {"task": task.name, "id": e["id"], "inputs": e["text"], "prediction": text, "references": e["references"]}
      | ({"options": e["options"]} if e.get("options") else {})
      | ({"option_scores": each.scores.tolist()} if each else {})
      for e, (text, each) in zip(examples, answers, strict=False)  # of all tasks, in their order
    ]
    found = score_lines(lines, names)
    written += with_scores(lines, found)
    for metric, score in found.items():
      row = {"task": task.name, "category": task.category, "metric": metric, "value": score.value, "count": len(lines)}
      rows += [] if math.isnan(score.value) else [{**common, **row}]
  if predictions_file is not None:
    write_lines(predictions_file, written)
  samples(written)
  return rows


def _metrics(task: CachedTask, examples: Sequence[Example], more: Sequence[str]) -> list[str]:
  """The task's own and, of others, those that it has what they need for; UserError where it lacks that for its own."""
  check_examples(task.name, examples, task.metrics)
  return [*task.metrics, *(m for m in dict.fromkeys(more) if m not in task.metrics and fits(examples, m))]


def _ranked(generator, params, examples, task_ids, asked, rank) -> list[Ranked | None]:
  """The options of every example that is asked for, in order; None for others."""
  if not any(asked):
    return [None] * len(examples)
  rank = rank or Ranker(generator.likelihood).examples
  found = iter(rank(params, list(compress(examples, asked)), list(compress(task_ids, asked))))
  return [next(found) if each else None for each in asked]


def _texts(generator, params, examples, task_ids, chosen) -> list[str]:
  """The option that an example's ranking puts first; what the model says where there is no ranking."""
  others = [each is None for each in chosen]
  said = iter(
    generator(params, list(compress(examples, others)), list(compress(task_ids, others))) if any(others) else ()
  )
  return [next(said) if each is None else e["options"][each.index] for e, each in zip(examples, chosen, strict=True)]
