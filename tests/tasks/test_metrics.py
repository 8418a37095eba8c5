import subprocess
import sys

import pytest

from mtx.errors import UserError
from mtx.tasks.metrics import METRICS, normalized, scores, seqio_metric

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


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_the_mean_of_its_items(name):
  items = scores(name, REFERENCES, PREDICTIONS)
  assert len(items) == 4 and all(0 <= item <= 100 for item in items)
  assert METRICS[name](REFERENCES, PREDICTIONS) == pytest.approx(sum(items) / 4)
  assert METRICS[name](REFERENCES, [references[0] for references in REFERENCES]) == pytest.approx(100.0)
  assert METRICS[name]([], []) == 0.0
  assert scores(name, [[]], ["anything"]) == [0.0]


def test_seqio_takes_the_same_metric():
  metric = seqio_metric("exact_match")
  assert metric(REFERENCES, PREDICTIONS) == {"exact_match": 50.0}
  assert metric.__name__ == "exact_match"


def test_what_does_not_fit_is_named():
  with pytest.raises(UserError, match="metric 'rougel' is not known\n  did you mean `rouge_l`"):
    scores("rougel", [], [])
  with pytest.raises(ValueError, match="shorter"):
    scores("exact_match", REFERENCES, PREDICTIONS[:2])


def test_scoring_imports_neither_tensorflow_nor_seqio():
  program = (
    "import sys; from mtx.tasks.metrics import METRICS; METRICS['rouge_l']([['a']], ['a']);"
    "print([m for m in ('tensorflow', 'seqio') if m in sys.modules])"
  )
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
  assert done.stdout.strip() == "[]"
