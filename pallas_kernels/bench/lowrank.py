"""A routed low-rank update beside the bare projection: what MHR costs over a frozen model."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.bench.case import Case, Contestant, Goal, differentiated, direction
from pallas_kernels.lowrank.api import routed_projection

TOKENS, SIZE, SKILLS, RANK = 8192, 2048, 8, 16
KERNELS = {"tpu": "mosaic_tpu", "gpu": "triton"}


def cases() -> Iterator[Case]:
  """One route a row, and one a segment; Poly's one split and four."""
  for splits in (1, 4):
    for packed in (False, True):
      for backward in (False, True):
        yield routed(splits, packed, backward)


def routed(splits: int, packed: bool, backward: bool) -> Case:
  """d 2048, 8 skills, rank 16; the projection itself is frozen, as under an adapter."""

  def run(x, kernel, a, b, w, ids, *, impl):
    over = lambda x, a, b, w: routed_projection(x, kernel, a, b, w, ids if packed else None, impl=impl)
    return differentiated(over, backward)(x, a, b, w)

  bare = lambda x, kernel, *_: differentiated(lambda x: x @ kernel, backward)(x)
  kernels = {name: Contestant(partial(run, impl=name), platform, True) for platform, name in KERNELS.items()}
  return Case(
    f"routed projection, {splits} splits, a route a {'segment' if packed else 'row'}, {direction(backward)}",
    partial(_arguments, splits, packed),
    (2 if backward else 1) * 2.0 * TOKENS * SIZE * SIZE,
    kernels | {"xla": Contestant(partial(run, impl="xla")), "bare": Contestant(bare)},
    KERNELS,
    {platform: (Goal(1 / 1.08, "bare"), Goal(1, "xla")) for platform in KERNELS},
  )


def _arguments(splits: int, packed: bool):
  """x, kernel, a, b, mixing weights, ids."""
  rows, length, block = 8, TOKENS // 8, SIZE // splits
  keys = jax.random.split(jax.random.key(0), 5)
  x = jax.random.normal(keys[0], (rows, length, SIZE), jnp.bfloat16)
  kernel = jax.random.normal(keys[1], (SIZE, SIZE), jnp.bfloat16) * SIZE**-0.5
  a = jax.random.normal(keys[2], (splits, SKILLS, block, RANK), jnp.float32) * SIZE**-0.5
  b = jax.random.normal(keys[3], (splits, SKILLS, RANK, block), jnp.float32)
  w = jax.nn.softmax(jax.random.normal(keys[4], (rows, splits, SKILLS)))
  ids = jnp.broadcast_to(jnp.arange(length) * rows // length, (rows, length)).astype(jnp.int32)
  return x, kernel, a, b, w, ids
