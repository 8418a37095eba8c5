"""Which of an example's options a model finds likeliest: rank classification (Sanh et al. 2022, arXiv 2110.08207)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import gin
import numpy as np
from jaxtyping import Float64

from mtx.data.cache import Example
from mtx.errors import UserError, did_you_mean
from mtx.eval.likelihood import Likelihood
from mtx.training.parameters import Params

SCORES = ("sum", "mean", "byte", "pmi")


@dataclass(frozen=True)
class Ranked:
  """Attributes:
  index: of the option with the highest score; of equal ones, the first.
  scores: of every option.
  """

  index: int
  scores: Float64[np.ndarray, " options"]


@gin.configurable("rank", allowlist=["score", "neutral", "close"])
class Ranker:
  """Ranks options by their log-likelihood after a prompt.

  Args:
    likelihood: of the model.
    score: "sum", the log-likelihood; "mean", a token of it (Brown et al. 2020, arXiv 2005.14165, section 2.4); "byte",
      a byte of the option in UTF-8, which does not depend on the vocabulary; "pmi", minus the option's log-likelihood
      after the neutral prompt (domain-conditional PMI: Holtzman et al. 2021, arXiv 2104.08315, equation 2). Contextual
      calibration (Zhao et al. 2021, arXiv 2102.09690) divides by the same probability and ranks as "pmi" does.
    neutral: the prompt of "pmi", for example "Answer:"; "" is no text, only what begins and ends every prompt.
    close: whether EOS is part of an option, as it is of targets. Without it, an option can not beat its own prefix by
      "sum".
  """

  def __init__(self, likelihood: Likelihood, *, score: str = "mean", neutral: str = "", close: bool = True):
    if score not in SCORES:
      raise UserError(f"binding `rank.score`: no score {score!r}.", hint=did_you_mean(score, SCORES))
    self.likelihood, self._score, self._close = likelihood, score, close
    self._neutral = self._prompt(neutral) if score == "pmi" else None

  def __call__(
    self,
    params: Params,
    inputs: Sequence[np.ndarray],
    options: Sequence[Sequence[str]],
    task_ids: Sequence[int],
  ) -> list[Ranked]:
    """One result a prompt.

    Args:
      params: every parameter of the model.
      inputs: tokens of each prompt.
      options: of each prompt, at least one; as many as it has.
      task_ids: router row of each prompt.

    Raises:
      UserError: a prompt without options, or an option without tokens.
    """
    tokens = [[self._option(text) for text in each] for each in options]
    for i, each in enumerate(tokens):
      if not each or not all(map(len, each)):
        raise UserError(f"prompt {i} has {'an empty option' if each else 'no options'}: {list(options[i])}.")
    found = self.likelihood(params, inputs, tokens, task_ids)
    sums = [np.array([log_p.sum(dtype=np.float64) for log_p in each]) for each in found]
    if self._score == "mean":
      sums = [s / [len(t) for t in each] for s, each in zip(sums, tokens, strict=True)]
    elif self._score == "byte":
      sums = [s / [max(1, len(t.encode())) for t in each] for s, each in zip(sums, options, strict=True)]
    elif self._score == "pmi":
      prior = self._prior(params, tokens, task_ids)
      keys = [[(int(task), t.tobytes()) for t in each] for task, each in zip(task_ids, tokens, strict=True)]
      sums = [s - [prior[key] for key in each] for s, each in zip(sums, keys, strict=True)]
    return [Ranked(int(each.argmax()), each) for each in sums]

  def examples(self, params: Params, examples: Sequence[Example], task_ids: Sequence[int]) -> list[Ranked]:
    """Ranks the `options` of cached examples.

    Raises:
      UserError: an example without options; its id is named.
    """
    for example in examples:
      if not example.get("options"):
        raise UserError(
          f"example {example.get('id')!r} has no options to rank.",
          hint="rank tasks whose rows have `options`; score others by what the model generates.",
        )
    return self(params, [e["inputs"] for e in examples], [e["options"] for e in examples], task_ids)

  def _prior(self, params: Params, tokens, task_ids) -> Mapping[tuple[int, bytes], float]:
    """Log-likelihood after the neutral prompt of every distinct option of every task."""
    distinct: dict[int, dict[bytes, np.ndarray]] = {}
    for task, each in zip(task_ids, tokens, strict=True):
      distinct.setdefault(int(task), {}).update({t.tobytes(): t for t in each})
    asked = [list(each.values()) for each in distinct.values()]
    assert self._neutral is not None
    scored = self.likelihood(params, [self._neutral] * len(asked), asked, list(distinct))
    return {
      (task, key): float(log_p.sum(dtype=np.float64))
      for (task, each), found in zip(distinct.items(), scored, strict=True)
      for key, log_p in zip(each, found, strict=True)
    }

  def _option(self, text: str) -> np.ndarray:
    return self._framed(text, self._close)

  def _prompt(self, text: str) -> np.ndarray:
    vocabulary = self.likelihood.vocabulary
    tokens = self._framed(text, vocabulary.closes_inputs)
    if not len(tokens) and (self.likelihood.architecture == "encdec" or vocabulary.start_id is None):
      raise UserError(
        f"binding `rank.neutral` is {text!r}, and no token begins or ends a prompt of this vocabulary.",
        hint='give a text that says nothing, for example "Answer:".',
      )
    return tokens

  def _framed(self, text: str, close: bool) -> np.ndarray:
    vocabulary = self.likelihood.vocabulary
    opens = [] if vocabulary.opens_id is None else [vocabulary.opens_id]
    return np.array([*opens, *vocabulary.encode(text), *([vocabulary.eos_id] if close else [])], np.int32)


def correct(examples: Sequence[Example], ranked: Sequence[Ranked]) -> list[bool]:
  """Of every example, whether the option that was ranked first is one of its references.

  Raises:
    UserError: none of an example's options is a reference, so that no ranking could be right; its id is named.
  """
  right = []
  for example, each in zip(examples, ranked, strict=True):
    options, references = example["options"], set(example["references"])
    if references.isdisjoint(options):
      raise UserError(
        f"example {example.get('id')!r}: no option is a reference (options {options}, references {sorted(references)})."
      )
    right.append(options[each.index] in references)
  return right


def accuracy(examples: Sequence[Example], ranked: Sequence[Ranked]) -> float:
  """Share of `correct` examples."""
  right = correct(examples, ranked)
  return sum(right) / max(len(right), 1)
