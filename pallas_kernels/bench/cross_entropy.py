"""Cross-entropy over a large vocabulary, with logits in memory and without."""

from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp

from pallas_kernels.bench.case import Case, Contestant, Goal, differentiated, direction
from pallas_kernels.cross_entropy.api import linear_cross_entropy
from pallas_kernels.cross_entropy.head import LinearHead

VOCABULARY = 256_000


def cases() -> Iterator[Case]:
  """A large head; one size for accelerators, one for CPUs."""
  for backward in (False, True):
    yield large(8192, 2048, jnp.bfloat16, ("tpu", "gpu"), backward)
    yield large(1024, 128, jnp.float32, ("cpu",), backward)


def large(tokens: int, size: int, dtype, platforms: tuple[str, ...], backward: bool) -> Case:
  """Sum of losses and, backward, its gradients to hidden states and head."""

  def run(x, weight, targets, *, impl):
    weights = jnp.ones(targets.shape, jnp.float32)
    loss = lambda x, weight: linear_cross_entropy(x, LinearHead(weight), targets, weights, impl=impl)[0]
    return differentiated(loss, backward)(x, weight)

  return Case(
    f"cross-entropy, {tokens} tokens x {VOCABULARY}, {jnp.dtype(dtype).name}, {direction(backward)}",
    partial(_arguments, tokens, size, dtype),
    (3 if backward else 1) * 2.0 * tokens * size * VOCABULARY,
    {name: Contestant(partial(run, impl=name)) for name in ("xla_chunked", "xla")},
    {platform: "xla_chunked" for platform in platforms},
    {platform: (Goal(2, "xla", memory=True), Goal(1.2, "xla")) for platform in platforms},
  )


def _arguments(tokens: int, size: int, dtype):
  """Hidden states, head, targets."""
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], (8, tokens // 8, size), dtype)
  weight = jax.random.normal(keys[1], (size, VOCABULARY), dtype) * size**-0.5
  return x, weight, jax.random.randint(keys[2], x.shape[:2], 0, VOCABULARY, jnp.int32)
