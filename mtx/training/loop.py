"""Runs steps: feed, place, step, now and then log, evaluate, save. Never waits for the device between logs."""

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from mtx.data.feed import FeedIterator
from mtx.parallel.rules import place
from mtx.training.parameters import Params
from mtx.training.state import State


@dataclass(frozen=True)
class Every:
  """Intervals in steps; 0 = never. The last step always logs, evaluates and saves."""

  log: int
  evaluate: int
  save: int


def fit(
  state: State,
  frozen: Params,
  step: Callable,
  batches: FeedIterator,
  *,
  start: int,
  steps: int,
  every: Every,
  key: PRNGKeyArray,
  mesh: Mesh,
  log: Callable[[int, dict[str, float]], None],
  evaluate: Callable[[State, int], None],
  save: Callable[[State, int, object], None],
) -> State:
  """Trains from step `start` to `steps`.

  Args:
    step: from `make_step`; donates the state.
    batches: a Grain iterator positioned at `start` (`get_state` gives its position for checkpoints).
    log: called with the metrics of every step since the last call, oldest first.
    evaluate, save: called after the step of that number.

  A SIGTERM (preemption) saves after the step in flight, and its evaluation if one is due, and ends the process with
  status 143.
  """
  pending: list[tuple[int, dict]] = []
  stop = _Preemption()
  tokens, clock = 0, time.perf_counter()
  with stop:
    for n in range(start + 1, steps + 1):
      batch = next(batches)
      tokens += _tokens(batch)
      state, metrics = step(state, frozen, place(batch, mesh), key)
      pending.append((n, metrics))
      due = lambda interval: n == steps or (interval > 0 and n % interval == 0)
      stopping = stop.asked
      if stopping or due(every.log) or due(every.evaluate) or due(every.save):
        fetched = jax.device_get(pending)
        elapsed = time.perf_counter() - clock
        for i, values in fetched:
          log(i, {**values, "tokens_per_second": tokens / elapsed, "steps_per_second": len(fetched) / elapsed})
        if due(every.evaluate):
          evaluate(state, n)
        # Last, so that a checkpoint of step n means that nothing of step n is left to do, whenever a kill comes.
        if stopping or due(every.save):
          save(state, n, batches.get_state())
        pending, tokens, clock = [], 0, time.perf_counter()
      if stopping:
        break
  if stop.asked:
    raise Preempted(n)
  return state


class Preempted(Exception):
  """The machine asked the process to go; everything up to `step` is saved."""

  def __init__(self, step: int):
    super().__init__(f"stopped by SIGTERM after step {step}; the same command goes on from there")
    self.step = step


class _Preemption:
  """Notes a SIGTERM instead of dying of it; only the main thread may install handlers."""

  asked = False

  def __enter__(self):
    self._main = threading.current_thread() is threading.main_thread()
    if self._main:
      self._before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "asked", True))
    return self

  def __exit__(self, *_):
    if self._main:
      signal.signal(signal.SIGTERM, self._before)


def _tokens(batch: dict[str, np.ndarray]) -> int:
  """Real tokens of a batch, padding not counted."""
  return int(sum((v > 0).sum() for k, v in batch.items() if k.endswith("segment_ids")))
