"""Device memory of the MHR training step beside full fine-tuning, by the compiler's own analysis."""

from mtx.bench.row import Row, Target, compared
from mtx.bench.trainer import EVERYTHING, T5_SMALL, Shape, Trainer, routed

NAME, UNIT, TARGET = "memory", "MB", Target(0.6, at_most=True)


def memory(shape: Shape = T5_SMALL) -> Row:
  """Arguments + temporaries + outputs - aliases of either compiled step. Nothing runs, so nothing varies."""
  batch = shape.random_batch()
  full = Trainer(shape.config(), shape.tasks, EVERYTHING)
  return compared(
    NAME,
    UNIT,
    routed(shape).bytes(batch) / 1e6,
    full.bytes(batch) / 1e6,
    TARGET,
    f"{shape}; peer: full fine-tuning by the same step; AdamW on both; memory_analysis() of the compiled steps",
  )
