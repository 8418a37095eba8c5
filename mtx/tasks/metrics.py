"""Metrics of a task's answers, by name. No TensorFlow.

There are two kinds. Most score every example, and the task by the mean: what is compared between two runs item by item
is exactly what is reported. Others (F1 of classes, correlations, calibration, BLEU of a corpus) score all examples
together. Scores are in 0..100, correlations in -100..100; those of DISTANCES have a unit of their own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mtx.errors import UserError, did_you_mean
from mtx.tasks import corpus_metrics, option_metrics
from mtx.tasks.answers import Answers
from mtx.tasks.similarities import DISTANCES, SIMILARITIES, last_number

References = Sequence[Sequence[str]]
# What an example must have: nothing; a reference; a number in the first one; options of which one is a reference; these
# and their scores; these, and the same options in every example.
Needs = Literal["text", "reference", "number", "options", "scores", "classes"]


@dataclass(frozen=True)
class Metric:
  """One way to score answers, by exactly one of two functions. Both get at least one example, with what `needs` says.

  Attributes:
    items: score of every example; the task's is their mean.
    together: score of all examples; NaN where it is undefined.
    needs: what examples must have.
    best: 100, or 0 where less is better.
  """

  items: Callable[[Answers], list[float]] | None = None
  together: Callable[[Answers], float] | None = None
  needs: Needs = "text"
  best: float = 100.0

  @property
  def ranks(self) -> bool:
    """Whether options must have been ranked."""
    return self.needs in ("scores", "classes")

  @property
  def chooses(self) -> bool:
    """Whether there must be options."""
    return self.ranks or self.needs == "options"


@dataclass(frozen=True)
class Score:
  """Attributes:
  value: of the task; NaN where the metric is undefined for these examples.
  items: of each example, `value` is their mean; None where examples have none.
  """

  value: float
  items: list[float] | None


def evaluate(name: str, answers: Answers) -> Score:
  """Scores a task's answers; 0 when there are none.

  Raises:
    UserError: an unknown metric, or one that these examples have not what it needs for.
  """
  metric = find(name)
  if reason := lacking(name, answers):
    raise UserError(f"metric {name!r} can not score example {reason[0]}: {reason[1]}.")
  if metric.together is not None:
    return Score(metric.together(answers) if len(answers) else 0.0, None)
  assert metric.items is not None
  items = metric.items(answers) if len(answers) else []
  return Score(sum(items) / max(len(items), 1), items)


def find(name: str) -> Metric:
  """The metric of a name.

  Raises:
    UserError: there is none; the nearest names are in the hint.
  """
  if name not in METRICS:
    raise UserError(f"metric {name!r} is not known", hint=did_you_mean(name, METRICS))
  return METRICS[name]


def lacking(name: str, answers: Answers) -> tuple[int, str] | None:
  """(index of the first example that a metric can not score, why); None when it can score all."""
  needs = find(name).needs
  for i in range(len(answers)):
    if reason := _lacks(needs, answers, i):
      return i, reason
  return None


def _lacks(needs: Needs, answers: Answers, i: int) -> str:
  references, options, ranks = list(answers.references[i]), list(answers.options[i]), answers.option_scores[i]
  if needs == "text":
    return ""
  if not references:
    return "it has no reference"
  if needs == "reference":
    return ""
  if needs == "number":
    return "" if last_number(references[0]) is not None else f"its reference {references[0]!r} has no number"
  if not options:
    return "it has no options"
  if set(references).isdisjoint(options):
    return f"none of its options is a reference (options {options}, references {references})"
  if needs != "options" and len(ranks) != len(options):
    return f"{len(ranks)} scores of {len(options)} options" if len(ranks) else "its options were not ranked"
  if needs == "classes" and sorted(options) != sorted(answers.options[0]):
    return f"its options {options} are not those of the first example, {list(answers.options[0])}"
  return ""


def scores(name: str, references: References, predictions: Sequence[str]) -> list[float]:
  """Score of every item, the best over its references: 0..100, or the distance itself for a name in DISTANCES.

  Args:
    name: one of METRICS that scores texts item by item.
    references: all acceptable outputs of each item; an item with none scores 0, and has no distance (NaN).
    predictions: one for each item.

  Raises:
    UserError: an unknown metric, one that needs more than texts, or one that has no score of an item.
    ValueError: not as many predictions as items.
  """
  items = evaluate(name, Answers(references, predictions)).items
  if items is None:
    raise UserError(f"metric {name!r} scores all items together.", hint="`mean_score` gives its score.")
  return items


def mean_score(name: str, references: References, predictions: Sequence[str]) -> float:
  """Score of all items, for most metrics the mean of `scores`; 0 when there are no items."""
  return evaluate(name, Answers(references, predictions)).value


def seqio_metric(name: str) -> Callable[[References, Sequence[str]], dict[str, float]]:
  """A SeqIO `metric_fn` of one of METRICS that needs no options; its targets are lists of references of each item."""

  def metric_fn(targets: References, predictions: Sequence[str]) -> dict[str, float]:
    return {name: mean_score(name, targets, predictions)}

  metric_fn.__name__ = name
  return metric_fn


def _similar(similarity: Callable[[str, str], float]) -> Callable[[Answers], list[float]]:
  """Score of every example, the best over its references."""

  def items(answers: Answers) -> list[float]:
    pairs = zip(answers.references, answers.predictions, strict=True)
    return [100.0 * max((similarity(r, p) for r in acceptable), default=0.0) for acceptable, p in pairs]

  return items


def _distant(distance: Callable[[str, str], float]) -> Callable[[Answers], list[float]]:
  """Distance of every example to the nearest of its references."""

  def items(answers: Answers) -> list[float]:
    pairs = zip(answers.references, answers.predictions, strict=True)
    return [min((distance(r, p) for r in acceptable), default=math.nan) for acceptable, p in pairs]

  return items


def _percent(share: Callable[[Answers], float]) -> Callable[[Answers], float]:
  return lambda answers: 100.0 * share(answers)


def _percents(shares: Callable[[Answers], list[float]]) -> Callable[[Answers], list[float]]:
  return lambda answers: [100.0 * share for share in shares(answers)]


METRICS: Mapping[str, Metric] = {
  **{name: Metric(items=_similar(similarity)) for name, similarity in SIMILARITIES.items()},
  **{name: Metric(items=_distant(distance), best=0.0) for name, distance in DISTANCES.items()},
  "macro_f1": Metric(together=_percent(corpus_metrics.macro_f1), needs="reference"),
  "set_f1_micro": Metric(together=_percent(corpus_metrics.set_f1_micro), needs="reference"),
  "corpus_bleu": Metric(together=_percent(corpus_metrics.corpus_bleu), needs="reference"),
  "corpus_chrf": Metric(together=_percent(corpus_metrics.corpus_chrf), needs="reference"),
  "spearman": Metric(together=_percent(corpus_metrics.spearman), needs="number"),
  "pearson": Metric(together=_percent(corpus_metrics.pearson), needs="number"),
  "normalized_exact_match": Metric(items=_percents(option_metrics.normalized_exact_match), needs="options"),
  "accuracy": Metric(items=_percents(option_metrics.accuracy), needs="scores"),
  "normalized_accuracy": Metric(items=_percents(option_metrics.normalized_accuracy), needs="scores"),
  "ranked_macro_f1": Metric(together=_percent(option_metrics.ranked_macro_f1), needs="scores"),
  "auroc": Metric(together=_percent(option_metrics.auroc), needs="classes"),
  "ece": Metric(together=_percent(option_metrics.expected_calibration_error), needs="scores", best=0.0),
}
