"""All cases, and each kernel of one as a program to compile."""

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

from pallas_kernels.bench import attention, cross_entropy, decode, lowrank
from pallas_kernels.bench.case import Case


def cases() -> Iterator[Case]:
  """All lines of the table."""
  return chain(attention.cases(), decode.cases(), lowrank.cases(), cross_entropy.cases())


def program(case: str, contestant: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
  """(function, shapes of its arguments), by names: what `pallas_kernels.static` compiles in another process."""
  found = next(each for each in cases() if each.name == case)
  return found.contestants[contestant].run, found.shapes()
