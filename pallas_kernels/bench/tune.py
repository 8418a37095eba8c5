"""The fastest block sizes of a kernel on the device at hand."""

from collections.abc import Callable, Iterator
from typing import Any

import jax

from pallas_kernels.bench.measure import milliseconds
from pallas_kernels.tuning.lookup import trying

FACTORS = (0.25, 0.5, 2, 4)


def best(run: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, dict[str, int]]:
  """Lines of the tuning table for all that `run` looks up: one block size after the other is halved, doubled and so on,
  and what is faster stays. Sizes that do not compile, or do not fit on the chip, are passed over."""
  lines, fastest = _timed(run, arguments, {})
  for line, sizes in list(lines.items()):
    for block in sizes:
      for trial in _trials(lines, line, block):
        try:
          took, time = _timed(run, arguments, trial)
        except Exception as error:  # compilers have many names for "too large"
          print(f"  {line}: {trial[line]}: {type(error).__name__}")
          continue
        if took == trial and time < fastest:
          lines, fastest = trial, time
  return lines


def _trials(lines: dict[str, dict[str, int]], line: str, block: str) -> Iterator[dict[str, dict[str, int]]]:
  start = lines[line][block]
  for size in sorted({int(start * factor) for factor in FACTORS}):
    if size >= 1:
      yield {**lines, line: {**lines[line], block: size}}


def _timed(run, arguments, lines) -> tuple[dict[str, dict[str, int]], float]:
  """What was looked up, and milliseconds."""
  with trying(lines) as asked:
    # A function of its own, so that jax does not take the program of the last trial.
    program = jax.jit(lambda *given: run(*given)).lower(*arguments).compile()
    return dict(asked), milliseconds({"": program}, arguments)[""]
