"""Filters leave the logits that `transformers`' leave; what is drawn follows the distribution, row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtx.decode import sampling
from mtx.decode.settings import Settings

ROWS, VOCAB = 6, 50


@pytest.fixture(scope="module")
def logits():
  """Rows from nearly flat to nearly certain, one with many equals, one with -inf."""
  rng = np.random.default_rng(0)
  made = rng.normal(size=(ROWS, VOCAB)) * np.array([0.01, 1, 3, 10, 2, 2])[:, None]
  made[4] = np.round(made[4])
  made[5, ::3] = -np.inf
  return made.astype(np.float32)


@pytest.fixture(scope="module")
def peers():
  pytest.importorskip("torch", reason="PyTorch is not installed")
  return pytest.importorskip("transformers", reason="transformers is not installed")


def theirs(processor, logits, ids=None):
  import torch

  return processor(None if ids is None else torch.tensor(ids), torch.tensor(logits)).numpy()


@pytest.mark.parametrize("k", [1, 5, VOCAB, VOCAB + 9])
def test_top_k(peers, logits, k):
  wanted = theirs(peers.TopKLogitsWarper(k), logits)
  np.testing.assert_array_equal(sampling.top_k(jnp.array(logits), k), wanted)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9, 0.999])
def test_top_p(peers, logits, p):
  """Where equals lie on the border, all of them stay; transformers keeps those that its sort puts last."""
  wanted = theirs(peers.TopPLogitsWarper(p), logits)
  ours = np.asarray(sampling.top_p(jnp.array(logits), p))
  np.testing.assert_array_equal(np.delete(ours, 4, 0), np.delete(wanted, 4, 0))
  least = wanted[4][np.isfinite(wanted[4])].min()
  np.testing.assert_array_equal(ours[4], np.where(logits[4] >= least, logits[4], -np.inf))


@pytest.mark.parametrize("p", [0.001, 0.2, 1.0])
def test_min_p(peers, logits, p):
  np.testing.assert_array_equal(sampling.min_p(jnp.array(logits), p), theirs(peers.MinPLogitsWarper(p), logits))


def test_repetition_penalty(peers, logits):
  ids = np.random.default_rng(1).integers(0, VOCAB, (ROWS, 12))
  seen = np.zeros((ROWS, VOCAB), bool)
  seen[np.arange(ROWS)[:, None], ids] = True
  wanted = theirs(peers.RepetitionPenaltyLogitsProcessor(1.7), logits, ids)
  np.testing.assert_allclose(sampling.repetition_penalty(jnp.array(logits), jnp.array(seen), 1.7), wanted, rtol=1e-6)


def test_order_of_filters(peers, logits):
  """All of them, as GenerationMixin chains them; another order would leave others."""
  warpers = [
    peers.TemperatureLogitsWarper(0.6),
    peers.TopKLogitsWarper(9),
    peers.TopPLogitsWarper(0.8),
    peers.MinPLogitsWarper(0.1),
  ]
  wanted = logits[:4]
  for warper in warpers:
    wanted = theirs(warper, wanted)
  ours = sampling.warp(jnp.array(logits[:4]), Settings(temperature=0.6, top_k=9, top_p=0.8, min_p=0.1))
  np.testing.assert_allclose(ours, wanted, rtol=1e-6)
  turned = logits[:4]
  for warper in warpers[::-1]:
    turned = theirs(warper, turned)
  assert (np.isfinite(turned) != np.isfinite(wanted)).any()


def test_filters_under_jit_keep_their_bits(logits):
  """Large and small magnitudes, both signs: the bisection ends at the very float."""
  extreme = jnp.array(np.concatenate([logits[:4] * 1e30, logits[:4] * 1e-30]))
  for row, kept in zip(extreme, jax.jit(lambda x: sampling.top_k(x, 7))(extreme), strict=True):
    assert sorted(np.asarray(kept)[np.isfinite(kept)]) == sorted(np.asarray(row))[-7:]


def test_greedy_takes_the_first_of_equals(logits):
  tied = jnp.array([[1.0, 3.0, 3.0], [-jnp.inf, -jnp.inf, 0.0], [2.0, 2.0, 2.0]])
  assert sampling.greedy(tied).tolist() == [1, 2, 0]
  np.testing.assert_array_equal(sampling.greedy(jnp.array(logits)), logits.argmax(-1))


def test_draws_follow_the_distribution():
  """Chi-square of 8,000 draws, each with a key of its own, at 5 standard deviations."""
  logits = jnp.array([0.0, 1.0, 2.0, -1.0, -jnp.inf])
  count = 8000
  drawn = sampling.draw(sampling.row_keys(jax.random.key(0), jnp.arange(count)), jnp.tile(logits, (count, 1)))
  seen = np.bincount(np.asarray(drawn), minlength=5)
  expected = count * np.asarray(jax.nn.softmax(logits))
  assert seen[4] == 0
  chi_square = ((seen - expected)[:4] ** 2 / expected[:4]).sum()
  assert chi_square < 3 + 5 * np.sqrt(6)


def test_log_probability_of_what_was_chosen(logits):
  tokens = jnp.array([3, 1, 4, 1, 5, 10])
  wanted = np.asarray(jax.nn.log_softmax(jnp.array(logits)))[np.arange(ROWS), np.asarray(tokens)]
  np.testing.assert_allclose(sampling.chosen_log_probability(jnp.array(logits), tokens), wanted, rtol=1e-5)
