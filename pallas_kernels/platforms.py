"""One call of a kernel for the chip it is written for and, interpreted, for the CPU."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax


def on(platform: str, call: Callable[..., Any], *arrays: Any) -> Any:
  """`call(*arrays, interpret=False)` where the program is lowered for `platform`, `interpret=True` where for the CPU.

  The choice is made when a program is lowered, not by the machine at hand: a model traced on a CPU compiles ahead of
  time with the kernel itself for a chip that is elsewhere. Not differentiable: call it inside a `jax.custom_vjp`.

  Args:
    platform: "tpu" or "cuda".
    arrays: pytrees of arrays; None is a pytree without leaves.
  """
  branches = {platform: partial(call, interpret=False), "cpu": partial(call, interpret=True)}
  return jax.lax.platform_dependent(*arrays, **branches)
