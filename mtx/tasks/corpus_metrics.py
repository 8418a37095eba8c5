"""Metrics of all answers of a task together: shares 0..1, correlations -1..1; NaN where undefined."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from mtx.tasks.answers import Answers
from mtx.tasks.similarities import exact, last_number, listed, set_f1

NO_NUMBER = -1.0  # what T5 reads where a prediction has none (Raffel et al. 2020, postprocessor `string_to_float`)


def macro_f1(answers: Answers) -> float:
  """Mean of the classes' F1, by `scikit-learn`, of what was generated.

  Classes are the references, compared as in exact match; what is none of them is wrong and no class of its own. Of
  several references the predicted one is the class, else the first.
  """
  return f1_of_classes(answers.references, answers.predictions)


def f1_of_classes(references: Sequence[Sequence[str]], labels: Sequence[str]) -> float:
  """`macro_f1` of any labels."""
  from sklearn.metrics import f1_score

  pairs = zip(references, labels, strict=True)
  gold = [next((r for r in acceptable if exact(r, label)), acceptable[0]).strip() for acceptable, label in pairs]
  given = [label.strip() for label in labels]
  return float(f1_score(gold, given, labels=sorted(set(gold)), average="macro", zero_division=0.0))


def set_f1_micro(answers: Answers) -> float:
  """F1 of all items of all comma-separated lists (micro average), as of the entities of a corpus.

  Lists are sets as in `set_f1`; of several references the one that it likes best counts.
  """
  right = total = 0
  for acceptable, prediction in zip(answers.references, answers.predictions, strict=True):
    gold, given = listed(max(acceptable, key=functools.partial(set_f1, prediction))), listed(prediction)
    right, total = right + len(gold & given), total + len(gold) + len(given)
  return 2 * right / total if total else 1.0


def corpus_bleu(answers: Answers) -> float:
  """BLEU by `sacrebleu`: tokenizer 13a, exponential smoothing, all references.

  Without any 4-gram (answers of a few words) it is 0, however right: `bleu` is for those.
  """
  from sacrebleu.metrics import BLEU

  return BLEU().corpus_score(answers.predictions, _streams(answers)).score / 100


def corpus_chrf(answers: Answers) -> float:
  """chrF2 by `sacrebleu`: n-grams of up to 6 characters, no words, recall twice."""
  from sacrebleu.metrics import CHRF

  return CHRF().corpus_score(answers.predictions, _streams(answers)).score / 100


def _streams(answers: Answers) -> list[list[Any]]:
  """All first references, all second ones, ...; None where an example has fewer."""
  most = max(map(len, answers.references))
  return [[each[i] if i < len(each) else None for each in answers.references] for i in range(most)]


def spearman(answers: Answers) -> float:
  """Rank correlation of the last numbers of predictions and of first references, by `scipy`; see `_correlation`."""
  from scipy import stats

  return _correlation(answers, lambda gold, given: stats.spearmanr(gold, given).statistic)


def pearson(answers: Answers) -> float:
  """Correlation of the last numbers of predictions and of first references, by `scipy`; see `_correlation`."""
  from scipy import stats

  return _correlation(answers, lambda gold, given: stats.pearsonr(gold, given).statistic)


def _correlation(answers: Answers, of: Callable[..., float]) -> float:
  """A prediction without a number is NO_NUMBER. Predictions that are all equal order nothing: 0; undefined (NaN) where
  the references are."""
  gold = _numbers([each[0] for each in answers.references])
  given = _numbers(answers.predictions)
  if np.ptp(gold) == 0:
    return math.nan
  return float(of(gold, given)) if np.ptp(given) else 0.0


def _numbers(texts: Sequence[str]) -> Float64[np.ndarray, " example"]:
  found = map(last_number, texts)
  return np.array([NO_NUMBER if number is None else float(number) for number in found])
