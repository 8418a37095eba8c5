"""Beam search gives the outputs of `transformers`, best first, with its scores."""

import numpy as np
import pytest

from mtx.decode.settings import Settings
from tests.decode.test_decode_loop import decode

STEPS, BEAMS = 14, 4


CASES = [
  ("t5", 1.0, False),
  ("llama", 0.0, "never"),
  ("t5", 2.0, "never"),
  ("llama", 0.6, True),
  ("t5", -1.0, False),
]


@pytest.fixture(scope="module")
def end(any_peer):
  """The id that beams emit most."""
  return int(np.bincount(any_peer.generate(STEPS, num_beams=BEAMS, num_return_sequences=BEAMS)[0].ravel()).argmax())


def same(ours, theirs, scores, settings, pad: int):
  tokens, lengths, sums = ours
  rows, samples, _ = tokens.shape
  width = theirs.shape[1]
  for i in range(rows * samples):
    row, length = tokens.reshape(rows * samples, -1)[i], lengths.reshape(-1)[i]
    np.testing.assert_array_equal(row[:length], theirs[i, :length])
    assert (theirs[i, length:] == pad).all() and length <= width
  ranks = sums / lengths**settings.length_penalty
  np.testing.assert_allclose(ranks.reshape(-1), scores, rtol=1e-4)
  assert (np.diff(ranks, axis=1) <= 1e-6).all()


@pytest.mark.parametrize(("any_peer", "length_penalty", "early_stopping"), CASES, indirect=["any_peer"])
def test_equals_transformers(any_peer, end, mesh1, length_penalty, early_stopping):
  """Three outputs of four beams a prompt: tokens, order and scores, for every rule of stopping."""
  options = {"length_penalty": length_penalty, "early_stopping": early_stopping}
  theirs, found = any_peer.generate(
    STEPS, num_beams=BEAMS, num_return_sequences=3, eos_token_id=end, pad_token_id=47, **options
  )
  settings = Settings(beams=BEAMS, samples=3, eos_ids=(end,), **options)
  ours = decode(any_peer, settings, mesh1, STEPS)
  same(ours, theirs, found.sequences_scores.numpy(), settings, 47)
  assert length_penalty >= 1 or len({*ours[1].reshape(-1)}) > 1  # from 1 on, going on to the limit pays


@pytest.mark.parametrize("any_peer", ["llama"], indirect=True)
def test_two_ends_and_a_repetition_penalty(any_peer, end, mesh1):
  """Penalties come after the log-softmax, and twice the ends need half as many candidates more."""
  other = next(t for t in (20, 21, 22, 23) if t != end)
  options = {"num_return_sequences": BEAMS, "eos_token_id": [end, other], "pad_token_id": 47}
  theirs, found = any_peer.generate(STEPS, num_beams=BEAMS, repetition_penalty=1.3, **options)
  settings = Settings(beams=BEAMS, samples=BEAMS, eos_ids=(end, other), repetition_penalty=1.3)
  same(decode(any_peer, settings, mesh1, STEPS), theirs, found.sequences_scores.numpy(), settings, 47)


@pytest.mark.parametrize("any_peer", ["t5"], indirect=True)
def test_rows_have_limits_of_their_own(any_peer, end, mesh1):
  """A row with a limit gets what a batch with that limit for all would give it."""
  settings = Settings(beams=BEAMS, samples=2, eos_ids=(end,))
  limits = np.array([STEPS, 4, 7, 0, 4])
  mixed = decode(any_peer, settings, mesh1, limits)
  for limit in {*limits} - {0}:
    alone = decode(any_peer, settings, mesh1, limit)
    for mine, whole in zip(mixed, alone, strict=True):
      rows = limits == limit
      np.testing.assert_allclose(mine[rows], whole[rows], rtol=1e-5)
  assert not mixed[1][3].any() and not mixed[0][3].any()
