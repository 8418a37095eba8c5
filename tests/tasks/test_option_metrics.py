"""Scores by the probabilities of options equal the libraries', and do not change with what should not matter."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from mtx.errors import UserError
from mtx.tasks.answers import Answers
from mtx.tasks.metrics import METRICS, evaluate
from mtx.tasks.option_metrics import BINS

NAMES = [name for name, metric in METRICS.items() if metric.chooses]
LAW = settings(max_examples=40, deadline=None)  # the first example pays for imports
LABELS = ["bad", "fair", "good"]


def made(labels, scores, gold, said=None):
  """Answers of examples that all have the same options."""
  return Answers([[g] for g in gold], said or ["?"] * len(gold), [labels] * len(gold), np.asarray(scores).tolist())


def world(count=200, labels=LABELS, seed=0, skill=1.0):
  rng = np.random.default_rng(seed)
  gold = rng.integers(len(labels), size=count)
  scores = rng.normal(size=(count, len(labels))) + skill * np.eye(len(labels))[gold]
  return made(labels, scores, [labels[g] for g in gold]), scores, gold


@st.composite
def answered(draw, labels=LABELS):
  count = draw(st.integers(2, 12))
  gold = [draw(st.sampled_from(labels)) for _ in range(count)]
  score = st.floats(-20, 0).map(lambda x: round(x, 3))
  scores = [draw(st.lists(score, min_size=len(labels), max_size=len(labels), unique=True)) for _ in range(count)]
  said = [draw(st.sampled_from([*labels, "?"])) for _ in range(count)]
  return made(labels, scores, gold, said)


def taken(answers, order):
  columns = (answers.references, answers.predictions, answers.options, answers.option_scores)
  return Answers(*([column[i] for i in order] for column in columns))


def test_accuracy_and_f1_are_scikit_learns():
  answers, scores, gold = world()
  said = scores.argmax(1)
  assert evaluate("accuracy", answers).value == pytest.approx(100 * accuracy_score(gold, said))
  assert evaluate("ranked_macro_f1", answers).value == pytest.approx(100 * f1_score(gold, said, average="macro"))


def test_auroc_is_scikit_learns():
  """Of three options the mean of one against the rest; of two, that of either."""
  answers, scores, gold = world()
  expected = roc_auc_score(gold, softmax(scores, axis=1), multi_class="ovr", average="macro")
  assert evaluate("auroc", answers).value == pytest.approx(100 * expected)
  answers, scores, gold = world(labels=["no", "yes"])
  assert evaluate("auroc", answers).value == pytest.approx(100 * roc_auc_score(gold, softmax(scores, axis=1)[:, 1]))
  # Chance is 50, and one class alone has no area.
  assert evaluate("auroc", made(["no", "yes"], [[0, 0]] * 4, ["no", "yes"] * 2)).value == 50
  assert math.isnan(evaluate("auroc", made(["no", "yes"], [[0, 1], [1, 0]], ["no", "no"])).value)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("skill", [0.0, 3.0])
def test_calibration_error_is_that_of_scikit_learns_curve(seed, skill):
  answers, scores, gold = world(seed=seed, skill=skill)
  confidence = softmax(scores, axis=1).max(1)
  right = scores.argmax(1) == gold
  shares, means = calibration_curve(right, confidence, n_bins=BINS, strategy="uniform")
  counts = np.histogram(confidence, bins=np.linspace(0, 1, BINS + 1))[0]
  expected = float((counts[counts > 0] * np.abs(shares - means)).sum() / len(gold))
  assert evaluate("ece", answers).value == pytest.approx(100 * expected)


def test_who_says_how_sure_it_is_has_no_calibration_error():
  """4 of 5 right at a confidence of 80 %: 0. At one of 90 %: 10. Sure of all and never right: 100."""
  labels, gold = ["no", "yes"], ["yes"] * 4 + ["no"]
  at = lambda p: made(labels, [[math.log(1 - p), math.log(p)]] * 5, gold)
  assert evaluate("ece", at(0.8)).value == pytest.approx(0, abs=1e-9)
  assert evaluate("ece", at(0.9)).value == pytest.approx(10)
  assert evaluate("ece", made(labels, [[0, 1000]] * 3, ["no"] * 3)).value == pytest.approx(100)


@LAW
@given(st.integers(2, 6), st.integers(0, 60), st.integers(1, 60))
def test_normalised_scores_are_what_is_over_chance(options, right, count):
  """(score - chance) / (max - chance): 0 at the rate of guessing, 100 at the best."""
  right = min(right, count)
  labels = [f"option {i}" for i in range(options)]
  gold = labels[:1] * right + labels[1:2] * (count - right)
  scores = [[0.0] + [-1.0] * (options - 1)] * count
  answers = made(labels, scores, gold, labels[:1] * count)
  expected = 100 * (right / count - 1 / options) / (1 - 1 / options)
  for name in ("normalized_accuracy", "normalized_exact_match"):
    found = evaluate(name, answers)
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert np.mean(found.items) == pytest.approx(expected, abs=1e-9)


def test_chance_counts_every_option_that_is_right():
  answers = Answers([["a", "b"], ["a"]], ["", ""], [["a", "b", "c", "d"], ["a", "b"]], [[0, 1, 0, 0], [0, 1]])
  assert evaluate("accuracy", answers).items == [100, 0]
  assert evaluate("normalized_accuracy", answers).value == pytest.approx(0)
  everything = Answers([["a", "b"]], ["a"], [["a", "b"]], [[0, 1]])
  assert math.isnan(evaluate("normalized_accuracy", everything).value)


@pytest.mark.parametrize("name", NAMES)
def test_what_should_not_matter_does_not(name):
  """The order of examples, the order of options, and a constant added to all scores of an example."""

  @LAW
  @given(answered(), st.randoms(use_true_random=False), st.floats(-5, 5))
  def law(answers, random, constant):
    expected = pytest.approx(evaluate(name, answers).value, abs=1e-6, nan_ok=True)
    order = list(range(len(answers)))
    random.shuffle(order)
    assert evaluate(name, taken(answers, order)).value == expected
    turned = [list(o)[::-1] for o in answers.options], [list(s)[::-1] for s in answers.option_scores]
    assert evaluate(name, Answers(answers.references, answers.predictions, *turned)).value == expected
    if name != "auroc":  # which compares examples: what rounds to another probability may change places
      moved = [[s + constant for s in scores] for scores in answers.option_scores]
      assert evaluate(name, Answers(answers.references, answers.predictions, answers.options, moved)).value == expected

  law()


@pytest.mark.parametrize("name", NAMES)
def test_right_answers_are_best_and_nothing_is_better(name):
  @LAW
  @given(answered())
  def law(answers):
    gold = [references[0] for references in answers.references]
    scores = [[0.0 if label == g else -800.0 for label in LABELS] for g in gold]
    right = evaluate(name, made(LABELS, scores, gold, gold)).value
    found = evaluate(name, answers).value
    if name == "auroc" and len(set(gold)) == 1:
      assert math.isnan(right) and math.isnan(found)
    elif METRICS[name].best == 0:
      assert right == pytest.approx(0, abs=1e-9) and -1e-9 <= found <= 100
    else:
      assert right == pytest.approx(100) and -100 <= found <= 100 + 1e-9

  law()


@pytest.mark.parametrize(
  ("name", "options", "scores", "said"),
  [
    ("accuracy", [["a", "b"], []], [[0, 1], []], "example 1: it has no options"),
    ("normalized_exact_match", [[], []], [[], []], "example 0: it has no options"),
    ("ece", [["a", "b"]] * 2, [[0, 1], []], "example 1: its options were not ranked"),
    ("ece", [["a", "b"]] * 2, [[0, 1], [0]], "example 1: 1 scores of 2 options"),
    ("accuracy", [["a", "b"], ["c"]], [[0, 1], [1]], r"example 1: none of its options is a reference"),
    ("auroc", [["a", "b"], ["a", "c"]], [[0, 1]] * 2, r"example 1: its options \['a', 'c'\] are not those"),
  ],
)
def test_what_is_lacking_is_said(name, options, scores, said):
  with pytest.raises(UserError, match=f"metric '{name}' can not score {said}"):
    evaluate(name, Answers([["a"], ["a"]], ["", ""], options, scores))
