"""A continuation scores as it does when prompt and continuation are teacher-forced as one padded example."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest

from mtx.data.convert import ARCHITECTURES, padded
from mtx.eval import likelihood
from mtx.eval.likelihood import Likelihood, round_up

INPUTS, TASKS = 40, 3


@dataclass
class Case:
  config: Any
  model: Any
  params: dict
  scorer: Likelihood
  whole: Any

  def teacher_forced(self, inputs, tokens, task: int, width: int = INPUTS, length: int = 24) -> np.ndarray:
    """Log-probabilities of `tokens`: the pair as one right-padded row of its own."""
    example = [{"inputs": inputs, "targets": np.asarray(tokens, np.int32)}]
    batch = padded(example, self.config.architecture, width, length, [task], rows=1, eos_id=1)
    log_p = np.asarray(jax.nn.log_softmax(self.whole(self.params, batch)))
    at = batch["decoder_loss_weights"][0] > 0
    return log_p[0, at, batch["decoder_target_tokens"][0, at]]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request, tiny, routed, weights, vocabulary, mesh1):
  config = tiny(request.param, absolute_positions=64, tied_head=False, vocab_size=vocabulary.size + 5)
  model = routed(config, tasks=TASKS)
  params = weights(model)
  scorer = Likelihood(model, config, mesh1, vocabulary, inputs_length=INPUTS)
  return Case(config, model, params, scorer, jax.jit(lambda p, b: model.merge(p)(b).logits))


@pytest.fixture(scope="module")
def prompts():
  """Prompts of two length buckets, in no order, with continuations of 1 to 20 tokens: ragged, one, none, three."""
  rng = np.random.default_rng(0)
  tokens = lambda n: np.append(rng.integers(3, 250, n - 1), 1).astype(np.int32)
  inputs = [tokens(n) for n in (30, 9, 21, 5, 35)]
  lengths = ([6, 1, 3, 4], [20], [], [1, 1, 1], [8, 5, 2, 7])
  return inputs, [[tokens(n) for n in each] for each in lengths], [0, 1, 2, 2, 1]


def test_equals_teacher_forcing(case, prompts):
  """Ragged counts and lengths: every token's log-probability to 1e-4, under its own router row."""
  inputs, continuations, task_ids = prompts
  found = case.scorer(case.params, inputs, continuations, task_ids)
  assert [len(each) for each in found] == [len(each) for each in continuations]
  for i, each in enumerate(continuations):
    for tokens, log_p in zip(each, found[i], strict=True):
      np.testing.assert_allclose(log_p, case.teacher_forced(inputs[i], tokens, task_ids[i]), atol=1e-4)
  other = case.scorer(case.params, inputs[:1], continuations[:1], [1])[0][0]
  assert np.abs(other - found[0][0]).max() > 1e-3  # the router row matters


def test_padding_and_company_are_nothing(case, prompts):
  """In wider buckets, alone and split over batches, or with the others: the same scores."""
  inputs, continuations, task_ids = prompts
  found = case.scorer(case.params, inputs, continuations, task_ids)
  wide = [continuations[0][0], np.full(18, 7, np.int32)]
  again = case.scorer(case.params, inputs[:1], [wide], task_ids[:1])
  np.testing.assert_allclose(again[0][0], found[0][0], atol=1e-4)
  far = case.teacher_forced(inputs[1], continuations[1][0], task_ids[1], width=INPUTS + 24)
  np.testing.assert_allclose(found[1][0], far, atol=1e-4)


def test_more_continuations_than_a_batch_holds(case, prompts, monkeypatch):
  """A prompt's continuations spread over batches, of which the last is not full."""
  inputs, continuations, task_ids = prompts
  found = case.scorer(case.params, inputs[:1], continuations[:1], task_ids[:1])[0]
  monkeypatch.setattr(likelihood, "ROWS", 3)
  again = case.scorer(case.params, inputs[:1], continuations[:1], task_ids[:1])[0]
  for one, other in zip(found, again, strict=True):
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_mesh_is_nothing(case, prompts, mesh_of, vocabulary):
  """Rows split four ways, so that a prompt and its continuations lie on different devices, and the vocabulary two."""
  inputs, continuations, task_ids = prompts
  mesh = mesh_of(4, 1, 2)
  shardings = case.model.shardings(mesh)
  params = {p: jax.device_put(v, shardings[p]) for p, v in case.params.items()}
  scorer = Likelihood(case.model, case.config, mesh, vocabulary, inputs_length=INPUTS)
  found = case.scorer(case.params, inputs[:1], continuations[:1], task_ids[:1])
  split = scorer(params, inputs[:1], continuations[:1], task_ids[:1])
  for a, b in zip(found[0], split[0], strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_targets(case, prompts):
  """Sums of targets, cut to a length with EOS kept; tokens that the loss does not count are left out."""
  inputs, continuations, _ = prompts
  targets = [continuations[1][0], continuations[4][0]]
  weights = np.array([0, 1, 1, 0, 0, 1, 1, 1], np.uint8)
  examples = [
    {"inputs": inputs[1], "targets": targets[0]},
    {"inputs": inputs[3], "targets": targets[1], "weights": weights},
  ]
  found = case.scorer.targets(case.params, examples, [2, 0], 8)
  cut = np.append(targets[0][:7], 1)
  expected = [
    case.teacher_forced(inputs[1], cut, 2),
    case.teacher_forced(inputs[3], targets[1], 0)[weights > 0],
  ]
  assert [each.tokens for each in found] == [8, 5]
  np.testing.assert_allclose([each.log_p for each in found], [each.sum() for each in expected], atol=1e-3)


def test_overlong_inputs_are_cut(case, prompts):
  tokens = np.append(np.arange(3, 3 + INPUTS + 8), 1).astype(np.int32)
  cut = np.append(tokens[: INPUTS - 1], 1)
  continuation = [prompts[1][0]]
  a, b = (case.scorer(case.params, [each], continuation, [0])[0] for each in (tokens, cut))
  np.testing.assert_array_equal(np.concatenate(a), np.concatenate(b))


def test_one_compilation_a_bucket(case, prompts):
  """Lengths and counts within a bucket are one program."""
  rng = np.random.default_rng(1)
  scorer = Likelihood(case.model, case.config, case.scorer._mesh, case.scorer.vocabulary, inputs_length=INPUTS)
  for width, lengths in ((17, (5, 6)), (30, (8, 7)), (25, (2, 6))):
    inputs = [rng.integers(3, 250, width).astype(np.int32)] * 2
    scorer(case.params, inputs, [[rng.integers(3, 250, n) for n in lengths]] * 2, [0, 1])
  assert scorer._score._cache_size() == 1


def test_rows_that_are_compiled():
  for ways in (1, 4):
    for rows in range(1, 300):
      rounded = round_up(rows, ways)
      assert rounded % ways == 0 and rows <= rounded <= -(-rows // ways) * ways * 1.13
  assert len({round_up(rows, 1) for rows in range(1, 257)}) < 50


def test_scores_are_probabilities(case):
  """One-token continuations of the whole vocabulary sum to 1."""
  prompt = np.array([5, 6, 7, 1], np.int32)
  size = case.config.vocab_size
  found = case.scorer(case.params, [prompt], [np.arange(size, dtype=np.int32)[:, None]], [0])
  assert len(found[0]) == size
  np.testing.assert_allclose(np.exp(np.concatenate(found[0])).sum(), 1, atol=1e-4)
