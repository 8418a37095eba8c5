"""Scores of generated text against all acceptable references, per item and as a mean in 0..100. No
TensorFlow.

`METRICS[name](references, predictions)` is the mean of `scores(name, references, predictions)`: what is
compared between two runs item by item is exactly what is reported.
"""

import functools
import string
from collections.abc import Callable, Sequence

from mtx.errors import UserError, did_you_mean

References = Sequence[Sequence[str]]


def exact(reference: str, prediction: str) -> float:
  """1 when equal but for white space at the ends."""
  return float(reference.strip() == prediction.strip())


def exact_normalized(reference: str, prediction: str) -> float:
  """1 when equal after `normalized`: Tk-Instruct's exact match (Wang et al. 2022, arXiv 2204.07705)."""
  return float(normalized(reference) == normalized(prediction))


def rouge_l(reference: str, prediction: str) -> float:
  """F measure of the longest common subsequence of stemmed words (Lin 2004), by `rouge_score`."""
  return _rouge().score(reference, prediction)["rougeL"].fmeasure


def normalized(text: str) -> str:
  """Lower case, no ASCII punctuation, single spaces."""
  return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

# Metric name -> similarity of one reference and one prediction, 0..1.
SIMILARITIES: dict[str, Callable[[str, str], float]] = {
  "exact_match": exact,
  "exact_match_normalized": exact_normalized,
  "rouge_l": rouge_l,
}


def scores(name: str, references: References, predictions: Sequence[str]) -> list[float]:
  """Score of every item, 0..100: the best over its references.

  Args:
    name: one of METRICS.
    references: all acceptable outputs of each item; an item with none scores 0.
    predictions: one for each item.

  Raises:
    UserError: an unknown metric.
    ValueError: not as many predictions as items.
  """
  if name not in SIMILARITIES:
    raise UserError(f"metric {name!r} is not known", hint=did_you_mean(name, SIMILARITIES))
  similarity = SIMILARITIES[name]
  return [
    100.0 * max((similarity(reference, prediction) for reference in acceptable), default=0.0)
    for acceptable, prediction in zip(references, predictions, strict=True)
  ]


def mean_score(name: str, references: References, predictions: Sequence[str]) -> float:
  """Mean of `scores`; 0 when there are no items."""
  items = scores(name, references, predictions)
  return sum(items) / len(items) if items else 0.0


METRICS: dict[str, Callable[[References, Sequence[str]], float]] = {
  name: functools.partial(mean_score, name) for name in SIMILARITIES
}


def seqio_metric(name: str) -> Callable[[References, Sequence[str]], dict[str, float]]:
  """A SeqIO `metric_fn` of one of METRICS; its targets are lists of references of each item."""

  def metric_fn(targets: References, predictions: Sequence[str]) -> dict[str, float]:
    return {name: mean_score(name, targets, predictions)}

  metric_fn.__name__ = name
  return metric_fn


@functools.cache
def _rouge():
  from rouge_score import rouge_scorer  # brings nltk, a second that runs without ROUGE should not pay

  return rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
