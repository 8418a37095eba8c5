"""Every task of the evaluation mixtures: generate, score, one row a task and metric."""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import gin

from mtx.adapters.poly import new_router
from mtx.adapters.routes import routing
from mtx.data.cache import CachedTask, Example
from mtx.eval.generate import Generator
from mtx.tasks.metrics import scores
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
  """

  def __init__(self, mixtures: Sequence[str] = ("heldout",), examples: int = 100, sample: int = 8, before: bool = True):
    self.mixtures, self.examples, self.sample, self.before = mixtures, examples, sample, before
    self._generators: dict = {}

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
        model, ids = self._uniform(session, carried), [0] * len(names)
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
      generator = self.generator(session, model)
      samples = partial(session.reporter.samples, stage, step, name)
      rows += score_tasks(generator, model.params, mixture.tasks, ids, limit, common, predictions, samples)
    return rows

  def generator(self, session: Session, model: Carried) -> Generator:
    """One generator a model and router size, so that each prompt length compiles once in a run."""
    key = (id(model.adapter), len(model.tasks))
    if key not in self._generators:
      self._generators[key] = Generator(
        model.model,
        session.config,
        session.mesh,
        session.mixture("train").vocabulary,
        inputs_length=session.inputs_length,
        targets_length=session.targets_length,
      )
    return self._generators[key]

  def _uniform(self, session: Session, carried: Carried) -> Carried:
    model = session.blueprint(carried.adapter, 1)
    route = lambda router, tasks, key: new_router(router, tasks, "uniform", key)
    params = rerouted(carried.params, carried.model, model, route, session.key("uniform"))
    return Carried(model, params, carried.adapter, ("any",), carried.trained)


def scored_examples(task: CachedTask, limit: int) -> list[Example]:
  """The first `limit` examples of the test split, or of validation where there is none."""
  split = task.splits.get("test") or task.splits["validation"]
  return [split[i] for i in range(min(limit, len(split)))]


def score_tasks(
  generator: Generator,
  params: Params,
  tasks: Sequence[CachedTask],
  task_ids: Sequence[int],
  limit: int,
  common: Row,
  predictions_file: Path | None,
  samples: Callable[[list[Row]], None] = lambda lines: None,
) -> list[Row]:
  """Generates for all tasks in one go (batches mix tasks) and scores each task by its own metrics.

  Args:
    task_ids: router row of each task.
    common: fields that every row gets.
    predictions_file: JSON lines, one an example: id, inputs, prediction, references and the score of every metric.
    samples: called with those lines, as dicts.
  """
  chosen = [scored_examples(t, limit) for t in tasks]
  flat = [e for examples in chosen for e in examples]
  ids = [i for i, examples in zip(task_ids, chosen, strict=True) for _ in examples]
  texts = iter(generator(params, flat, ids))
  rows, lines = [], []
  for task, examples in zip(tasks, chosen, strict=True):
    outputs = [next(texts) for _ in examples]
    references = [e["references"] for e in examples]
    by_metric = {m: scores(m, references, outputs) for m in task.metrics}
    for metric, values in by_metric.items():
      value = sum(values) / max(len(values), 1)
      row = {"task": task.name, "category": task.category, "metric": metric, "value": value, "count": len(values)}
      rows.append({**common, **row})
    for i, (example, output) in enumerate(zip(examples, outputs, strict=True)):
      line = {"task": task.name, "id": example["id"], "inputs": example["text"], "prediction": output}
      lines.append({**line, "references": example["references"], **{m: v[i] for m, v in by_metric.items()}})
  if predictions_file is not None:
    predictions_file.parent.mkdir(parents=True, exist_ok=True)
    temporary = predictions_file.with_name(f".{predictions_file.name}.new")
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, predictions_file)
  samples(lines)
  return rows
