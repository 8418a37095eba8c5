"""Predictions of a model on examples: decoded in batches of similar length, given back in the examples' order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mtx.data.convert import prompts
from mtx.data.vocabulary import Vocabulary
from mtx.decode.lengths import bucket
from mtx.decode.loop import make_decode
from mtx.decode.outputs import Decoded
from mtx.decode.sampling import row_keys
from mtx.decode.settings import Settings
from mtx.decode.stops import for_vocabulary, trimmed
from mtx.eval.likelihood import Likelihood
from mtx.parallel.mesh import batch_ways
from mtx.parallel.rules import place
from mtx.training.parameters import Blueprint, Params

TOKENS = 32768  # of prompts and outputs a batch: enough to fill a CPU, small for any accelerator
ROWS = 256


@dataclass(frozen=True)
class Prediction:
  """What a model says to one prompt, `Settings.samples` times.

  Attributes:
    texts: without what ends them, stop texts included.
    scores: log-probability of each, with its end (`mtx.decode.outputs.Decoded.scores`).
    lengths: tokens of each, its end counted.
  """

  texts: tuple[str, ...]
  scores: tuple[float, ...]
  lengths: tuple[int, ...]


class Generator:
  """Predictions of one model. Compiles once a bucket of prompt lengths (`mtx.decode.lengths`).

  Args:
    config: `architecture` of the model.
    inputs_length: most tokens of a prompt; what is longer is cut.
    targets_length: most tokens of an output; None: `settings.length`.
    settings: the vocabulary's ids are filled in here; None: what gin binds `decode` to, greedy by default.
    rows: most prompts a batch.
  """

  def __init__(
    self,
    model: Blueprint,
    config: ConfigDict,
    mesh: Mesh,
    vocabulary: Vocabulary,
    *,
    inputs_length: int,
    targets_length: int | None = None,
    settings: Settings | None = None,
    rows: int = ROWS,
  ):
    settings = for_vocabulary(settings or Settings(), vocabulary)
    self.settings = replace(settings, length=targets_length or settings.length)
    self._decode = make_decode([model], mesh, self.settings)
    self._model, self._config, self._architecture = model, config, config.architecture
    self._mesh, self._vocabulary = mesh, vocabulary
    self._inputs_length, self._most = inputs_length, rows
    self._room = bucket(self.settings.length)

  def __call__(self, params: Params, examples: Sequence[Mapping[str, Any]], task_ids: Sequence[int]) -> list[str]:
    """One text an example: the first sample (always of the same key), or the best beam.

    Args:
      params: every parameter of the model.
      examples: each has "inputs", the tokens of a prompt.
      task_ids: router row of each example.
    """
    texts = [""] * len(examples)
    for i, prediction in self.stream(params, examples, task_ids, key=jax.random.key(0)):
      texts[i] = prediction.texts[0]
    return texts

  @cached_property
  def likelihood(self) -> Likelihood:
    """Of texts that the same model could have said; compiled where it is used."""
    length = self._inputs_length
    return Likelihood(self._model, self._config, self._mesh, self._vocabulary, inputs_length=length)

  def stream(
    self,
    params: Params,
    examples: Sequence[Mapping[str, Any]],
    task_ids: Sequence[int],
    *,
    key: jax.Array | None = None,
    rows: Sequence[int] | None = None,
    limits: Sequence[int] | None = None,
  ) -> Iterator[tuple[int, Prediction]]:
    """(place in `examples`, prediction), batch by batch as they are done, shortest prompts first.

    The next batch is under way while the caller has this one.

    Args:
      key: of what is drawn.
      rows: number of each example in the whole input, which with `key` decides what it draws; None: its place.
      limits: most tokens of each output, if it is not `settings.length` for all.
    """
    numbers = np.arange(len(examples)) if rows is None else np.asarray(rows)
    most = np.full(len(examples), self.settings.length) if limits is None else np.asarray(limits)
    waiting: tuple[list[int], Decoded] | None = None
    for length, part in self._batches(examples):
      begun = self._begin(params, examples, task_ids, length, part, key, numbers, most)
      if waiting:
        yield from self._end(*waiting)
      waiting = part, begun
    if waiting:
      yield from self._end(*waiting)

  def _batches(self, examples: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, list[int]]]:
    """(prompt length that is compiled, places of the examples) of every batch."""
    lengths = np.array([min(len(e["inputs"]), self._inputs_length) for e in examples], int)
    buckets: dict[int, list[int]] = {}
    for i in np.argsort(lengths, kind="stable"):
      buckets.setdefault(min(self._inputs_length, bucket(int(lengths[i]))), []).append(int(i))
    for length, members in buckets.items():
      rows = self._rows(length)
      yield from ((length, members[start : start + rows]) for start in range(0, len(members), rows))

  def _rows(self, length: int) -> int:
    """Prompts a batch, a function of their length alone, so that it compiles once."""
    ways, fitting = batch_ways(self._mesh), TOKENS // (length + self._room) // self.settings.width
    return max(1, min(self._most, fitting) // ways) * ways

  def _begin(self, params, examples, task_ids, length, part, key, numbers, limits) -> Decoded:
    batch = prompts(
      [examples[i] for i in part],
      self._architecture,
      length,
      self.settings.length,
      [task_ids[i] for i in part],
      eos_id=self._vocabulary.eos_id,
      start_id=self._vocabulary.start(self._architecture),
    )
    more = self._rows(length) - len(part)
    filled = {k: np.pad(v, [(0, more)] + [(0, 0)] * (v.ndim - 1)) for k, v in batch.items()}
    # Rows that only fill the batch may emit nothing, so they are done before they begin.
    most = np.pad(np.minimum(limits[part], self._room), (0, more))
    keys = None
    if self.settings.temperature:
      keys = row_keys(key, np.pad(numbers[part], (0, more)))
    return self._decode([params], [place(filled, self._mesh)], most, keys, room=self._room)

  def _end(self, part: list[int], decoded: Decoded) -> Iterator[tuple[int, Prediction]]:
    tokens, lengths, scores = (np.asarray(each) for each in (decoded.tokens, decoded.lengths, decoded.scores))
    for row, i in enumerate(part):
      outputs = (t[:n] for t, n in zip(tokens[row], lengths[row], strict=True))
      texts = tuple(trimmed(self._vocabulary.decode(output), self.settings) for output in outputs)
      yield i, Prediction(texts, tuple(map(float, scores[row])), tuple(map(int, lengths[row])))
