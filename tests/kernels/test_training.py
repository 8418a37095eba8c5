"""T5 trained through the kernels: the same curve as without them, and the program that a TPU would run."""

import re
from importlib.util import find_spec

import gin
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from mtx.bench.trainer import EVERYTHING, Shape, Trainer
from mtx.parallel.mesh import AXES, make_mesh
from mtx.parallel.rules import place
from pallas_kernels.ahead import devices

LONG = 512


def trainer(shape: Shape, impl: str, mesh: Mesh) -> Trainer:
  """All parameters of a T5 are trained."""
  with gin.unlock_config():
    gin.bind_parameter("attention.impl", impl)
  return Trainer(shape.config(), shape.tasks, EVERYTHING, mesh=mesh)


def curve(impl: str, steps: int) -> np.ndarray:
  """Losses on a mesh of 2 x 2 x 2, of rows with padding."""
  shape = Shape("t5_micro", vocabulary=64, batch=8, inputs=24, targets=16)
  run = trainer(shape, impl, make_mesh(2, 2, 2))
  batch = dict(shape.random_batch())
  for name in ("encoder_segment_ids", "decoder_segment_ids", "decoder_loss_weights"):
    batch[name] = np.where(np.arange(batch[name].shape[1]) < 13, batch[name], 0).astype(batch[name].dtype)
  program, placed, losses = run.compiled(batch), place(batch, run.mesh), []
  state, frozen = run.parameters
  for _ in range(steps):
    state, metrics = program(state, frozen, placed, run.key)
    losses.append(float(metrics["loss"]))  # waits: steps of eight CPU devices that overlap may block each other
  return np.array(losses)


@pytest.mark.parametrize("steps", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_a_curve_does_not_know_who_computes_attention(steps):
  plain = curve("xla", steps)
  assert plain[-1] < plain[0] - 0.2
  np.testing.assert_allclose(curve("mosaic_tpu", steps), plain, rtol=1e-4)


@pytest.mark.skipif(find_spec("libtpu") is None, reason="libtpu, which compiles for TPUs, is not installed")
@pytest.mark.parametrize("impl", ["xla", "mosaic_tpu"])
def test_the_step_on_eight_tpus_holds_the_kernel_and_no_scores(impl):
  """Of the dense form it does hold scores: the test sees what it looks for."""
  shape = Shape("t5_micro", vocabulary=384, batch=8, inputs=LONG, targets=LONG // 2)
  mesh = Mesh(np.array(devices("v5e")).reshape(2, 2, 2), AXES, axis_types=(AxisType.Auto,) * 3)
  program = trainer(shape, impl, mesh).compiled(shape.random_batch()).as_text()
  scores = re.findall(rf"\[(?:\d+,)*{LONG},{LONG}\]", program)
  kernels = re.findall(r'custom_call_target="tpu_custom_call"', program)
  assert bool(scores) == (impl == "xla")
  assert bool(kernels) == (impl == "mosaic_tpu")
