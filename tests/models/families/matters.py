"""A feature of a family shows in the logits of its tests: what makes no difference there is not tested."""

import jax
import numpy as np
from parity import Pair, features

from mtx.models.build import build
from mtx.training.parameters import blueprint


def check_matters(pair: Pair, **changes) -> None:
  """The same parameters give other logits, by more than 1 % of their scale, when the config has `changes`."""
  other = pair.config.copy_and_resolve_references()
  for field, value in changes.items():
    other[field] = value
  model = blueprint(lambda rngs: build(other, rngs=rngs))
  batch, _ = features(pair, "right")
  here, there = (
    np.asarray(jax.jit(lambda params, batch, m=m: m.merge(params)(batch).logits)(pair.params, batch))
    for m in (pair.model, model)
  )
  real = batch["decoder_segment_ids"] > 0
  assert np.abs(here - there)[real].max() > 0.01 * np.abs(here[real]).max(), changes
