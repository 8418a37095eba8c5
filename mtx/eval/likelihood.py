"""Log-likelihoods of continuations of prompts: each prompt is computed once, whatever the number of continuations."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int
from ml_collections import ConfigDict

from mtx.data.cache import Example
from mtx.data.convert import prompts, truncated
from mtx.data.vocabulary import Vocabulary
from mtx.decode.lengths import bucket
from mtx.decode.rows import repeated
from mtx.parallel.activations import within
from mtx.parallel.mesh import batch_ways
from mtx.parallel.rules import batch_sharding, place, replicated
from mtx.training.parameters import Blueprint, Params

TOKENS = 32768  # of rows with their prompts in a batch: enough to fill a CPU, small for any accelerator
LOGITS = 1 << 27  # float32 in a batch: 512 MB
ROWS = 256

LogP = Float32[np.ndarray, " tokens"]


class Sum(NamedTuple):
  """Log-likelihood of an example's targets, and how many tokens it is of (those that the loss counts)."""

  log_p: float
  tokens: int


class _Piece(NamedTuple):
  """Continuations `first` to `last` of one prompt: all of them, unless they are more than a batch holds."""

  prompt: int
  first: int
  last: int


class Likelihood:
  """Log-probabilities that one model gives to tokens after a prompt, of any architecture and with routed adapters.

  Prompts of similar length, with about as many continuations of similar length, share a batch. `prefill` runs once a
  prompt and gives the first tokens' scores; its cache is repeated for the continuations, and one `extend` gives the
  scores of all other tokens. Compiles once for each bucket of lengths and numbers.
  """

  def __init__(
    self,
    model: Blueprint,
    config: ConfigDict,
    mesh: Mesh,
    vocabulary: Vocabulary,
    *,
    inputs_length: int,
  ):
    self._score = make_score(model, mesh)
    self._config, self._mesh, self._vocabulary = config, mesh, vocabulary
    self._inputs_length = inputs_length

  @property
  def vocabulary(self) -> Vocabulary:
    return self._vocabulary

  @property
  def architecture(self) -> str:
    return self._config.architecture

  def targets(
    self, params: Params, examples: Sequence[Example], task_ids: Sequence[int], targets_length: int
  ) -> list[Sum]:
    """The log-likelihood of every example's targets given its inputs, cut as they are in training."""
    eos = self._vocabulary.eos_id
    cut = [truncated(np.asarray(e["targets"], np.int32), targets_length, eos) for e in examples]
    scored = self(params, [e["inputs"] for e in examples], [[tokens] for tokens in cut], task_ids)
    sums = []
    for example, (log_p,) in zip(examples, scored, strict=True):
      counts = np.asarray(example.get("weights", np.ones(len(log_p))), bool)[: len(log_p)]
      sums.append(Sum(float(log_p[counts].sum(dtype=np.float64)), int(counts.sum())))
    return sums

  def __call__(
    self,
    params: Params,
    inputs: Sequence[Int[np.ndarray, " n"]],
    continuations: Sequence[Sequence[Int[np.ndarray, " m"]]],
    task_ids: Sequence[int],
  ) -> list[list[LogP]]:
    """Log-probability of every token of every continuation, given its prompt and the tokens before it.

    Args:
      params: every parameter of the model.
      inputs: tokens of each prompt, cut to `inputs_length`.
      continuations: of each prompt, as many as it has; used whole.
      task_ids: router row of each prompt.
    """
    found: list[list[LogP]] = [[np.zeros(0, np.float32)] * len(each) for each in continuations]
    for (width, length, count), pieces in self._buckets(inputs, continuations).items():
      most = self._rows(width, length, count)
      rows = min(most, round_up(len(pieces), self._ways))
      for start in range(0, len(pieces), most):
        batch = pieces[start : start + most]
        prompt = self._prompts([inputs[p.prompt] for p in batch], width, [task_ids[p.prompt] for p in batch], rows)
        tokens = np.zeros((rows, count, length), np.int32)
        for row, piece in enumerate(batch):
          for at, chosen in enumerate(continuations[piece.prompt][piece.first : piece.last]):
            tokens[row, at, : len(chosen)] = chosen
        placed = place({**prompt, "continuations": tokens}, self._mesh)
        log_p = np.asarray(self._score(params, placed))
        for row, piece in enumerate(batch):
          for at, chosen in enumerate(continuations[piece.prompt][piece.first : piece.last]):
            found[piece.prompt][piece.first + at] = log_p[row, at, : len(chosen)]
    return found

  def _buckets(self, inputs, continuations) -> dict[tuple[int, int, int], list[_Piece]]:
    """Pieces by the shape that they are compiled for: prompt length, continuation length, continuations."""
    buckets: dict[tuple[int, int, int], list[_Piece]] = {}
    lengths = [min(len(each), self._inputs_length) for each in inputs]
    for i in np.argsort(lengths, kind="stable"):
      longest = max((len(each) for each in continuations[i]), default=0)
      if longest:
        width, length = min(self._inputs_length, bucket(lengths[i])), bucket(longest, least=1)
        most = max(1, self._rows(width, length, 1) // self._ways)
        for first in range(0, len(continuations[i]), most):
          piece = _Piece(int(i), first, min(first + most, len(continuations[i])))
          count = min(most, round_up(piece.last - first, 1))
          buckets.setdefault((width, length, count), []).append(piece)
    return buckets

  def _prompts(self, inputs, width: int, task_ids, rows: int) -> dict[str, np.ndarray]:
    examples = [{"inputs": each} for each in inputs]
    architecture, vocabulary = self._config.architecture, self._vocabulary
    start = vocabulary.start(architecture)
    batch = prompts(examples, architecture, width, 1, task_ids, eos_id=vocabulary.eos_id, start_id=start)
    return {k: np.pad(v, [(0, rows - len(inputs))] + [(0, 0)] * (v.ndim - 1)) for k, v in batch.items()}

  @property
  def _ways(self) -> int:
    return batch_ways(self._mesh)

  def _rows(self, width: int, length: int, count: int) -> int:
    """Prompts in a batch, each with `count` continuations."""
    most = min(ROWS, TOKENS // (width + length), LOGITS // (length * self._config.vocab_size)) // count
    return max(1, most // self._ways) * self._ways


def make_score(model: Blueprint, mesh: Mesh):
  """Returns jitted `score(params, batch) -> float32 [batch, continuations, length]`.

  `batch` is prompts and, as "continuations", int32 [batch, continuations, length]: log-probabilities of their tokens
  come back. Tokens that fill a continuation up come last; what is returned for them means nothing.
  """

  @partial(jax.jit, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))
  @within(mesh)
  def score(params: Params, batch: dict[str, Array]) -> Float[Array, "batch continuations length"]:
    module, tokens = model.merge(params), batch["continuations"]
    rows, count, length = tokens.shape
    logits, cache = module.prefill(batch, length)
    first = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., 0], axis=1)[..., None]
    if length == 1:
      return first
    # Repeated, not gathered: the copies stay on the devices that hold their prompt.
    rest, _ = module.extend(tokens.reshape(rows * count, length)[:, :-1], repeated(cache, count))
    rest = rest.reshape(rows, count, length - 1, -1)
    chosen = jnp.take_along_axis(rest, tokens[..., 1:, None], axis=-1)[..., 0]
    return jnp.concatenate([first, chosen - jax.nn.logsumexp(rest, axis=-1)], axis=-1)

  return score


def round_up(number: int, ways: int) -> int:
  """A multiple of `ways`, an eighth more at most; there are few of them."""
  each = -(-number // ways)
  step = max(1, (1 << each.bit_length() - 1) // 8)
  return -(-each // step) * step * ways
