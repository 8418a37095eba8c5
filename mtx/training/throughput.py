"""How fast the hardware could go, to say what share of it a step uses."""

import time
from functools import cache

import jax
import jax.numpy as jnp

# Dense bf16 peaks in FLOP/s from the makers' data sheets, by a substring of `device_kind`.
PEAKS = {
  "v5 lite": 197e12,
  "v5e": 197e12,
  "v5p": 459e12,
  "v6 lite": 918e12,
  "v6e": 918e12,
  "v4": 275e12,
  "H200": 989e12,
  "H100": 989e12,
  "A100": 312e12,
  "L4": 121e12,
  "T4": 65e12,
}


@cache
def peak_flops() -> tuple[float, str]:
  """(FLOP/s of all devices together, where the figure is from): a data sheet, or a measured float32 product on CPU.

  Fake CPU devices share one processor, so the measured figure is not multiplied by their number.
  """
  device = jax.devices()[0]
  for name, peak in PEAKS.items():
    if name.lower() in device.device_kind.lower():
      return peak * len(jax.devices()), f"{device.device_kind} data sheet, bf16"
  return _measured(), "measured float32 matrix product"


def _measured(n: int = 1024, repeats: int = 5) -> float:
  product = jax.jit(jnp.matmul)
  x = jax.device_put(jnp.ones((n, n), jnp.float32), jax.devices()[0])
  product(x, x).block_until_ready()
  best = float("inf")
  for _ in range(repeats):
    start = time.perf_counter()
    product(x, x).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * n**3 / best
