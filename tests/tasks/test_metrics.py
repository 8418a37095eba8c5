import math
import subprocess
import sys

import pytest

from mtx.errors import UserError
from mtx.tasks.answers import Answers
from mtx.tasks.metrics import METRICS, evaluate, mean_score, scores, seqio_metric
from mtx.tasks.similarities import DISTANCES, normalized

REFERENCES = [["The cat sat.", "A cat was sitting"], ["yes"], ["42"], [" Paris "]]
PREDICTIONS = ["the  CAT sat", "no", "42", "Paris"]


def test_exact_match_is_strict_but_for_the_ends():
  assert scores("exact_match", REFERENCES, PREDICTIONS) == [0.0, 0.0, 100.0, 100.0]


def test_normalized_exact_match_ignores_case_punctuation_and_spacing():
  assert scores("exact_match_normalized", REFERENCES, PREDICTIONS) == [100.0, 0.0, 100.0, 100.0]
  assert normalized("  (The) CAT's\tend!! ") == "the cats end"


def test_rouge_l_is_the_best_over_references():
  """LCS of `cat sat down` with `the cat sat down today` is 3 of 3 and 3 of 5 words: F = 0.75."""
  found = scores(
    "rouge_l", [["nothing alike", "The cat sat down today"], ["running"], ["x"]], ["cat sat down", "runs", ""]
  )
  assert found == pytest.approx([75.0, 100.0, 0.0])  # `running` and `runs` have one stem


@pytest.mark.parametrize(
  ("reference", "prediction", "em", "f1"),
  [
    ("The Eiffel Tower", "eiffel tower!", 100, 100),
    ("a cat and the dog", "cat dog dog", 0, 200 / 3),  # 2 words of 3 and of 3
    ("308", "不是 308。", 0, 50),  # two characters and a number against a number
    ("北京市", "北京", 0, 80),
    ("“Don’t”", "dont", 100, 100),
    ("1960–1970", "1970", 0, 0),
    ("the", "", 100, 100),
    ("Rome", "", 0, 0),
  ],
)
def test_squad_scores(reference, prediction, em, f1):
  assert scores("squad_em", [[reference]], [prediction]) == [em]
  assert scores("squad_f1", [[reference]], [prediction]) == pytest.approx([f1])
  assert scores("squad_f1", [["nothing", reference]], [prediction]) == pytest.approx([f1])


@pytest.mark.parametrize(
  ("reference", "prediction", "equal"),
  [
    ("1,080", "5 and 3 make $1080.00.", True),
    ("#### 72", "48 + 24 = 72", True),
    ("72", "72 of 100", False),
    ("114200", "1,14,200 টাকা", True),
    ("18", "১৮", True),
    ("3", "lists: 1,2,3", True),
    ("3", "5-3", True),
    ("-3", "x = -3", True),
    ("-3", "x = −3", True),
    ("3", "x = -3", False),
    (".5", "$0.50", True),
    ("0.5", "$.50", True),
    ("5", "none", False),
    ("None", "none.", True),
    ("none", "5", False),
  ],
)
def test_the_last_numbers_are_compared(reference, prediction, equal):
  assert scores("number_match", [[reference]], [prediction]) == [100.0 * equal]


@pytest.mark.parametrize(
  ("reference", "prediction", "equal"),
  [
    ("(B)", "It is red. So the answer is (B).", True),
    ("(B)", "The answer is (A). No: the correct answer is: B\n\nQ: and now? (A)", True),
    ("So the answer is yes.", "yes", True),
    ("Yes", "Yes and no", False),
    ("barn damp it&t", "the answer is barn  damp it&t.", True),
    ("] ]", "the answer is ] ].", True),
    ("] ]", "the answer is ] }.", False),
    ("3.5", "the answer is 35.", False),
    ("-3", "the answer is 3", False),
    ("(A)", "", False),
  ],
)
def test_answers_are_what_follows_answer_is(reference, prediction, equal):
  assert scores("answer_match", [[reference]], [prediction]) == [100.0 * equal]


def test_lists_are_compared_as_sets():
  """2 of 3 items are right and 2 of 4 found: F = 4 / 7."""
  found = scores(
    "set_f1",
    [["x", "Red, green,  light blue"], ["a"], ["a,b"], [""]],
    ["green, light  Blue, pink, green,, black", "", "b, a", " "],
  )
  assert found == pytest.approx([400 / 7, 0, 100, 100])


def test_translations_are_scored_by_sacrebleu():
  references, predictions = [["the cat sat on the mat"], ["ab"], ["x"]], ["the cat sat on a mat", "ac", ""]
  # 5, 3, 2 and 1 n-grams of 6, 5, 4 and 3.
  bleu = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
  assert scores("bleu", references[:1], predictions[:1]) == pytest.approx([bleu])
  # One character of two, no pair of one: precision and recall are 1/2 and 0 on average 1/4, and so is F.
  assert scores("chrf", references, predictions)[1:] == pytest.approx([25.0, 0.0])
  assert scores("chrf", [["ab", "ac"]], ["ac"]) == [100.0]


NUMBERS = [["12"], ["3.5", "7"], ["100"], ["-8"]]


ITEMS = [name for name, metric in METRICS.items() if metric.items is not None and not metric.chooses]


@pytest.mark.parametrize("name", ITEMS)
def test_a_metric_is_the_mean_of_its_items(name):
  """Right answers get the best score: 100, or a distance of 0."""
  references = NUMBERS if name.startswith("digit_match") or name in DISTANCES else REFERENCES
  items = scores(name, references, PREDICTIONS)
  assert len(items) == 4 and all(0 <= item <= 100 for item in items)
  assert mean_score(name, references, PREDICTIONS) == pytest.approx(sum(items) / 4)
  best = 0.0 if name in DISTANCES else 100.0
  assert mean_score(name, references, [each[0] for each in references]) == pytest.approx(best) == METRICS[name].best
  (nothing,) = scores(name, [[]], ["anything"])
  assert math.isnan(nothing) if name in DISTANCES else nothing == 0.0


def test_seqio_takes_the_same_metric():
  metric = seqio_metric("exact_match")
  assert metric(REFERENCES, PREDICTIONS) == {"exact_match": 50.0}
  assert metric.__name__ == "exact_match"


@pytest.mark.parametrize("name", METRICS)
def test_no_examples_score_nothing(name):
  assert evaluate(name, Answers([], [])).value == 0.0


def test_what_does_not_fit_is_named():
  with pytest.raises(UserError, match="metric 'rougel' is not known\n  did you mean `rouge_l`"):
    scores("rougel", [], [])
  with pytest.raises(UserError, match="metric 'macro_f1' scores all items together"):
    scores("macro_f1", REFERENCES, PREDICTIONS)
  with pytest.raises(UserError, match="metric 'spearman' can not score example 1: its reference 'yes' has no number"):
    mean_score("spearman", [["1"], ["yes"]], ["1", "2"])
  with pytest.raises(UserError, match="metric 'corpus_bleu' can not score example 0: it has no reference"):
    mean_score("corpus_bleu", [[]], ["1"])
  with pytest.raises(ValueError, match="shorter"):
    scores("exact_match", REFERENCES, PREDICTIONS[:2])


def test_scoring_imports_neither_tensorflow_nor_seqio():
  program = (
    "import sys; from mtx.tasks.metrics import METRICS, Answers, evaluate\n"
    "heavy = lambda: [m for m in sys.argv[1:] if m in sys.modules]\n"
    "print(heavy())\n"
    "answers = Answers([['1'], ['2']], ['1.0', '$2$'], [['1', '2']] * 2, [[2, 1], [1, 2]])\n"
    "[evaluate(name, answers) for name in METRICS]; print(heavy())"
  )
  heavy = ["tensorflow", "seqio", "sklearn", "math_verify", "sympy", "sacrebleu", "rouge_score", "scipy"]
  done = subprocess.run([sys.executable, "-c", program, *heavy], capture_output=True, text=True, timeout=60, check=True)
  before, after = done.stdout.splitlines()
  assert (before, after) == ("[]", str(heavy[2:]))


def test_distances_are_not_shares():
  """The nearest reference counts, in digits; 0 is best."""
  assert scores("length_difference", [["123", "12345"], ["7"]], ["1234567", "7"]) == [2.0, 0.0]
  assert mean_score("length_difference", [["123"], ["7"]], ["12", "7"]) == 0.5
  assert scores("digit_match", [["123"]], ["923"]) == [pytest.approx(200 / 3)]
