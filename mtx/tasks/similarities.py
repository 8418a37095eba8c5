"""How near one text is to one reference, 0..1: what is asked of generated text. No TensorFlow.

`mtx.tasks.metrics` makes metrics of them. Libraries that score are imported where they are used: a run without them
should not pay for them.
"""

import functools
import re
import string
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from mtx.tasks.number_metrics import (
  digit_match,
  digit_match_backwards,
  length_difference,
  total_length_difference,
)


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
  gold, given = last_number(reference), last_number(prediction)
  return exact_normalized(reference, prediction) if gold is None else float(gold == given)


def answer_match(reference: str, prediction: str) -> float:
  """1 when the answers are equal: what follows the last "answer is", or all of a text without it, up to a line's end.

  Case does not count, nor does punctuation around words; an answer of nothing but symbols is compared as it stands,
  without spaces.
  """
  return float(_answer(reference) == _answer(prediction))


def set_f1(reference: str, prediction: str) -> float:
  """F measure of comma-separated lists as sets; case does not count."""
  return _f1(Counter(listed(reference)), Counter(listed(prediction)))


def listed(text: str) -> frozenset[str]:
  """Items of a comma-separated list."""
  return frozenset(" ".join(item.casefold().split()) for item in text.split(",")) - {""}


def inboxbart_em(reference: str, prediction: str) -> float:
  """1 when the prediction equals any one item of the reference's list: the scorer that In-BoXBART released.

  Parmar et al. 2022 (arXiv 2204.07600), scripts/evaluation.py: a reference is split at ", " and the best of its pieces
  counts, so that one entity of a list is right and all of them are not. For their numbers alone: `set_f1` is what a
  list deserves. (There a prediction's own line ends shift all that follow; here they are white space.)
  """
  return max(float(_english_words(piece) == _english_words(prediction)) for piece in reference.split(", "))


def inboxbart_f1(reference: str, prediction: str) -> float:
  """As `inboxbart_em`, the F measure of words; without a common word 0, though both be empty."""
  given = Counter(_english_words(prediction))
  bags = [Counter(_english_words(piece)) for piece in reference.split(", ")]
  return max(_f1(gold, given) if gold & given else 0.0 for gold in bags)


def inboxbart_rouge_l(reference: str, prediction: str) -> float:
  """As `inboxbart_em`, ROUGE-L."""
  return max(rouge_l(piece, prediction) for piece in reference.split(", "))


def math_match(reference: str, prediction: str) -> float:
  """1 when the prediction's answer equals the reference, by `math_verify`: 1/2 is 0.5, 2/4 and \\frac{1}{2}.

  The reference is a formula in LaTeX, with or without dollars, or a number. Of a prediction counts what it marks as its
  answer (a box, "the answer is"), else its last formula, else its last number. Equal texts are always equal.
  In a thread that is not the main one nothing stops a formula that takes forever.
  """
  if exact(reference, prediction):
    return 1.0
  _, verify = _math_verify()
  gold = _formulas(reference, bare=True)
  given = _formulas(prediction, bare=_BARE.fullmatch(prediction) is not None)
  return float(bool(gold) and bool(given) and verify(gold, given, timeout_seconds=_patience()))


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


def _english_words(text: str) -> list[str]:
  """SQuAD's normalisation, where punctuation is ASCII's."""
  return re.sub(r"\b(a|an|the)\b", " ", normalized(text)).split()


def _formulas(text: str, bare: bool) -> list[Any]:
  """What `math_verify` finds in a text; `bare`: all of it is a formula, though nothing marks it as one."""
  parse, _ = _math_verify()
  found = parse(f"${text}$", parsing_timeout=_patience()) if bare and not _MARKED.search(text) else []
  return found or parse(text, parsing_timeout=_patience())


_MARKED = re.compile(r"\$|\\boxed|\\\(|\\\[|\\begin")
# One piece with a sign, digit or command in it: words alone would be read as products of their letters.
_BARE = re.compile(r"\s*(?=\S*[-+*/^=(\d\\])\S+\s*")


def _patience() -> int | None:
  """Seconds for one formula: `math_verify` stops by a signal, which only the main thread gets."""
  return 5 if threading.current_thread() is threading.main_thread() else None


def _f1(gold: Counter, given: Counter) -> float:
  """Harmonic mean of precision and recall of two bags; two empty ones are equal."""
  total = gold.total() + given.total()
  return 2 * (gold & given).total() / total if total else 1.0


def last_number(text: str) -> Decimal | None:
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


@functools.cache
def _math_verify():
  from math_verify import parse, verify  # brings sympy

  return parse, verify


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
  "inboxbart_compat": inboxbart_em,
  "inboxbart_compat_f1": inboxbart_f1,
  "inboxbart_compat_rouge_l": inboxbart_rouge_l,
  "math_match": math_match,
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
