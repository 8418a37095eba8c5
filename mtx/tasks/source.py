"""Tasks in SeqIO's registries, and what mtx must know beside them.

SeqIO brings TensorFlow, so this module is also the one place that quietens it.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mtx.tasks.replay import Replay
from mtx.tasks.task import TaskInfo, TextTask


@contextlib.contextmanager
def _native_silence() -> Iterator[None]:
  """Drops what C++ writes to stderr: TensorFlow's first lines come before any log level holds."""
  sys.stderr.flush()
  kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
  os.dup2(nowhere, 2)
  try:
    yield
  finally:
    os.dup2(kept, 2)
    os.close(kept)
    os.close(nowhere)


os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
with _native_silence():
  import seqio
  import tensorflow as tf

  # It only tokenises here, and must leave the accelerators' memory to JAX. It can not be told so any more
  # when the program around mtx has used TensorFlow already.
  with contextlib.suppress(RuntimeError):
    tf.config.set_visible_devices([], "GPU")


@dataclass(frozen=True)
class Source:
  """Tasks that are registered with SeqIO and ready to be cached.

  Attributes:
    name: of the provider, or of the mixture; part of messages and result rows.
    vocabulary: the one vocabulary of inputs and targets.
    train: SeqIO Mixture to learn from; its tasks have splits `train` and, for a loss curve, `validation`.
    heldout: SeqIO Mixture of tasks never trained on; its tasks have a split `test`.
    categories: task name -> category, the unit between one task and all of them.
    metrics: task name -> names in `mtx.tasks.metrics.METRICS`.
    sources: task name -> the provider it is from.
    parts: name -> SeqIO Mixture of all training tasks with other rates, for single stages.
    rates: SeqIO Mixture -> its rates, from its tasks, once these are counted; for others SeqIO's hold.
    replays: SeqIO Mixture -> task -> the part of its training examples that is drawn; of others all are. SeqIO's own
      view of a mixture does not know it, the cache does.
    texts: task name -> the task as text; the cache is built from it without TensorFlow.
  """

  name: str
  vocabulary: seqio.Vocabulary
  train: str
  heldout: str
  categories: Mapping[str, str] = field(default_factory=dict)
  metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
  sources: Mapping[str, str] = field(default_factory=dict)
  parts: Mapping[str, str] = field(default_factory=dict)
  rates: Mapping[str, Callable[[Sequence[TaskInfo]], Sequence[float]]] = field(default_factory=dict)
  replays: Mapping[str, Mapping[str, Replay]] = field(default_factory=dict)
  texts: Mapping[str, TextTask] = field(default_factory=dict)
