"""Predictions of a model on cached examples: decoded in batches of similar length, in the examples' order."""

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mtx.data.cache import Example
from mtx.data.convert import prompts
from mtx.data.vocabulary import Vocabulary
from mtx.decode.greedy import make_greedy
from mtx.parallel.mesh import batch_ways
from mtx.parallel.rules import place
from mtx.training.parameters import Blueprint, Params

TOKENS = 32768  # prompt tokens a batch: enough to fill a CPU, small for any accelerator
ROWS = 256


class Generator:
  """Greedy predictions of one model. Compiles once a prompt length: powers of two, then multiples of 128."""

  def __init__(
    self,
    model: Blueprint,
    config: ConfigDict,
    mesh: Mesh,
    vocabulary: Vocabulary,
    *,
    inputs_length: int,
    targets_length: int,
  ):
    self._greedy = make_greedy(model, mesh, eos_id=vocabulary.eos_id)
    self._architecture = config.architecture
    self._mesh, self._vocabulary = mesh, vocabulary
    self._inputs_length, self._targets_length = inputs_length, targets_length

  def __call__(self, params: Params, examples: Sequence[Example], task_ids: Sequence[int]) -> list[str]:
    """One text an example.

    Args:
      params: every parameter of the model.
      task_ids: router row of each example.
    """
    predictions: list[str] = [""] * len(examples)
    lengths = np.array([min(len(e["inputs"]), self._inputs_length) for e in examples])
    buckets: dict[int, list[int]] = {}
    for i in np.argsort(lengths, kind="stable"):
      buckets.setdefault(self._bucket(int(lengths[i])), []).append(int(i))
    for length, members in buckets.items():
      rows = self._rows(length)
      for start in range(0, len(members), rows):
        part = members[start : start + rows]
        batch = prompts(
          [examples[i] for i in part],
          self._architecture,
          length,
          self._targets_length,
          [task_ids[i] for i in part],
          eos_id=self._vocabulary.eos_id,
        )
        filled = {k: np.pad(v, [(0, rows - len(part))] + [(0, 0)] * (v.ndim - 1)) for k, v in batch.items()}
        tokens = np.asarray(self._greedy(params, place(filled, self._mesh), self._targets_length))
        for i, row in zip(part, tokens, strict=False):
          predictions[i] = self._vocabulary.decode(row)
    return predictions

  def _bucket(self, length: int) -> int:
    bucket = -(-length // 128) * 128 if length > 128 else 1 << max(length - 1, 15).bit_length()
    return min(self._inputs_length, bucket)

  def _rows(self, length: int) -> int:
    ways = batch_ways(self._mesh)
    return max(1, min(ROWS, TOKENS // length) // ways) * ways
