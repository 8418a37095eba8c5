from dataclasses import replace

import numpy as np
import pytest
from batch_contents import drawn, segments

from mtx.data.cache import CachedMixture
from mtx.data.feed import feed
from mtx.data.mix import task_seed, task_stream

LENGTHS = {"inputs_length": 32, "targets_length": 12}


@pytest.mark.parametrize("architecture", ["encdec", "causal"])
@pytest.mark.parametrize(("rows", "packed"), [("mixed", True), ("mixed", False), ("task", True), ("task", False)])
def test_examples_come_at_the_asked_rates(mixture, architecture, rows, packed):
  """Also where a row holds many short examples of one task and few long ones of another."""
  batches = iter(feed(mixture, architecture=architecture, batch=16, rows=rows, pack=packed, **LENGTHS))
  counts = drawn(batches, 120)
  batches.close()
  total = sum(counts.values())
  realised = [counts[index] / total for index in range(len(mixture.tasks))]
  np.testing.assert_allclose(realised, mixture.rates, rtol=0.08)


def test_a_task_with_rate_zero_is_never_drawn(mixture):
  rates = (0.0, 0.5, 0.0, 0.5)
  batches = iter(feed(replace(mixture, rates=rates), architecture="encdec", batch=4, **LENGTHS))
  counts = drawn(batches, 20)
  batches.close()
  assert set(counts) == {1, 3}


def test_every_epoch_holds_every_example_in_a_new_order(mixture):
  split = mixture.tasks[0].splits["train"]
  stream = task_stream(split, np.arange(len(split)), "add", 0, lambda example: example["id"])
  epochs = [[stream[epoch * len(split) + i] for i in range(len(split))] for epoch in range(3)]
  assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("examples", [1, 2, 3])
def test_a_task_of_few_examples_is_repeated(mixture, examples):
  split = mixture.tasks[0].splits["train"]
  stream = task_stream(split, np.arange(examples), "add", 0, lambda example: example["id"])
  assert {stream[i] for i in range(10 * examples)} == {split[i]["id"] for i in range(examples)}


def test_neighbouring_seeds_give_unrelated_orders(mixture):
  """Seeds are not each other's later epochs."""
  split = mixture.tasks[0].splits["train"]
  size = len(split)
  orders = set()
  for seed in range(3):
    stream = task_stream(split, np.arange(size), "add", seed, lambda example: example["id"])
    for epoch in range(3):
      orders.add(tuple(stream[epoch * size + i] for i in range(size)))
  assert len(orders) == 9
  assert task_seed(0, "add") != task_seed(0, "sort")


def test_another_task_in_the_mixture_leaves_an_order_as_it_was(mixture):
  """Order within a task depends on its name and the seed alone."""
  alone = CachedMixture("alone", mixture.tasks[2:3], (1.0,), mixture.vocabulary)

  def order(of, task):
    batches = iter(feed(of, architecture="encdec", batch=1, seed=9, pack=False, rows="task", **LENGTHS))
    found = []
    while len(found) < 60:
      found += [inputs for drawn, inputs in segments(next(batches)) if drawn == task]
    batches.close()
    return found

  assert order(alone, 0) == order(mixture, 2)


def test_batches_mix_tasks_from_the_start(mixture):
  batches = iter(feed(mixture, architecture="encdec", batch=16, **LENGTHS))
  first = next(batches)
  batches.close()
  assert {task for task, _ in segments(first)} == {0, 1, 2, 3}
  assert any(len(set(tasks[tasks > 0])) > 1 for tasks in first["decoder_task_ids"])
