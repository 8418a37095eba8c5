"""A small cache made without SeqIO."""

import numpy as np
import pytest
from batch_contents import EOS

from mtx.data.cache import CachedMixture, CachedTask, open_mixture, write_index, write_split
from mtx.data.vocabulary import Vocabulary

# Task name -> (training examples, shortest and longest inputs, rate).
TASKS = {
  "add": (40, (3, 9), 1.0),
  "echo": (7, (2, 5), 1.0),
  "sort": (90, (6, 18), 4.0),
  "translate": (30, (14, 30), 2.0),
}


def tokens(rng: np.random.Generator, shortest: int, longest: int) -> np.ndarray:
  length = int(rng.integers(shortest, longest + 1))
  return np.append(rng.integers(3, 250, length - 1), EOS).astype(np.int32)


def example(rng: np.random.Generator, task: str, index: int, lengths: tuple[int, int]) -> dict:
  return {
    "inputs": tokens(rng, *lengths),
    "targets": tokens(rng, 2, 8),
    "id": f"{task}-{index}",
    "references": ["a", "b"],
    "text": "what was asked",
  }


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
  root = tmp_path_factory.mktemp("cache")
  rng = np.random.default_rng(0)
  tasks = []
  for name, (count, lengths, _) in TASKS.items():
    splits = {
      split: write_split(
        root / "tasks" / name / split,
        [example(rng, f"{name}-{split}", index, lengths) for index in range(number)],
        fingerprint=name,
        ingredients={"source": name},
      )
      for split, number in (("train", count), ("validation", 5))
    }
    tasks.append(CachedTask(name, f"{name}s", ("exact_match",), name, splits))
  total = sum(rate for _, _, rate in TASKS.values())
  rates = tuple(rate / total for _, _, rate in TASKS.values())
  write_index(root, CachedMixture("four_tasks", tuple(tasks), rates, Vocabulary("byte")))
  return root


@pytest.fixture(scope="session")
def mixture(cache_dir):
  return open_mixture(cache_dir, "four_tasks")
