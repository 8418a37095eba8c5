"""Tokens equal those of `transformers`' generate; rows are independent of batch, mesh, limits and neighbours."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtx.decode.loop import make_decode
from mtx.decode.sampling import row_keys
from mtx.decode.settings import Settings
from mtx.parallel.rules import place

STEPS = 32


def decode(peer, settings, mesh, limits=STEPS, key=None, order=None, params=None):
  """Our outputs on the host: tokens [rows, samples, length], lengths, scores."""
  batch = peer.prompts(order)
  rows = len(batch["task_ids"])
  run = make_decode([peer.model], mesh, settings)
  found = run([params or peer.params], [place(batch, mesh)], np.broadcast_to(limits, rows), key)
  return [np.asarray(each) for each in (found.tokens, found.lengths, found.scores)]


def rare(tokens: np.ndarray) -> int:
  """A token that some rows emit in the middle and others never."""
  for token in np.unique(tokens):
    hit = (tokens == token).any(1)
    if hit.any() and not hit.all() and (tokens == token).argmax(1)[hit].min() > 1:
      return int(token)
  raise AssertionError("no token ends some rows only")


@pytest.fixture(scope="module")
def free(any_peer, mesh1):
  """Greedy, and no end but the limit."""
  return decode(any_peer, Settings(eos_ids=()), mesh1)


def test_greedy(any_peer, free):
  """32 steps in a batch of unequal lengths: every token and its log-probability."""
  tokens, found = any_peer.generate(STEPS)
  np.testing.assert_array_equal(free[0][:, 0], tokens)
  assert len(np.unique(tokens)) > 8
  import torch

  steps = torch.stack(found.scores, 1).log_softmax(-1).numpy()
  theirs = np.take_along_axis(steps, tokens[..., None], -1).sum((1, 2))
  np.testing.assert_allclose(free[2][:, 0], theirs, rtol=1e-4)
  assert (free[1] == STEPS).all()


def test_repetition_penalty(any_peer, free, mesh1):
  """A decoder's prompt counts, its padding does not."""
  tokens, _ = any_peer.generate(STEPS, repetition_penalty=1.7)
  ours = decode(any_peer, Settings(eos_ids=(), repetition_penalty=1.7), mesh1)[0][:, 0]
  np.testing.assert_array_equal(ours, tokens)
  assert (tokens != free[0][:, 0]).any()


def test_several_ends_and_limits(any_peer, free, mesh1):
  """Rows end at either id, which is kept, or at their own limit; padding that is a real id follows; 0 emits nothing."""
  whole = free[0][:, 0]
  first = rare(whole)
  second = int(whole[~(whole == first).any(1)][0, 4])
  limits = np.array([STEPS, 5, STEPS, 0, 20])
  tokens, lengths, scores = decode(any_peer, Settings(eos_ids=(first, second), pad_id=7), mesh1, limits)
  for row, limit in enumerate(limits):
    ends = [i + 1 for i, token in enumerate(whole[row]) if token in (first, second)]
    length = min([limit, *ends])
    assert lengths[row, 0] == length
    np.testing.assert_array_equal(tokens[row, 0, :length], whole[row, :length])
    assert (tokens[row, 0, length:] == 7).all()
  assert len({*lengths[:, 0]}) > 2 and scores[3, 0] == 0


def test_stop_sequences(any_peer, free, mesh1):
  """A sequence of ids ends its row when its last one is there, also one that begins the output."""
  whole = free[0][:, 0]
  sequences = (tuple(whole[0, 3:6]), tuple(whole[1, :2]), (47, 46, 45, 44))
  _, lengths, _ = decode(any_peer, Settings(eos_ids=(), stop_ids=sequences), mesh1)
  for row in range(len(whole)):
    ends = [
      i + 1
      for i in range(STEPS)
      for ids in sequences
      if i + 1 >= len(ids) and tuple(whole[row, i + 1 - len(ids) : i + 1]) == ids
    ]
    assert lengths[row, 0] == min([STEPS, *ends])
  assert lengths[0, 0] <= 6 and lengths[1, 0] <= 2


def test_a_change_of_lengths_compiles_nothing(any_peer, mesh1):
  """Traced once for limits of one bucket; once more for the next one."""
  traced = []

  def combine(logits, state):
    traced.append(1)
    return logits[0], state

  run = make_decode([any_peer.model], mesh1, Settings(eos_ids=()), combine=combine)
  call = lambda limits: run([any_peer.params], [any_peer.prompts()], np.array(limits), None).tokens
  assert call([16, 3, 4, 5, 0]).shape[-1] == 16
  once = len(traced)
  assert call([9, 3, 4, 5, 1]).shape[-1] == 16 and call([1] * 5).shape[-1] == 16
  assert len(traced) == once
  assert call([17, 3, 4, 5, 0]).shape[-1] == 32
  assert len(traced) > once


SAMPLED = Settings(eos_ids=(5,), temperature=0.9, top_k=20, top_p=0.95, min_p=0.01, samples=3)


@pytest.fixture(scope="module")
def sampled(any_peer, mesh1):
  return decode(any_peer, SAMPLED, mesh1, 12, row_keys(jax.random.key(3), jnp.arange(5)))


def test_samples_differ_and_repeat(any_peer, sampled, mesh1):
  """Samples of a prompt differ from each other; fewer of them are the first ones; another key gives others."""
  tokens = sampled[0]
  assert len({row.tobytes() for row in tokens.reshape(15, -1)}) > 12
  one = decode(any_peer, replace(SAMPLED, samples=1), mesh1, 12, row_keys(jax.random.key(3), jnp.arange(5)))
  np.testing.assert_array_equal(one[0][:, 0], tokens[:, 0])
  other = decode(any_peer, replace(SAMPLED, samples=1), mesh1, 12, jax.random.key(4))
  assert (other[0] != one[0]).any()


def test_what_a_row_draws_depends_on_itself(any_peer, sampled, mesh1):
  """Other neighbours, another place in the batch: the same row and key draw the same."""
  order = [4, 2, 2]
  found = decode(any_peer, SAMPLED, mesh1, 12, row_keys(jax.random.key(3), jnp.array(order)), order)
  np.testing.assert_array_equal(found[0], sampled[0][order])
  np.testing.assert_allclose(found[2], sampled[2][order], rtol=1e-5)


@pytest.mark.parametrize(
  ("any_peer", "settings"),
  [("t5", SAMPLED), ("llama", Settings(eos_ids=(5,), beams=3, samples=2))],
  indirect=["any_peer"],
  ids=["sampled", "beams"],
)
def test_mesh_is_nothing(any_peer, settings, mesh1, mesh8):
  """Eight devices, data, fsdp and tensor 2 each."""
  order = [0, 1, 2, 3, 4, 0, 1, 2]
  keys = row_keys(jax.random.key(3), jnp.arange(8)) if settings.temperature else None
  shardings = any_peer.model.shardings(mesh8)
  params = {path: jax.device_put(value, shardings[path]) for path, value in any_peer.params.items()}
  one = decode(any_peer, settings, mesh1, 12, keys, order)
  many = decode(any_peer, settings, mesh8, 12, keys, order, params)
  np.testing.assert_array_equal(many[0], one[0])
  np.testing.assert_array_equal(many[1], one[1])
  np.testing.assert_allclose(many[2], one[2], rtol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_caches_are_split_over_the_mesh(any_peer, mesh1, mesh8, beams):
  """Of what all rows remember, each of eight devices holds its part."""
  batch, settings = any_peer.prompts([0, 1, 2, 3, 4, 0, 1, 2]), Settings(eos_ids=(), beams=beams)

  def temporary(mesh) -> int:
    decode = make_decode([any_peer.model], mesh, settings)
    shardings = any_peer.model.shardings(mesh)
    run = lambda params, batch: decode([params], [batch], np.full(8, 640), None, room=640)
    params = {
      p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=shardings[p]) for p, s in any_peer.model.shapes.items()
    }
    return jax.jit(run).lower(params, place(batch, mesh)).compile().memory_analysis().temp_size_in_bytes

  assert temporary(mesh8) < temporary(mesh1) / 4


def test_several_models(any_peer, free, mesh1):
  """A model and its negation cancel; weighed 3 to 1 they are the model at twice its logits. State goes along."""

  class Weighed:
    def init(self, rows):
      return jnp.zeros(rows, jnp.int32)

    def __call__(self, logits, state):
      return 3 * logits[0] - logits[1], state + 1

  run = make_decode([any_peer.model] * 2, mesh1, Settings(eos_ids=()), combine=Weighed())
  found = run([any_peer.params] * 2, [any_peer.prompts()] * 2, np.full(5, STEPS), None)
  np.testing.assert_array_equal(np.asarray(found.tokens), free[0])
  assert (np.asarray(found.state) == STEPS).all()
  assert (np.asarray(found.scores) > free[2]).all()
