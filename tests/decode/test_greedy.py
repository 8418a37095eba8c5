"""Decoding with a cache is teacher forcing one token at a time, whatever stands in the batch and on whichever mesh."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtx.data.convert import ARCHITECTURES, padded, prompts
from mtx.decode.greedy import make_greedy
from mtx.parallel.rules import place

INPUTS, STEPS, ROWS, TASKS = 9, 7, 8, 3


@dataclass
class Case:
  architecture: str
  model: Any
  params: dict
  examples: list
  task_ids: list[int]
  tokens: np.ndarray  # greedy continuation of every example, whatever ends it: [rows, steps]
  logits: np.ndarray  # the logits that chose them: [rows, steps, vocab]

  @property
  def eos_id(self) -> int:
    """A token that ends some rows early, one of them not at once, and leaves others unfinished."""
    ends = lambda eos: np.where((self.tokens == eos).any(1), (self.tokens == eos).argmax(1), STEPS)
    fits = [e for e in np.unique(self.tokens) if e and 0 < ends(e).min() < STEPS - 2 and (ends(e) == STEPS).any()]
    return int(fits[0])

  def prompts(self, order=range(ROWS)):
    chosen = [self.examples[i] for i in order]
    return prompts(chosen, self.architecture, INPUTS, STEPS, [self.task_ids[i] for i in order])

  def until(self, eos_id: int) -> np.ndarray:
    ended = np.cumsum(self.tokens == eos_id, axis=1) - (self.tokens == eos_id) > 0
    return np.where(ended, 0, self.tokens)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request, tiny, routed, weights, examples):
  """A routed model with learned positions, and what it says when every step's logits are kept."""
  model = routed(tiny(request.param, absolute_positions=12, tied_head=False), tasks=TASKS)
  params = weights(model)

  @jax.jit
  def decode(params, batch):
    logits, cache = model.merge(params).prefill(batch, STEPS)

    def one(carry, _):
      logits, cache = carry
      token = logits.argmax(-1).astype(jnp.int32)
      return model.merge(params).decode_step(token, cache), (token, logits)

    _, (tokens, logits) = jax.lax.scan(one, (logits, cache), None, length=STEPS)
    return tokens.swapaxes(0, 1), logits.swapaxes(0, 1)

  found = Case(request.param, model, params, examples(ROWS, inputs=INPUTS), [0, 1, 2, 2, 1, 0, 0, 1], None, None)
  found.tokens, found.logits = (np.asarray(x) for x in decode(params, found.prompts()))
  assert len({len(e["inputs"]) for e in found.examples}) > 3
  assert len(np.unique(found.tokens)) > 10
  return found


@pytest.fixture(scope="module")
def greedy(case, mesh1):
  return make_greedy(case.model, mesh1, eos_id=case.eos_id)


def test_cache_equals_teacher_forcing(case):
  """The whole example at once gives the logits of every step, to 1e-5 of their scale."""
  whole = [
    {"inputs": e["inputs"], "targets": t.astype(np.int32)} for e, t in zip(case.examples, case.tokens, strict=True)
  ]
  batch = padded(whole, case.architecture, INPUTS, STEPS, case.task_ids, rows=ROWS, eos_id=-1)
  logits = np.asarray(jax.jit(lambda p, b: case.model.merge(p)(b).logits)(case.params, batch))
  at_targets = logits[batch["decoder_loss_weights"] > 0].reshape(ROWS, STEPS, -1)
  np.testing.assert_allclose(at_targets, case.logits, rtol=0, atol=1e-5 * np.abs(logits).max())


def test_rows_stop_at_eos(case, greedy):
  """Every row is its continuation up to and with EOS, then padding; rows that do not end are whole."""
  tokens = np.asarray(greedy(case.params, case.prompts(), STEPS))
  np.testing.assert_array_equal(tokens, case.until(case.eos_id))
  ended = (tokens == case.eos_id).any(axis=1)
  assert ended.any() and not ended.all()


def test_batch_composition_is_nothing(case, greedy):
  """Another order, repeated rows and rows that only fill the batch: each example keeps its tokens."""
  order = [6, 0, 3, 3, 5, 1]
  batch = {k: np.pad(v, [(0, ROWS - len(order))] + [(0, 0)] * (v.ndim - 1)) for k, v in case.prompts(order).items()}
  tokens = np.asarray(greedy(case.params, batch, STEPS))
  np.testing.assert_array_equal(tokens[: len(order)], case.until(case.eos_id)[order])
  assert not tokens[len(order) :].any()


def test_mesh_is_nothing(case, mesh8):
  """Data, fsdp and tensor 2 each: the same tokens as on one device."""
  shardings = case.model.shardings(mesh8)
  params = {p: jax.device_put(v, shardings[p]) for p, v in case.params.items()}
  greedy = make_greedy(case.model, mesh8, eos_id=case.eos_id)
  tokens = np.asarray(greedy(params, place(case.prompts(), mesh8), STEPS))
  np.testing.assert_array_equal(tokens, case.until(case.eos_id))
