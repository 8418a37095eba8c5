"""Host time of a training step: everything that the loop does beside waiting for the compiled step."""

import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console

from mtx.bench.examples import mixture
from mtx.bench.row import Row, Target, measured
from mtx.bench.trainer import Batch, Shape, Trainer, routed
from mtx.data.feed import feed
from mtx.parallel.rules import batch_sharding, replicated
from mtx.report.reporter import Reporter
from mtx.training.loop import Every, fit
from mtx.training.state import State

NAME, UNIT, TARGET = "host", "ms/step", Target(2.0, at_most=True, unit="ms")
WAIT = 0.010  # seconds; a real step of this shape leaves the feed's thread a hundred times as long
LOG_EVERY = 10  # as stages log


def host(shape: Shape = Shape(), *, steps: int = 200, superni: Path | None = None, cache: Path | None = None) -> Row:
  """Milliseconds a step of `mtx.training.loop.fit`, with the compiled step replaced by one that does nothing.

  What is timed is real: `next` of the feed, counting its tokens, placing the batch, dispatching a compiled function
  with the step's arguments, donation, shardings and results, fetching metrics and writing them to the logs and the
  progress display. The stand-in then sleeps for WAIT, in which the feed's thread works as it does behind a real step;
  the sleep is subtracted.
  """
  trainer = routed(shape)
  with tempfile.TemporaryDirectory() as folder:
    source, data = mixture(superni, cache, Path(folder) / "cache")
    batches = iter(
      feed(
        source,
        architecture="encdec",
        batch=shape.batch,
        inputs_length=shape.inputs,
        targets_length=shape.targets,
        rows="task",
      )
    )
    idle = Idle(trainer, next(batches))
    state, frozen = trainer.parameters
    reporter = Reporter(Path(folder), Console(file=io.StringIO()))
    log = reporter.log(NAME)
    with reporter.progress(NAME, steps, 0) as progress:

      def write(n: int, metrics: dict) -> None:
        values = {k: float(v) for k, v in metrics.items() if jnp.ndim(v) == 0}
        log.scalars(n, values)
        progress.update(n, loss=values["loss"], tokens_per_second=values["tokens_per_second"])

      def run(state: State, steps: int) -> State:
        nothing = lambda *_: None
        every = Every(LOG_EVERY, 0, 0)
        return fit(
          state,
          frozen,
          idle,
          batches,
          start=0,
          steps=steps,
          every=every,
          key=trainer.key,
          mesh=trainer.mesh,
          log=write,
          evaluate=nothing,
          save=nothing,
        )

      state = run(state, LOG_EVERY)  # compiles, opens files
      idle.slept = 0.0
      start = time.perf_counter()
      trainer.parameters[0] = run(state, steps)
      spent = time.perf_counter() - start - idle.slept
    log.close()
    batches.close()
  arrays = len(jax.tree.leaves((trainer.abstract, trainer.frozen_shapes)))
  return measured(
    NAME,
    UNIT,
    1e3 * spent / steps,
    TARGET,
    f"{shape}; {data}; mean of {steps} steps of the training loop with the step replaced by an empty compiled function "
    f"of its {arrays} arrays; logs every {LOG_EVERY}",
  )


class Idle:
  """A step that is dispatched like the real one, does none of its work, and waits; `slept` sums up the waiting."""

  def __init__(self, trainer: Trainer, batch: Batch):
    arguments = (trainer.abstract, trainer.frozen_shapes, batch, trainer.key)
    metrics = jax.eval_shape(trainer.step, *arguments)[1]

    def nothing(state, frozen, batch, key):
      zeros = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics)
      return State(state.step + 1, state.train, state.opt), zeros

    self.slept = 0.0
    whole = replicated(trainer.mesh)
    self._dispatch: Callable = jax.jit(
      nothing,
      donate_argnums=0,
      in_shardings=(trainer.shardings, trainer.frozen_shardings, batch_sharding(trainer.mesh), whole),
      out_shardings=(trainer.shardings, whole),
      keep_unused=True,  # else the frozen arrays would not be passed
    )

  def __call__(self, *arguments):
    results = self._dispatch(*arguments)
    start = time.perf_counter()
    time.sleep(WAIT)
    self.slept += time.perf_counter() - start
    return results
