"""Predictions come back in the examples' order, whatever they were batched with."""

import numpy as np


def test_order_across_lengths(generator, carried, task_of, predict):
  """Examples of two length buckets, interleaved, each of its own task: as one at a time; in reverse, reversed."""
  task = task_of("sort")
  examples = [task.splits["test"][i] for i in range(len(task.splits["test"]))]
  lengths = [len(e["inputs"]) > 16 for e in examples]
  assert np.diff(lengths).any() and lengths[0] != lengths[2] != lengths[3]
  rows = [i % 3 for i in range(len(examples))]
  texts = generator(carried.params, examples, rows)
  assert len(set(texts)) > len(texts) // 2
  assert texts == [predict(task, row)[i] for i, row in enumerate(rows)]
  assert generator(carried.params, examples[::-1], rows[::-1]) == texts[::-1]


def test_router_row_decides(task_of, predict):
  """The same prompt under two router rows is predicted in two ways."""
  task = task_of("sort")
  assert predict(task, 0) != predict(task, 1)


def test_overlong_inputs_are_cut(generator, carried, vocabulary):
  """Inputs over the length predict as their first part with EOS."""
  text = "x" * 40
  cut = [*vocabulary.encode(text[:31]), vocabulary.eos_id]
  make = lambda tokens: {"inputs": np.array(tokens, np.int32)}
  whole, part = generator(carried.params, [make([*vocabulary.encode(text), 1]), make(cut)], [0, 0])
  assert whole == part
