"""Speculative decoding keeps the target's distribution, and with temperature 0 its tokens, whatever the drafter is."""

from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mtx.data.convert import ARCHITECTURES, padded, prompts
from mtx.decode import sampling, speculative
from mtx.decode.combine import Emulated, LogitFusion
from mtx.decode.loop import make_decode
from mtx.decode.settings import Settings
from mtx.decode.speculative import make_speculative, verify
from mtx.errors import UserError
from mtx.models.build import build
from mtx.parallel.rules import place
from mtx.training.parameters import blueprint

INPUTS, ROOM, ROWS = 9, 16, 8
TOY = 5  # tokens of the toy vocabulary


def plain(config):
  return blueprint(lambda rngs: build(config, rngs=rngs))


def near(params: dict, amount: float, seed: int) -> dict:
  """Parameters that a drafter might have: right often, not always."""
  rng = np.random.default_rng(seed)
  return {p: v + amount * v.std() * rng.normal(size=v.shape).astype(np.float32) for p, v in sorted(params.items())}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request, tiny, routed, weights, examples):
  """A routed target, a drafter that is like it, and prompts of unequal lengths with limits of their own."""
  config = tiny(request.param, absolute_positions=40, tied_head=False, decoder_layers=1, encoder_layers=1)
  model = routed(config, tasks=3)
  params = weights(model)
  batch = prompts(examples(ROWS, inputs=INPUTS), request.param, INPUTS, 1, [0, 1, 2, 2, 1, 0, 0, 1])
  limits = np.array([16, 16, 5, 1, 16, 11, 0, 16], np.int32)
  return SimpleNamespace(model=model, params=params, drafter=near(params, 0.3, 1), batch=batch, limits=limits)


def test_greedy_token_for_token(case, mesh1):
  """Rows that accept different parts of their drafts, stop at their ends and limits: the tokens of greedy decoding."""
  free = make_decode([case.model], mesh1, Settings(eos_ids=(-1,)))([case.params], [case.batch], case.limits, None)
  tokens = np.asarray(free.tokens)[:, 0]
  # Ends some rows in the middle and leaves others to their limits; the pair of tokens ends another.
  ends = lambda t: np.where((tokens == t).any(1), (tokens == t).argmax(1), ROOM)
  eos = next(int(t) for t in np.unique(tokens) if t and (ends(t) < 10).any() and (ends(t)[[0, 1, 4, 7]] == ROOM).any())
  row = next(r for r in (0, 1, 4, 7) if eos not in tokens[r])
  settings = Settings(eos_ids=(eos,), stop_ids=(tuple(map(int, tokens[row, 6:8])),))
  expected = make_decode([case.model], mesh1, settings)([case.params], [case.batch], case.limits, None)
  assert len(set(np.asarray(expected.lengths)[:, 0].tolist())) > 3
  decode = make_speculative([case.model], case.model, mesh1, settings, draft=3)
  for drafter in (case.drafter, case.params, near(case.params, 5.0, 2)):
    found, rounds = decode([case.params, drafter], [case.batch] * 2, case.limits, None)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.lengths, expected.lengths)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-4, atol=1e-3)
    rounds, after = np.asarray(rounds), np.maximum(np.asarray(expected.lengths) - 1, 0)
    assert (rounds <= after).all() and (rounds >= -(-after // 4)).all()
    if drafter is case.params:  # it is always right
      np.testing.assert_array_equal(rounds, -(-after // 4))
    elif drafter is case.drafter:
      assert 1.2 < after.sum() / rounds.sum() < 3.9


def test_company_is_nothing(case, mesh1):
  """With keys of their own, rows draw the same whatever else is in the batch, in several samples each."""
  settings = Settings(eos_ids=(-1,), temperature=0.9, top_p=0.95, samples=2)
  decode = make_speculative([case.model], case.model, mesh1, settings, draft=2)
  keys = sampling.row_keys(jax.random.key(3), jnp.arange(ROWS))
  found, _ = decode([case.params, case.drafter], [case.batch] * 2, case.limits, keys)
  order = np.array([5, 0, 0, 7, 2, 1, 6, 3])
  moved = {name: each[order] for name, each in case.batch.items()}
  again, _ = decode([case.params, case.drafter], [moved] * 2, case.limits[order], keys[order])
  np.testing.assert_array_equal(again.tokens, np.asarray(found.tokens)[order])
  assert (np.asarray(found.tokens)[0, 0] != np.asarray(found.tokens)[0, 1]).any()


def test_mesh_is_nothing(case, mesh1, mesh_of):
  """Rows split four ways and heads two: each row still goes at its own pace."""
  mesh, settings = mesh_of(4, 1, 2), Settings(eos_ids=(-1,))
  expected = make_decode([case.model], mesh1, settings)([case.params], [case.batch], case.limits, None)
  decode = make_speculative([case.model], case.model, mesh, settings, draft=3)
  shardings = case.model.shardings(mesh)
  params = [{p: jax.device_put(v, shardings[p]) for p, v in each.items()} for each in (case.params, case.drafter)]
  found, _ = decode(params, [place(case.batch, mesh)] * 2, case.limits, None)
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  np.testing.assert_array_equal(found.lengths, expected.lengths)


@pytest.fixture(scope="module")
def toy(tiny, weights):
  """Targets and a drafter of TOY tokens, the probabilities of every sequence, and the prompt they follow.

  EOS is 1: sequences are the tuples that end there, and those of three tokens that do not.
  """
  config = tiny("causal", vocab_size=TOY, tied_head=False, decoder_layers=1)
  model = plain(config)
  draw = lambda seed: {p: v * (0.25 if "projection" in p else 1.0) for p, v in weights(model, seed).items()}
  target, drafter = draw(0), draw(1)
  inputs = np.array([3, 2], np.int32)
  batch = prompts([{"inputs": inputs}], "causal", 2, 1, [0])
  return SimpleNamespace(model=model, target=target, drafter=drafter, inputs=inputs, batch=batch)


def sequence_probabilities(toy, settings: Settings, params, combine=None) -> dict[tuple[int, ...], float]:
  """Exact probability of every sequence, teacher-forced: all that begin with two given tokens in one row."""
  pairs = list(product(range(TOY), repeat=2))
  given = [{"inputs": toy.inputs, "targets": np.array([*pair, 0], np.int32)} for pair in pairs]
  batch = padded(given, "causal", len(toy.inputs), 3, [0] * len(pairs), rows=len(pairs), eos_id=-1)
  logits = [jax.jit(lambda p, b: toy.model.merge(p)(b).logits)(each, batch) for each in params]
  at_targets = [each[:, len(toy.inputs) : len(toy.inputs) + 3].reshape(-1, TOY) for each in logits]
  combined = at_targets[0] if combine is None else combine(at_targets, ())[0]
  p = np.asarray(jax.nn.softmax(sampling.warp(combined, settings)), np.float64).reshape(TOY, TOY, 3, TOY)
  found = {}
  for a, b, c in product(range(TOY), repeat=3):
    if a == 1:
      found[(a,)] = p[0, 0, 0, a]
    elif b == 1:
      found[(a, b)] = p[0, 0, 0, a] * p[a, 0, 1, b]
    else:
      found[(a, b, c)] = p[0, 0, 0, a] * p[a, 0, 1, b] * p[a, b, 2, c]
  return {sequence: float(each) for sequence, each in found.items() if each > 0}


def p_value(toy, decode, params, expected, seed: int, draws: int = 20_000) -> float:
  """Of a chi-square test of 20,000 outputs against the probabilities of all sequences; rare ones share a cell."""
  rows = draws // 5
  batch = {name: np.repeat(each, rows, axis=0) for name, each in toy.batch.items()}
  counts: dict[tuple[int, ...], int] = {}
  for repeat in range(5):
    key = jax.random.fold_in(jax.random.key(seed), repeat)
    found, _ = decode(params, [batch] * len(params), np.full(rows, 3, np.int32), key, room=3)
    for tokens, length in zip(np.asarray(found.tokens)[:, 0], np.asarray(found.lengths)[:, 0], strict=True):
      sequence = tuple(tokens[:length].tolist())
      counts[sequence] = counts.get(sequence, 0) + 1
  assert set(counts) <= set(expected), "a sequence that has no probability"
  observed = np.array([counts.get(s, 0) for s in expected])
  wanted = np.array(list(expected.values())) * draws / sum(expected.values())
  rare = wanted < 10
  if rare.any():
    observed = np.append(observed[~rare], observed[rare].sum())
    wanted = np.append(wanted[~rare], wanted[rare].sum())
  return stats.chisquare(observed, wanted).pvalue


SAMPLED = Settings(temperature=1.3, eos_ids=(1,))


@pytest.fixture(scope="module")
def exact(toy):
  found = sequence_probabilities(toy, SAMPLED, [toy.target])
  assert abs(sum(found.values()) - 1) < 1e-5 and len(found) > 60
  return found


@pytest.mark.parametrize("draft", [1, 2, 4])
def test_distribution_is_the_targets(toy, exact, mesh1, draft):
  """20,000 sequences of up to three tokens, drafted by another model: a chi-square test does not tell them apart."""
  decode = make_speculative([toy.model], toy.model, mesh1, SAMPLED, draft=draft)
  assert p_value(toy, decode, [toy.target, toy.drafter], exact, seed=draft) > 0.01


def test_the_drafters_distribution_is_another(toy, exact, mesh1):
  """The two models differ, so that what the test above shows is the work of acceptance."""
  decode = make_decode([toy.model], mesh1, SAMPLED)
  drafted = lambda params, *rest, **more: (decode(params, *rest, **more), None)
  assert p_value(toy, drafted, [toy.target], exact, seed=0) > 0.01
  assert p_value(toy, drafted, [toy.drafter], exact, seed=0) < 1e-6


def accept_all(p, q, tokens, keys):
  kept = jnp.full(len(tokens), tokens.shape[1])
  return kept, sampling.draw(keys, jnp.log(p[:, -1]))


def no_residual(p, q, tokens, keys):
  """Rejects as it should, and then draws from p itself."""
  kept, _ = verify(p, q, tokens, keys)
  return kept, sampling.draw(keys, jnp.log(p[jnp.arange(len(kept)), kept]))


def a_little_too_generous(p, q, tokens, keys):
  """Accepts with probability min(1, p / 0.7 q): a slack that a loose test would miss."""
  return verify(p, 0.7 * q, tokens, keys)


@pytest.mark.parametrize("wrong", [accept_all, no_residual, a_little_too_generous])
def test_wrong_acceptance_is_caught(toy, exact, mesh1, monkeypatch, wrong):
  """The test has the power to see it."""
  monkeypatch.setattr(speculative, "verify", wrong)
  decode = make_speculative([toy.model], toy.model, mesh1, SAMPLED, draft=2)
  assert p_value(toy, decode, [toy.target, toy.drafter], exact, seed=2) < 1e-6


def test_filters_hold_for_both(toy, mesh1):
  """Top-k changes both distributions; outputs follow the filtered target and never leave it."""
  settings = Settings(temperature=0.8, top_k=3, eos_ids=(1,))
  expected = sequence_probabilities(toy, settings, [toy.target])
  assert len(expected) < 30
  decode = make_speculative([toy.model], toy.model, mesh1, settings, draft=3)
  assert p_value(toy, decode, [toy.target, toy.drafter], expected, seed=5) > 0.01


def test_a_combination_can_be_the_target(toy, weights, mesh1):
  """Emulated fine-tuning, drafted by the tuned small model: the combination's distribution, in 20,000 draws."""
  models = [toy.model] * 3
  params = [toy.target, *(near(toy.target, 0.5, s) for s in (7, 8))]
  combine = Emulated((0.8,))
  expected = sequence_probabilities(toy, SAMPLED, params, combine)
  decode = make_speculative(models, toy.model, mesh1, SAMPLED, combine=combine, draft=2)
  assert p_value(toy, decode, [*params, params[-1]], expected, seed=6) > 0.01


def test_state_follows_the_tokens_that_stay(toy, mesh1):
  """What a fusion chose at every step of every row is what it chooses without a drafter."""
  fusion, settings = LogitFusion(steps=ROOM), Settings(eos_ids=(-1,))
  batch = prompts([{"inputs": np.array(each)} for each in ([3, 2], [4, 4], [0], [2, 3])], "causal", 2, 1, [0] * 4)
  limits = np.array([16, 9, 16, 1])
  params = [toy.target, *(near(toy.target, 1.0, s) for s in (7, 8, 9))]
  expected = make_decode([toy.model] * 4, mesh1, settings, combine=fusion)(params, [batch] * 4, limits, None)
  decode = make_speculative([toy.model] * 4, toy.model, mesh1, settings, combine=fusion, draft=3)
  found, rounds = decode([*params, params[0]], [batch] * 5, limits, None)
  np.testing.assert_array_equal(found.tokens, expected.tokens)
  lengths = np.asarray(found.lengths)[:, 0]
  np.testing.assert_array_equal(found.state["step"], lengths)
  made = np.arange(ROOM) < lengths[:, None]
  for name in ("expert", "alpha"):
    np.testing.assert_array_equal(np.asarray(found.state[name])[made], np.asarray(expected.state[name])[made])
    assert len(np.unique(np.asarray(found.state[name])[made])) > 1
  assert np.asarray(rounds).sum() < (lengths - 1).sum()


def test_verify_where_p_equals_q():
  """All of a draft stays, and the next token is drawn from p; a token that p rules out never stays."""
  p = jnp.tile(jnp.array([0.5, 0.5, 0.0]), (64, 3, 1))
  keys = jax.random.split(jax.random.key(0), 64)
  kept, following = verify(p, p[:, :2], jnp.zeros((64, 2), jnp.int32), keys)
  assert (np.asarray(kept) == 2).all() and set(np.asarray(following).tolist()) == {0, 1}
  q = jnp.tile(jnp.array([0.0, 0.5, 0.5]), (64, 2, 1))
  kept, following = verify(p, q, jnp.full((64, 2), 2), keys)
  assert (np.asarray(kept) == 0).all() and (np.asarray(following) == 0).all()


def test_drafters_of_another_width(toy, tiny, weights, mesh1):
  """Rows that pad the drafter's vocabulary are never emitted; tokens that it lacks are."""
  settings = Settings(eos_ids=(-1,))
  expected = make_decode([toy.model], mesh1, settings)([toy.target], [toy.batch], np.array([8]), None)
  for width in (TOY - 2, TOY + 3):
    drafter = plain(tiny("causal", vocab_size=width, tied_head=False, decoder_layers=1))
    decode = make_speculative([toy.model], drafter, mesh1, settings, draft=2)
    found, _ = decode([toy.target, weights(drafter)], [toy.batch] * 2, np.array([8]), None)
    np.testing.assert_array_equal(found.tokens, expected.tokens)


@pytest.mark.parametrize("given", [{"beams": 2}, {"repetition_penalty": 1.2}])
def test_settings_that_do_not_fit(toy, mesh1, given):
  with pytest.raises(UserError, match=rf"decode\.{next(iter(given))}"):
    make_speculative([toy.model], toy.model, mesh1, Settings(**given))
  with pytest.raises(UserError, match="draft of 0 tokens"):
    make_speculative([toy.model], toy.model, mesh1, Settings(), draft=0)
