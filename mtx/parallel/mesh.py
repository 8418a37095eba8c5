"""The (data, fsdp, tensor) device mesh."""

import math

import gin
import jax
from jax.sharding import AxisType, Mesh

from mtx.errors import UserError

AXES = ("data", "fsdp", "tensor")
ROWS = AXES[:2]  # what the rows of a batch are split over


@gin.configurable("mesh")
def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1) -> Mesh:
  """A mesh over all devices.

  Args:
    data: replicas of the model; each axis may be -1 (at most one), meaning all that is left.
    fsdp: ways that parameters are split along d_model; the batch is split over data and fsdp.
    tensor: ways that heads, d_ff and vocabulary are split.

  Raises:
    UserError: the sizes do not multiply to the number of devices.
  """
  sizes = [data, fsdp, tensor]
  devices = len(jax.devices())
  written = ", ".join(f"{a}={n}" for a, n in zip(AXES, sizes, strict=True))
  if sizes.count(-1) > 1 or any(n < 1 and n != -1 for n in sizes):
    raise UserError(f"mesh({written}): sizes are at least 1, and at most one may be -1.")
  if -1 in sizes:
    rest = math.prod(n for n in sizes if n != -1)
    if devices % rest:
      raise UserError(
        f"mesh({written}) does not fit {devices} devices: {rest} does not divide {devices}.",
        hint=f"fsdp * tensor must be one of {_divisors(devices)}.",
      )
    sizes[sizes.index(-1)] = devices // rest
  if math.prod(sizes) != devices:
    raise UserError(
      f"mesh({written}) needs {math.prod(sizes)} devices, and there are {devices}.",
      hint=f"data=-1 takes what is left; the product must be {devices}.",
    )
  return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def batch_ways(mesh: Mesh) -> int:
  """How many ways the batch axis is split."""
  return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(batch: int, accumulate: int, mesh: Mesh) -> None:
  """Raises UserError unless every microbatch splits evenly over the mesh."""
  ways = batch_ways(mesh) * accumulate
  if batch % ways:
    near = max(ways, round(batch / ways) * ways)
    raise UserError(
      f"binding `feed.batch` = {batch} is not divisible by data * fsdp * accumulate = "
      f"{mesh.shape['data']} * {mesh.shape['fsdp']} * {accumulate} = {ways}.",
      hint=f"the nearest valid batch is {near}.",
    )


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]
