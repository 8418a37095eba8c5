"""Metrics of examples with options to choose from: most by the probabilities that a model gives to these."""

import math

import numpy as np
from jaxtyping import Float64

from mtx.tasks.answers import Answers
from mtx.tasks.corpus_metrics import f1_of_classes
from mtx.tasks.similarities import exact

BINS = 15  # of confidence (Guo et al. 2017)


def accuracy(answers: Answers) -> list[float]:
  """1 where the likeliest option is a reference (rank classification: Sanh et al. 2022, arXiv 2110.08207)."""
  pairs = zip(answers.ranked, answers.references, strict=True)
  return [float(label in acceptable) for label, acceptable in pairs]


def normalized_accuracy(answers: Answers) -> list[float]:
  """Accuracy over that of guessing: (accuracy - chance) / (1 - chance), see `above_chance`."""
  return above_chance(accuracy(answers), answers)


def normalized_exact_match(answers: Answers) -> list[float]:
  """Exact match of what was generated, over that of guessing one of the options, see `above_chance`."""
  pairs = zip(answers.references, answers.predictions, strict=True)
  return above_chance([float(any(exact(r, p) for r in acceptable)) for acceptable, p in pairs], answers)


def above_chance(scores: list[float], answers: Answers) -> list[float]:
  """Scores 0..1 whose mean is normalised: 0 is who draws an option, 1 is the best, what is worse than chance negative.

  (score - chance) / (max - chance), as BIG-bench reports scores (Srivastava et al. 2022, arXiv 2206.04615, section
  3.1); chance is the mean share of an example's options that are references. NaN where all options are right.
  """
  pairs = zip(answers.options, answers.references, strict=True)
  chance = float(np.mean([np.mean([option in acceptable for option in options]) for options, acceptable in pairs]))
  return [(score - chance) / (1 - chance) if chance < 1 else math.nan for score in scores]


def ranked_macro_f1(answers: Answers) -> float:
  """Mean of the classes' F1, as `mtx.tasks.corpus_metrics.macro_f1`, of the likeliest options."""
  return f1_of_classes(answers.references, answers.ranked)


def auroc(answers: Answers) -> float:
  """Area under the ROC curve, by `scikit-learn`: of each option against all others, the mean over options.

  Of two options both areas are one. An option that is right always or never has none; without any, NaN.
  """
  from sklearn.metrics import roc_auc_score

  areas = []
  for label in sorted(answers.options[0]):
    right = [label in acceptable for acceptable in answers.references]
    columns = zip(answers.options, answers.probabilities, strict=True)
    scores = [float(p[list(options).index(label)]) for options, p in columns]
    if len(set(right)) == 2:
      areas.append(float(roc_auc_score(right, scores)))
  return float(np.mean(areas)) if areas else math.nan


def expected_calibration_error(answers: Answers) -> float:
  """ECE: how far confidence is from accuracy, the mean over bins of confidence weighted by their examples.

  Guo et al. 2017 (arXiv 1706.04599, equation 3): confidence is the probability of the likeliest option, in 15 bins of
  equal width. With few examples it is too high: bins scatter by chance.
  """
  confidence: Float64[np.ndarray, " example"] = np.array([p.max() for p in answers.probabilities])
  gap = np.array(accuracy(answers)) - confidence
  bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], confidence)
  return float(np.abs(np.bincount(bins, gap)).sum() / len(gap))
