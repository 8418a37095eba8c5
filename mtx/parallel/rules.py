"""Logical axis names to mesh axes, and parameters to shardings."""

from collections.abc import Mapping

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtx.errors import UserError, did_you_mean
from mtx.parallel.mesh import ROWS

# What a model may call its axes, and the mesh axis each is split over. Adapter factors are thin: every device holds
# them whole, which costs a few kilobytes and saves a collective a projection. Rows of a pre-trained vocabulary are as
# many as somebody chose; where a mesh axis does not divide them, every device along it holds them all.
RULES: dict[str, str | None] = {
  "embed": "fsdp",
  "heads": "tensor",
  "mlp": "tensor",
  "vocab": "tensor",
  "norm": None,
  "bucket": None,
  "position": None,
  "adapter_in": None,
  "adapter_out": None,
  "rank": None,
  "skill": None,
  "split": None,
  "task": None,
}
MAY_STAY_WHOLE = {"vocab"}


def spec(path: str, shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh) -> P:
  """The partition of one parameter; leading axes beyond `axes` are layers and stay whole.

  Raises:
    UserError: an axis name without a rule, or a dimension that its mesh axis does not divide and that may not stay
      whole; both name the path.
  """
  parts: list[str | None] = [None] * (len(shape) - len(axes))
  for name, size in zip(axes, shape[len(parts) :], strict=True):
    if name is not None and name not in RULES:
      raise UserError(f"parameter {path}: no rule for axis {name!r}.", hint=did_you_mean(name, RULES))
    target = RULES[name] if name is not None else None
    if target is not None and size % mesh.shape[target]:
      if name in MAY_STAY_WHOLE:
        parts.append(None)
        continue
      raise UserError(
        f"parameter {path} {shape}: axis {name!r} of size {size} is not divisible by mesh axis "
        f"{target!r} of size {mesh.shape[target]}.",
        hint=f"choose mesh.{target} from the divisors of {size}.",
      )
    parts.append(target)
  return P(*parts)


def parameter_shardings(
  shapes: Mapping[str, jax.ShapeDtypeStruct], axes: Mapping[str, tuple[str | None, ...]], mesh: Mesh
) -> dict[str, NamedSharding]:
  """A sharding for every parameter, by path."""
  return {p: NamedSharding(mesh, spec(p, s.shape, axes[p], mesh)) for p, s in shapes.items()}


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over data and fsdp."""
  return NamedSharding(mesh, P(ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, P())


def optimizer_shardings(abstract, parameters: Mapping[str, NamedSharding], shapes, mesh: Mesh):
  """Optimizer state follows the parameter it belongs to, if it has its shape; counters and factored moments are whole.

  Without this, `tx.init` leaves the state replicated: more memory, and the step compiles twice.
  """

  def one(path, leaf):
    for part in reversed(path):
      if isinstance(part, jax.tree_util.DictKey) and part.key in parameters:
        return parameters[part.key] if leaf.shape == shapes[part.key].shape else replicated(mesh)
    return replicated(mesh)

  return jax.tree_util.tree_map_with_path(one, abstract)


def place(batch, mesh: Mesh):
  """A host batch (every process holds all of it) as global arrays, each process placing only its own rows."""
  sharding = batch_sharding(mesh)
  if mesh.size == 1:
    return batch  # the jitted step places its arguments itself, for less than half of the host's time
  if jax.process_count() == 1:
    return jax.device_put(batch, sharding)
  return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, sharding, lambda i: x[i]), batch)
