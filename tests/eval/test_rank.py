"""Ranking options is scoring every (prompt, option) pair whole, sharing what the pairs share."""

from types import SimpleNamespace

import gin
import jax
import numpy as np
import pytest

from mtx.data.convert import ARCHITECTURES, padded
from mtx.errors import UserError
from mtx.eval.likelihood import Likelihood
from mtx.eval.rank import Ranked, Ranker, accuracy, correct

INPUTS, TASKS = 32, 2
PROMPTS = ("is it so?", "one of many, and longer", "x", "again: is it so?")
OPTIONS = (["yes", "no"], ["a", "ab", "abc", "häßlich", "b"], ["only"], ["yes", "yes, it is", "no"])
TASK_IDS = (0, 1, 1, 1)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request, tiny, routed, weights, vocabulary, mesh1):
  config = tiny(request.param, tied_head=False, vocab_size=vocabulary.size)
  model = routed(config, tasks=TASKS)
  params = weights(model)
  whole = jax.jit(lambda p, b: jax.nn.log_softmax(model.merge(p)(b).logits))

  def pair(inputs, option: str, task: int, close: bool = True) -> float:
    """Log-likelihood of an option, teacher-forced in a row of its own."""
    tokens = [*vocabulary.encode(option), *([1] if close else [])]
    example = [{"inputs": inputs, "targets": np.array(tokens, np.int32)}]
    batch = padded(example, request.param, INPUTS, 12, [task], rows=1)
    log_p = np.asarray(whole(params, batch))[0]
    at = batch["decoder_loss_weights"][0] > 0
    return float(log_p[at, batch["decoder_target_tokens"][0, at]].sum(dtype=np.float64))

  likelihood = Likelihood(model, config, mesh1, vocabulary, inputs_length=INPUTS)
  inputs = [np.array([*vocabulary.encode(text), 1], np.int32) for text in PROMPTS]
  rank = lambda **given: Ranker(likelihood, **given)(params, inputs, OPTIONS, TASK_IDS)
  return SimpleNamespace(params=params, pair=pair, likelihood=likelihood, inputs=inputs, rank=rank)


def expected(case, score: str, **given) -> list[list[float]]:
  found = []
  for inputs, options, task in zip(case.inputs, OPTIONS, TASK_IDS, strict=True):
    sums = [case.pair(inputs, option, task, **given) for option in options]
    lengths = [len(option.encode()) for option in options]
    if score == "mean":
      sums = [s / (n + given.get("close", True)) for s, n in zip(sums, lengths, strict=True)]
    elif score == "byte":
      sums = [s / n for s, n in zip(sums, lengths, strict=True)]
    elif score == "pmi":
      neutral = np.array([*b"Answer:", 1], np.int32)
      neutral[:-1] += 3
      sums = [s - case.pair(neutral, option, task, **given) for s, option in zip(sums, options, strict=True)]
    found.append(sums)
  return found


@pytest.mark.parametrize("score", ["sum", "mean", "byte", "pmi"])
def test_equals_whole_pairs(case, score):
  """Ragged options, of one and of several tokens, one alone, one that begins another: each to 1e-4, and the best."""
  found = case.rank(score=score, neutral="Answer:")
  for each, scores in zip(found, expected(case, score), strict=True):
    np.testing.assert_allclose(each.scores, scores, atol=1e-4 * (12 if score in ("sum", "pmi") else 1))
    assert each.index == int(np.argmax(scores))
  assert len({each.index for each in found}) > 1


def test_without_end(case):
  """The option's own tokens alone: one-token options need no second pass, and a prefix always beats what it begins."""
  found = case.rank(score="sum", close=False)
  for each, scores in zip(found, expected(case, "sum", close=False), strict=True):
    np.testing.assert_allclose(each.scores, scores, atol=1e-3)
  a, ab, abc, *_ = found[1].scores
  assert a > ab > abc
  letters = Ranker(case.likelihood, score="sum", close=False)(case.params, case.inputs[:1], [["A", "B", "C"]], [0])[0]
  np.testing.assert_allclose(letters.scores, [case.pair(case.inputs[0], c, 0, False) for c in "ABC"], atol=1e-4)


def test_calibration_is_by_task_and_option(case):
  """The same option after the same neutral prompt has another prior under another router row."""
  options = [["yes", "no"]] * 2
  inputs = [case.inputs[0]] * 2
  plain, pmi = (
    Ranker(case.likelihood, score=s, neutral="Answer:")(case.params, inputs, options, [0, 1]) for s in ("sum", "pmi")
  )
  priors = [p.scores - c.scores for p, c in zip(plain, pmi, strict=True)]
  assert np.abs(priors[0] - priors[1]).min() > 1e-3


def test_cached_examples(case, vocabulary):
  """Options come from the examples; accuracy counts options that are references."""
  examples = [
    {"id": f"e{i}", "inputs": inputs, "options": options, "references": [options[0]]}
    for i, (inputs, options) in enumerate(zip(case.inputs, OPTIONS, strict=True))
  ]
  ranked = Ranker(case.likelihood).examples(case.params, examples, TASK_IDS)
  assert [r.index for r in ranked] == [r.index for r in case.rank()]
  assert accuracy(examples, ranked) == np.mean([r.index == 0 for r in ranked])
  del examples[2]["options"]
  with pytest.raises(UserError, match="'e2' has no options"):
    Ranker(case.likelihood).examples(case.params, examples, TASK_IDS)
  with pytest.raises(UserError, match="prompt 1 has no options"):
    Ranker(case.likelihood)(case.params, case.inputs[:2], [["a"], []], [0, 0])
  with pytest.raises(UserError, match="prompt 0 has an empty option"):
    Ranker(case.likelihood, close=False)(case.params, case.inputs[:1], [["a", ""]], [0])


def test_correct_needs_a_reference_among_the_options():
  examples = [{"id": i, "options": ["a", "b"], "references": r} for i, r in enumerate((["b"], ["b", "a"], ["a"]))]
  ranked = [Ranked(1, np.array([0.0, 1.0]))] * 3
  assert correct(examples, ranked) == [True, True, False]
  assert accuracy(examples, ranked) == 2 / 3
  with pytest.raises(UserError, match=r"example 'z': no option is a reference"):
    correct([{"id": "z", "options": ["a", "b"], "references": ["B"]}], ranked[:1])


def test_chosen_in_gin(case):
  gin.parse_config('rank.score = "byte"')
  for one, other in zip(case.rank(), case.rank(score="byte"), strict=True):
    np.testing.assert_array_equal(one.scores, other.scores)
  with pytest.raises(UserError, match=r"rank.score`: no score 'sun'") as error:
    Ranker(case.likelihood, score="sun")
  assert "sum" in error.value.hint
