"""A selection of a source's tasks keeps their order, their vocabulary and their rows."""

import pytest

from mtx.errors import UserError
from mtx.tasks.chosen import chosen
from mtx.tasks.procedural import procedural


def names(tasks):
  return [task.name for task in tasks]


def test_some_tasks_of_a_source():
  whole = procedural(examples=4)
  some = chosen(procedural, train=["word_swap", "list_r*"], heldout=["table_*"], without=["list_rest*"], name="few")
  assert names(some.train) == ["list_reverse", "list_rotate", "list_reverse_successor", "word_swap"]
  assert names(some.heldout) == ["table_values_reverse", "table_values_smallest"]
  assert some.name == "few" and some.vocabulary is not None
  scored = chosen(procedural, train=["word_*"], metrics=["rouge_l", "exact_match"])
  assert {task.metrics for task in (*scored.train, *scored.heldout)} == {("rouge_l", "exact_match")}
  rest = chosen(lambda: whole, without=["list_*"])
  assert names(rest.train) == [n for n in names(whole.train) if not n.startswith("list_")]
  assert all(task in whole.train for task in rest.train) and len(rest.heldout) == 7


@pytest.mark.parametrize(
  ("settings", "says"),
  [
    ({"train": ["list_revers"]}, "`chosen.train`: 'list_revers' matches no task.\n.*`list_reverse`"),
    ({"heldout": ["list_reverse"]}, "`chosen.heldout`: 'list_reverse' matches no task"),
    ({"without": ["*"]}, "no training task of procedural is left"),
  ],
)
def test_what_selects_nothing_is_refused(settings, says):
  with pytest.raises(UserError, match=says):
    chosen(procedural, **settings)
