"""Scores of generated text against all acceptable references, per item and as a mean in 0..100. No
TensorFlow.

`METRICS[name](references, predictions)` is the mean of `scores(name, references, predictions)`: what is
compared between two runs item by item is exactly what is reported.
"""

import functools
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal

from mtx.errors import UserError, did_you_mean
from mtx.tasks.number_metrics import (
  digit_match,
  digit_match_backwards,
  length_difference,
  total_length_difference,
)

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


def squad_em(reference: str, prediction: str) -> float:
  """1 when equal after SQuAD's normalisation (Rajpurkar et al. 2016, arXiv 1606.05250), see `_squad_words`."""
  return float(_squad_words(reference) == _squad_words(prediction))


def squad_f1(reference: str, prediction: str) -> float:
  """F measure of the words that both have, after SQuAD's normalisation."""
  return _f1(Counter(_squad_words(reference)), Counter(_squad_words(prediction)))


def number_match(reference: str, prediction: str) -> float:
  """1 when the last numbers of both are equal: `$1,080.00` is 1080. Without a number in the reference, as texts."""
  gold, given = _last_number(reference), _last_number(prediction)
  return exact_normalized(reference, prediction) if gold is None else float(gold == given)


def answer_match(reference: str, prediction: str) -> float:
  """1 when the answers are equal: what follows the last "answer is", or all of a text without it, up to a line's end.

  Case does not count, nor does punctuation around words; an answer of nothing but symbols is compared as it stands,
  without spaces.
  """
  return float(_answer(reference) == _answer(prediction))


def set_f1(reference: str, prediction: str) -> float:
  """F measure of comma-separated lists as sets; case does not count."""
  gold, given = ({" ".join(item.casefold().split()) for item in text.split(",")} for text in (reference, prediction))
  return _f1(Counter(gold - {""}), Counter(given - {""}))


def bleu(reference: str, prediction: str) -> float:
  """BLEU of a sentence by `sacrebleu`: tokenizer 13a, exponential smoothing, no n-grams that the texts have not.

  A mean of sentences is not the BLEU of a corpus, which pools its n-grams.
  """
  return min(1.0, _bleu().sentence_score(prediction, [reference]).score / 100)


def chrf(reference: str, prediction: str) -> float:
  """chrF2 of a sentence by `sacrebleu` (Popović 2015): n-grams of up to 6 characters, no words, recall twice."""
  return min(1.0, _chrf().sentence_score(prediction, [reference]).score / 100)


def program_fits(reference: str, prediction: str) -> float:
  """1 when the prediction, run as a program of `mtx.tasks.programs`, gives the outputs that a reference asks for."""
  from mtx.tasks import programs  # a provider of tasks: runs without it should not register it

  return programs.program_fits(reference, prediction)


def normalized(text: str) -> str:
  """Lower case, no ASCII punctuation, single spaces."""
  return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _squad_words(text: str) -> list[str]:
  """Words without case, punctuation and English articles.

  As in MLQA's script (Lewis et al. 2020, arXiv 1910.07475), which is SQuAD's for other languages: punctuation is what
  Unicode or ASCII calls so, and characters of Chinese and Japanese, written without spaces, are words.
  """
  bare = "".join(c for c in text.lower() if c not in string.punctuation and unicodedata.category(c)[0] != "P")
  return _CJK.sub(r" \g<0> ", re.sub(r"\b(a|an|the)\b", " ", bare)).split()


_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")


def _f1(gold: Counter, given: Counter) -> float:
  """Harmonic mean of precision and recall of two bags; two empty ones are equal."""
  total = gold.total() + given.total()
  return 2 * (gold & given).total() / total if total else 1.0


def _last_number(text: str) -> Decimal | None:
  """Commas group digits, by threes or the Indian way; a minus after a letter or digit is no sign."""
  numbers = _NUMBER.findall(text)
  return Decimal(numbers[-1].replace(",", "").replace("−", "-")) if numbers else None


_NUMBER = re.compile(r"(?:(?<!\w)[-−](?=\.?\d))?(?:(?:\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)|\d+)(?:\.\d+)?|(?<!\w)\.\d+)")


def _answer(text: str) -> str:
  line = next(iter(re.split(r"\banswer is\b:?", text, flags=re.IGNORECASE)[-1].strip().splitlines()), "")
  words = line.casefold().split()
  # A minus stays: it may be a sign.
  bare = [word.rstrip(string.punctuation).lstrip(string.punctuation.replace("-", "")) for word in words]
  return " ".join(filter(None, bare)) or "".join(words).rstrip(".")


# Metric name -> similarity of one reference and one prediction, 0..1.
SIMILARITIES: dict[str, Callable[[str, str], float]] = {
  "exact_match": exact,
  "exact_match_normalized": exact_normalized,
  "rouge_l": rouge_l,
  "squad_em": squad_em,
  "squad_f1": squad_f1,
  "number_match": number_match,
  "answer_match": answer_match,
  "set_f1": set_f1,
  "bleu": bleu,
  "chrf": chrf,
  "digit_match": digit_match,
  "digit_match_backwards": digit_match_backwards,
  "program_fits": program_fits,
}

# Metric name -> distance of one reference and one prediction, in a unit of its own: 0 is best.
DISTANCES: dict[str, Callable[[str, str], float]] = {
  "length_difference": length_difference,
  "total_length_difference": total_length_difference,
}


def scores(name: str, references: References, predictions: Sequence[str]) -> list[float]:
  """Score of every item, the best over its references: 0..100, or the distance itself for a name in DISTANCES.

  Args:
    name: one of METRICS.
    references: all acceptable outputs of each item; an item with none scores 0, and has no distance (NaN).
    predictions: one for each item.

  Raises:
    UserError: an unknown metric.
    ValueError: not as many predictions as items.
  """
  if name not in METRICS:
    raise UserError(f"metric {name!r} is not known", hint=did_you_mean(name, METRICS))
  pairs = zip(references, predictions, strict=True)
  if distance := DISTANCES.get(name):
    return [min((distance(r, prediction) for r in acceptable), default=math.nan) for acceptable, prediction in pairs]
  similarity = SIMILARITIES[name]
  return [
    100.0 * max((similarity(reference, prediction) for reference in acceptable), default=0.0)
    for acceptable, prediction in pairs
  ]


def mean_score(name: str, references: References, predictions: Sequence[str]) -> float:
  """Mean of `scores`; 0 when there are no items."""
  items = scores(name, references, predictions)
  return sum(items) / len(items) if items else 0.0


METRICS: dict[str, Callable[[References, Sequence[str]], float]] = {
  name: functools.partial(mean_score, name) for name in (*SIMILARITIES, *DISTANCES)
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


@functools.cache
def _bleu():
  from sacrebleu.metrics import BLEU

  return BLEU(effective_order=True)


@functools.cache
def _chrf():
  from sacrebleu.metrics import CHRF

  return CHRF()
