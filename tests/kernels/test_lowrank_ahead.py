"""The routed projection's kernels, compiled for chips that are not at hand."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name

from pallas_kernels import ahead
from pallas_kernels.lowrank import mosaic_tpu, triton

TOKENS, WIDTH, SPLITS, SKILLS, RANK = 4096, 2048, 4, 8, 16
ROWS = TOKENS // 512


def shapes(dtype=jnp.bfloat16, rows=ROWS, length=512, width=WIDTH):
  """x, kernel, a, b, w, and the gradient to y."""
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, dtype)
  x, block = shape(rows, length, width), width // SPLITS
  a, b = shape(SPLITS, SKILLS, block, RANK), shape(SPLITS, SKILLS, RANK, block)
  return x, shape(width, width), a, b, shape(rows, SPLITS, SKILLS), x


def gradients(projection, x, kernel, a, b, w, dy, ids=None, *, frozen=True):
  """y, and gradients to all but a frozen kernel."""
  y, back = jax.vjp(lambda *args: projection(*args, ids), x, kernel, a, b, w)
  dx, dkernel, *rest = back(dy)
  return y, dx, rest, None if frozen else dkernel


def flops(tokens, width, frozen=True):
  """Two dense products, three where W is trained. Of thin ones: two forward; three beside dx, and two for a and w.

  And per token what is [skill * rank] wide: weights spread (twice where there are gradients to them), skills added up.
  """
  wide, routes = SKILLS * RANK, SPLITS * SKILLS
  dense, thin, spread, added = width**2, width * wide, SPLITS * routes * wide, wide**2
  forward = dense + 2 * thin + spread + added
  to_x = dense + 3 * thin + 2 * spread + added
  to_a = 2 * thin + 2 * spread
  return 2 * tokens * (forward + to_x + to_a + (0 if frozen else dense))


@pytest.mark.parametrize("chip", ahead.TPUS)
def test_compiles_for_tpus(chip):
  """Flops as by the formula: W's gradient is there only where asked for. And all that lies between takes less memory
  than one activation does."""
  segments = jax.ShapeDtypeStruct((ROWS, 512), jnp.int32)
  compiled = ahead.compiled_for(chip, partial(gradients, mosaic_tpu.projection), *shapes(), segments)
  assert compiled.cost_analysis()["flops"] == pytest.approx(flops(TOKENS, WIDTH), rel=1e-3)
  assert compiled.memory_analysis().temp_size_in_bytes < TOKENS * WIDTH * 2


def test_only_a_trained_kernel_has_a_gradient():
  small = shapes(rows=1, width=512)
  for frozen in (True, False):
    compiled = ahead.compiled_for("v5e", partial(gradients, mosaic_tpu.projection, frozen=frozen), *small)
    assert compiled.cost_analysis()["flops"] == pytest.approx(flops(512, 512, frozen), rel=1e-2)


def test_nothing_is_projected_twice():
  """Rematerialised as models are, which keep what is named, the backward pass runs no forward kernel again."""

  def kept(*args):
    named = lambda *args: checkpoint_name(mosaic_tpu.projection(*args), "projection")
    return jax.checkpoint(named, policy=jax.checkpoint_policies.save_only_these_names("projection", "low_rank"))(*args)

  compiled = ahead.compiled_for("v5e", partial(gradients, kept), *shapes(rows=1, width=512))
  assert compiled.cost_analysis()["flops"] == pytest.approx(flops(512, 512), rel=1e-2)


def test_splits_that_are_no_whole_tiles_compile():
  """T5 base: 4 splits of 768 are 192 wide."""
  ahead.compiled_for("v5e", partial(gradients, mosaic_tpu.projection), *shapes(rows=1, width=768))


def test_triton_lowers_for_cuda():
  run = jax.jit(partial(gradients, triton.projection))
  text = run.trace(*shapes(rows=1, width=512)).lower(lowering_platforms=("cuda",)).as_text()
  assert text.count('"__gpu$xla.gpu.triton"') + text.count("@__gpu$xla.gpu.triton") >= 4  # forward, dx, da, db


@pytest.mark.skipif(not ahead.available("h200"), reason="jax's CUDA plugin is not installed")
def test_triton_compiles_for_hopper():
  segments = jax.ShapeDtypeStruct((ROWS, 512), jnp.int32)
  compiled = ahead.compiled_for("h200", partial(gradients, triton.projection), *shapes(), segments)
  assert compiled.memory_analysis().temp_size_in_bytes < TOKENS * WIDTH * 2
