"""Host time of a training step: everything that the loop does beside waiting for the compiled step."""

import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from mtx.bench.examples import mixture
from mtx.bench.row import Row, Target, measured
from mtx.bench.trainer import T5_SMALL, Batch, Shape, Trainer, routed
from mtx.data.feed import feed
from mtx.parallel.rules import batch_sharding, replicated
from mtx.report.reporter import Reporter
from mtx.training.loop import Every, fit
from mtx.training.state import State

NAME, UNIT, TARGET = "host", "ms/step", Target(2.0, at_most=True, unit="ms")
WAIT = 0.010  # seconds; a real step of this shape leaves the feed's thread a hundred times as long
LOG_EVERY = 10  # as stages log


def host(shape: Shape = T5_SMALL, *, steps: int = 200, superni: Path | None = None, cache: Path | None = None) -> Row:
  """Milliseconds a step of `mtx.training.loop.fit`, with the compiled step replaced by one that does nothing.

  What is timed is real: `next` of the feed, counting its tokens, placing the batch, dispatching a compiled function
  with the step's arguments, donation, shardings and results, fetching metrics and writing them to the logs and the
  progress display. The stand-in then sleeps for WAIT, in which the feed's thread works as it does behind a real step;
  the sleep is left out. Medians of the sum over LOG_EVERY steps: what else the machine does counts little, logs count.
  """
  trainer = routed(shape)
  with tempfile.TemporaryDirectory() as folder:
    source, data = mixture(superni, cache, Path(folder) / "cache")
    lengths = {"inputs_length": shape.inputs, "targets_length": shape.targets}
    batches = iter(feed(source, architecture="encdec", batch=shape.batch, rows="task", **lengths))
    idle = Idle(trainer, next(batches))
    reporter = Reporter(Path(folder), Console(file=io.StringIO()))
    log = reporter.log(NAME)
    with reporter.progress(NAME, steps, 0) as progress:

      def write(n: int, metrics: dict) -> None:
        log.scalars(n, {k: float(v) for k, v in metrics.items() if np.ndim(v) == 0})
        progress.update(n, loss=metrics["loss"], tokens_per_second=metrics["tokens_per_second"])

      for number in (LOG_EVERY, steps):  # the first run compiles, opens files, fills the prefetch buffer
        idle.seconds.clear()
        state, frozen = trainer.parameters
        trainer.parameters[0] = fit(
          state,
          frozen,
          idle,
          batches,
          start=0,
          steps=number,
          every=Every(LOG_EVERY, 0, 0),
          key=trainer.key,
          mesh=trainer.mesh,
          log=write,
          evaluate=lambda *_: None,
          save=lambda *_: None,
        )
    log.close()
    batches.close()
  blocks = [sum(idle.seconds[i : i + LOG_EVERY]) for i in range(0, len(idle.seconds), LOG_EVERY)]
  arrays = len(jax.tree.leaves((trainer.abstract, trainer.frozen_shapes)))
  return measured(
    NAME,
    UNIT,
    1e3 * median(blocks) / LOG_EVERY,
    TARGET,
    f"{shape}; {data}; the training loop with the step replaced by an empty compiled function of its {arrays} arrays; "
    f"median of {len(blocks)} x {LOG_EVERY} steps, one in {LOG_EVERY} with a log; "
    f"fastest {1e3 * min(blocks) / LOG_EVERY:.2f} ms: what lies between is other work on the machine",
  )


class Idle:
  """A step that is dispatched like the real one, does none of its work, and waits.

  Attributes:
    seconds: from the end of one waiting to the beginning of the next, for every step.
  """

  def __init__(self, trainer: Trainer, batch: Batch):
    arguments = (trainer.abstract, trainer.frozen_shapes, batch, trainer.key)
    metrics = jax.eval_shape(trainer.step, *arguments)[1]

    def nothing(state, frozen, batch, key):
      zeros = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), metrics)
      return State(state.step + 1, state.train, state.opt), zeros

    self.seconds: list[float] = []
    self._woke = 0.0
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
    self.seconds.append(time.perf_counter() - self._woke)
    time.sleep(WAIT)
    self._woke = time.perf_counter()
    return results
