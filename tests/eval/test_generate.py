"""Predictions come back in the examples' order, whatever they were batched with."""

from functools import partial

import jax
import numpy as np

from mtx.decode.loop import make_decode
from mtx.decode.settings import Settings
from mtx.eval import generate


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


def test_each_bucket_of_lengths_compiles_once(monkeypatch, carried, session_of, vocabulary, mesh1):
  """Prompts of 1 to 16 tokens are one program and those of 17 to 32 another, however many there are of them."""
  traced = []

  def combine(logits, state):
    traced.append(logits[0].shape)
    return logits[0], state

  monkeypatch.setattr(generate, "make_decode", partial(make_decode, combine=combine))
  config = session_of(None).config
  one = generate.Generator(carried.model, config, mesh1, vocabulary, inputs_length=32, targets_length=6, rows=4)
  examples = lambda *lengths: [{"inputs": np.full(n, 50, np.int32)} for n in lengths]
  one(carried.params, examples(3), [0])
  once = len(traced)
  one(carried.params, examples(16, 1, 7, 7, 9, 2), [0] * 6)
  assert len(traced) == once
  one(carried.params, examples(17, 4, 40), [0] * 3)
  assert len(traced) == 2 * once
  one(carried.params, examples(20, 30, 31, 5, 29, 28), [0] * 6)
  assert len(traced) == 2 * once


def test_samples_of_examples_and_limits(carried, session_of, vocabulary, mesh1):
  """Three samples an example, the same in another order; an example has at most its own limit of tokens."""
  config, settings = session_of(None).config, Settings(temperature=1.0, samples=3)
  many = generate.Generator(
    carried.model, config, mesh1, vocabulary, inputs_length=32, targets_length=6, settings=settings, rows=4
  )
  examples = [
    {"inputs": np.array([*vocabulary.encode(text), 1], np.int32)} for text in ("ab", "c" * 20, "d", "ef", "g")
  ]
  limits = [6, 2, 1, 6, 4]

  def run(order):
    found = many.stream(
      carried.params,
      [examples[i] for i in order],
      [0] * len(order),
      key=jax.random.key(1),
      rows=order,
      limits=[limits[i] for i in order],
    )
    return {order[place]: prediction for place, prediction in found}

  found = run([0, 1, 2, 3, 4])
  assert {i: p.texts for i, p in found.items()} == {i: p.texts for i, p in run([3, 1, 4, 0, 2]).items()}
  assert all(max(found[i].lengths) <= limit for i, limit in enumerate(limits))
  assert all(len(p.texts) == len(p.scores) == 3 for p in found.values())
  assert len(set(found[0].texts)) > 1
