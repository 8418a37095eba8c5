"""The input pipeline beside the appetite of the step that it feeds."""

import tempfile
import time
from pathlib import Path
from statistics import median

from mtx.bench.clock import interleaved
from mtx.bench.examples import mixture
from mtx.bench.packing import real_tokens
from mtx.bench.row import Row, Target, compared
from mtx.bench.trainer import T5_SMALL, Shape, routed
from mtx.data.feed import feed

NAME, UNIT, TARGET = "pipeline", "tokens/s", Target(5.0)


def pipeline(
  shape: Shape = T5_SMALL,
  *,
  batches: int = 100,
  repeats: int = 3,
  superni: Path | None = None,
  cache: Path | None = None,
) -> Row:
  """Real tokens/s of the feed alone over those that the MHR step would take if all rows were full.

  The feed reads, mixes, packs and converts on one thread; prefetched batches are used up before the clock starts.
  """
  trainer, fixed = routed(shape), shape.random_batch()
  with tempfile.TemporaryDirectory() as folder:
    source, data = mixture(superni, cache, Path(folder) / "cache")
    stream = iter(
      feed(source, architecture="encdec", batch=shape.batch, inputs_length=shape.inputs, targets_length=shape.targets)
    )
    for _ in range(batches):
      next(stream)
    tokens, seconds = [], []
    for _ in range(repeats):
      start = time.perf_counter()
      taken = sum(real_tokens(next(stream)) for _ in range(batches))
      tokens.append(taken)
      seconds.append(time.perf_counter() - start)
    stream.close()
  step = median(interleaved({"step": lambda: trainer(fixed)}, repeats)["step"])
  return compared(
    NAME,
    UNIT,
    median(n / s for n, s in zip(tokens, seconds, strict=True)),
    shape.tokens / step,
    TARGET,
    f"{shape}; {data}, packed; medians of {repeats} x {batches} batches and of {repeats} MHR steps ({step:.2f} s)",
  )
