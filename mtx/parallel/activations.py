"""Where activations and the parameters they meet lie: said to the compiler at every projection, and not left to it.

Left alone, XLA's partitioner (jaxlib 0.10.2, Shardy and GSPMD alike) may compute wrong numbers: with a routed adapter
on a mesh of data 2 x fsdp 2 x tensor 2, two of four shards got wrong logits, and all got wrong gradients.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Shaped

from mtx.parallel.mesh import ROWS
from mtx.parallel.rules import RULES

# What an activation's last axis, or a parameter where it is used, is split over. d_model is whole: fsdp splits rows.
SPLIT = {axis: target for axis, target in RULES.items() if target == "tensor"}


def within(mesh: Mesh) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
  """Decorator of what is jitted: `laid` and `gathered` in it speak of `mesh`."""

  def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def traced(*arguments: Any, **named: Any) -> Any:
      with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return function(*arguments, **named)

    return traced

  return decorate


def gathered(w: Shaped[Array, "..."], axes: tuple[str | None, ...]) -> Shaped[Array, "..."]:
  """A parameter of one layer, whole along d_model: what fsdp stores in parts is put together where it is used."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return w
  return jax.lax.with_sharding_constraint(w, P(*(_split(n, axis, mesh) for n, axis in zip(w.shape, axes, strict=True))))


def laid(x: Shaped[Array, "batch length dims"], axis: str | None) -> Shaped[Array, "batch length dims"]:
  """`x` with rows over data and fsdp, and its last axis as the logical axis `axis` says; elsewhere than `within` a mesh
  of several devices, `x` itself."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return x
  rows = None if x.shape[0] % math.prod(mesh.shape[name] for name in ROWS) else ROWS
  return jax.lax.with_sharding_constraint(x, P(rows, None, _split(x.shape[-1], axis, mesh)))


def _split(size: int, axis: str | None, mesh: AbstractMesh) -> str | None:
  """The mesh axis that a logical axis of this size is split over."""
  target = SPLIT.get(axis or "")
  return target if target and not size % mesh.shape[target] else None
