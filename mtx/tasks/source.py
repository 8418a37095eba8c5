"""What every provider of tasks returns: names in SeqIO's registries, and what mtx must know beside them.

A provider is one file in `mtx/tasks` with one `@gin.configurable` function that registers SeqIO Tasks and Mixtures
and returns a `Source`. SeqIO brings TensorFlow, so this module is also the one place that quietens it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

# Before TensorFlow is imported: its start-up lines would bury mtx's own. It only tokenises here, and must leave
# the accelerators' memory to JAX, so `hide_accelerators` below takes them away from it.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import seqio
import tensorflow as tf


def hide_accelerators() -> None:
  """Keeps TensorFlow off GPUs. Does nothing when TensorFlow has already taken one."""
  try:
    tf.config.set_visible_devices([], "GPU")
  except RuntimeError:  # devices already initialised by the host program
    pass


hide_accelerators()


@dataclass(frozen=True)
class Source:
  """Tasks that are registered with SeqIO and ready to be cached.

  Attributes:
    name: of the provider, `superni` for example; part of messages and result rows.
    vocabulary: the one vocabulary of inputs and targets.
    train: SeqIO Mixture to learn from; its tasks have splits `train` and, for a loss curve, `validation`.
    heldout: SeqIO Mixture of tasks never trained on; its tasks have a split `test`.
    categories: task name -> category, the unit between one task and all of them.
    metrics: task name -> names in `mtx.tasks.metrics.METRICS`.
  """

  name: str
  vocabulary: seqio.Vocabulary
  train: str
  heldout: str
  categories: Mapping[str, str] = field(default_factory=dict)
  metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
