"""Kernels under a mesh: a call that the compiler can not partition runs once on every device, on the rows it has."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from mtx.parallel.mesh import ROWS


def over_rows(function: Callable[..., Array], by_row: tuple[Any, ...], whole: tuple[Any, ...]) -> Array:
  """`function(*by_row, *whole)`, on each device of the mesh with its part of the rows.

  Args:
    function: maps rows independently of each other; its result has a row for each of `by_row`.
    by_row: pytrees of arrays with the rows of a batch first; every device computes all where data and fsdp do not
      divide them.
    whole: pytrees of arrays that every device needs all of.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return function(*by_row, *whole)
  rows = jax.tree.leaves(by_row)[0].shape[0]
  spec = P(None if rows % math.prod(mesh.shape[name] for name in ROWS) else ROWS)
  specs = (*(spec for _ in by_row), *(P() for _ in whole))
  # What a kernel returns says nothing of the mesh axes that it varies over.
  return jax.shard_map(function, in_specs=specs, out_specs=spec, check_vma=False)(*by_row, *whole)


def is_tensor_parallel() -> bool:
  """Whether projections are split over devices where this is traced."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.shape["tensor"] > 1
