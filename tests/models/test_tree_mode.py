"""Flax's tree mode, which is to become its default: the same model, the same losses."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import flax
import jax
import numpy as np

from mtx.adapters.poly import MHR
from mtx.adapters.site import inject
from mtx.data.convert import padded
from mtx.models.build import build
from mtx.models.sizes import PRESETS
from mtx.objectives.cross_entropy import cross_entropy
from mtx.parallel.mesh import AXES
from mtx.training.optimizer import optimizer
from mtx.training.parameters import blueprint
from mtx.training.state import abstract_state, initial_state, state_shardings
from mtx.training.step import make_step

ROOT = Path(__file__).parents[2]


def three_losses() -> list[float]:
  """A decoder with MHR, all of it trained, with dropout, on one device."""
  config = PRESETS["t5_micro"]()
  config.update(d_model=16, heads=2, d_kv=8, d_ff=32, vocab_size=48, architecture="prefix", dropout=0.1)

  def make(rngs):
    model = build(config, rngs=rngs)
    inject(model, 3, rngs, pattern=r".*/wo", method=partial(MHR, skills=3, splits=2, rank=2))
    return model

  model = blueprint(make)
  rng = np.random.default_rng(0)
  params = {p: np.asarray(0.3 * rng.normal(size=s.shape), np.float32) for p, s in sorted(model.shapes.items())}
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)
  tx = optimizer(model.shapes, {".*": 1e-2}, 3)
  shardings = state_shardings(abstract_state(model.shapes, tx), model.shardings(mesh), mesh)
  state = initial_state(jax.device_put(params, shardings.train), tx, shardings)
  step = make_step(model, partial(cross_entropy, tasks=3), tx, shardings, {}, mesh)
  tokens = lambda n: rng.integers(3, 48, n).astype(np.int32)
  examples = [{"inputs": tokens(6), "targets": tokens(4)} for _ in range(3)]
  batch = padded(examples, "prefix", 8, 5, [0, 1, 2], rows=3)
  losses = []
  for _ in range(3):
    state, metrics = step(state, {}, batch, jax.random.key(1))
    losses.append(float(metrics["loss"]))
  return losses


def test_tree_mode_equals_graph_mode():
  """Three training steps in a process of its own: equal losses to 1e-6, and they fall."""
  environment = {**os.environ, "NNX_GRAPH_MODE": "false", "NNX_GRAPH_UPDATES": "false"}
  environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
  done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  modes, losses = json.loads(done.stdout)
  assert modes == [False, False]
  np.testing.assert_allclose(losses, three_losses(), rtol=1e-6)
  assert losses[0] > losses[1] > losses[2]


if __name__ == "__main__":
  print(json.dumps([[flax.config.nnx_graph_mode, flax.config.nnx_graph_updates], three_losses()]))
