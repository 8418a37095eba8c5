"""What is compared with what: one piece of work, and those who do it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Contestant:
  """Who does the work.

  Attributes:
    run: function of the case's arguments.
    platform: "tpu", "gpu" or "cpu", where it runs; None: anywhere.
    kernel: whether it is of this package and written for that platform, so that it is compiled ahead of time for chips
      that are not at hand.
  """

  run: Callable[..., Any]
  platform: str | None = None
  kernel: bool = False


@dataclass(frozen=True)
class Goal:
  """How many times the time of ours that of `than` is to be; with `memory`, the same of memory; without `than`, the
  share of the device's peak to reach."""

  bound: float
  than: str | None = None
  memory: bool = False

  def __str__(self) -> str:
    if self.than is None:
      return f">= {self.bound:.0%} of peak"
    return f">= {self.bound:.3g} x {'less memory' if self.memory else 'faster'} than {self.than}"


@dataclass(frozen=True)
class Case:
  """Attributes:
  name: "attention 2048, forward".
  arguments: makes the arrays.
  flops: of the matrix products that the result needs, which is what TFLOP/s count.
  contestants: by name.
  ours: name of the contestant that goals are about, by platform.
  goals: by platform.
  """

  name: str
  arguments: Callable[[], tuple[Any, ...]]
  flops: float
  contestants: Mapping[str, Contestant]
  ours: Mapping[str, str]
  goals: Mapping[str, tuple[Goal, ...]]

  def shapes(self) -> tuple[Any, ...]:
    """The arguments, of which nothing is made."""
    return jax.eval_shape(self.arguments)


def direction(backward: bool) -> str:
  """What a name says of it."""
  return "forward + backward" if backward else "forward"


def differentiated(forward: Callable[..., Any], backward: bool) -> Callable[..., Any]:
  """`forward`, or its value and its gradients to all arguments for a gradient of ones."""
  if not backward:
    return forward

  def both(*arguments):
    y, pull = jax.vjp(forward, *arguments)
    return y, pull(jnp.ones_like(y))

  return both
