"""Time on the device at hand."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

# Products of bfloat16 with float32 sums, dense, TFLOP/s, of the makers' data sheets.
PEAKS = {
  "NVIDIA H200": 989.0,
  "NVIDIA H100 80GB HBM3": 989.0,
  "NVIDIA A100-SXM4-80GB": 312.0,
  "TPU v4": 275.0,
  "TPU v5 lite": 197.0,
  "TPU v5": 459.0,
  "TPU v6 lite": 918.0,
}


def milliseconds(
  programs: Mapping[str, Callable[..., Any]], arguments: tuple[Any, ...], repeats: int = 20
) -> dict[str, float]:
  """Median time of a call of each compiled program, after two that are not counted; they take turns, so that what else
  the machine does slows all of them."""
  times: dict[str, list[float]] = {name: [] for name in programs}
  for turn in range(repeats + 2):
    for name, program in programs.items():
      start = time.perf_counter()
      jax.block_until_ready(program(*arguments))
      if turn >= 2:
        times[name].append(time.perf_counter() - start)
  return {name: 1e3 * statistics.median(each) for name, each in times.items()}
