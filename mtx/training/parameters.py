"""A model as a graph definition and one flat dict, path -> array: what crosses `jax.jit`, matches regexes, is saved."""

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from mtx.parallel.rules import parameter_shardings

Params = dict[str, Array]
M = TypeVar("M", bound=nnx.Module)


@dataclass(frozen=True)
class Blueprint(Generic[M]):
  """A model before it has arrays.

  Attributes:
    graphdef: everything static about the model.
    shapes: path -> shape and dtype.
    axes: path -> logical axes (`mtx.parallel.rules`).
    make: builds the module from rngs.
  """

  graphdef: nnx.GraphDef
  shapes: dict[str, jax.ShapeDtypeStruct]
  axes: dict[str, tuple[str | None, ...]]
  make: Callable[[nnx.Rngs], M]

  def merge(self, params: Mapping[str, Array]) -> M:
    """The module over `params`; call it inside jit."""
    return nnx.merge(self.graphdef, traverse_util.unflatten_dict(dict(params), sep="/"))

  def shardings(self, mesh: Mesh) -> dict[str, NamedSharding]:
    return parameter_shardings(self.shapes, self.axes, mesh)

  def initialise(self, key: Array, mesh: Mesh, only: Collection[str] | None = None) -> Params:
    """Fresh parameters, born sharded: no device ever holds more than its part.

    Args:
      only: paths of those that are made; None: all.
    """
    wanted = {p: s for p, s in self.shardings(mesh).items() if only is None or p in only}
    if not wanted:
      return {}

    def make(key: Array) -> Params:
      made = _flat(self.make(nnx.Rngs(key)))
      return {path: made[path] for path in wanted}

    return jax.jit(make, out_shardings=wanted)(key)


def blueprint(make: Callable[[nnx.Rngs], M]) -> Blueprint[M]:
  """Traces `make(rngs)` without allocating anything."""
  model = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
  variables = nnx.to_flat_state(nnx.state(model, nnx.Param))
  named = {_path(p): v for p, v in variables}
  return Blueprint(
    graphdef=nnx.graphdef(model),
    shapes={p: jax.ShapeDtypeStruct(v.shape, v.dtype) for p, v in named.items()},
    axes={p: v.get_metadata()["axes"] for p, v in named.items()},
    make=make,
  )


def _path(parts: tuple) -> str:
  return "/".join(map(str, parts))


def _flat(model: nnx.Module) -> Params:
  return {_path(p): v[...] for p, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def rule_for(rules: Iterable[str], path: str) -> str | None:
  """The longest pattern whose regex matches the whole path.

  Not the first one: gin writes the keys of a dict in alphabetical order, and a run that is repeated from its operative
  config must train the same parameters at the same rates.
  """
  return max((r for r in rules if re.fullmatch(r, path)), key=lambda r: (len(r), r), default=None)


def partition(params: Mapping, rules: Mapping[str, float]) -> tuple[dict, dict]:
  """(trainable, frozen): a parameter that no rule names is frozen (the convention of big_vision's optax.py)."""
  hit = {p for p in params if rule_for(rules, p) is not None}
  return {p: v for p, v in params.items() if p in hit}, {p: v for p, v in params.items() if p not in hit}


def count(shapes: Mapping) -> int:
  """Number of scalars."""
  return sum(int(v.size) for v in shapes.values())


def fingerprint(params: Mapping[str, Array]) -> str:
  """Tells parameters from others: a hash of every path, shape and dtype, and of all bits in their places.

  Sums of integers wrap around, so they do not depend on order: it is the same on every mesh.
  """
  sums = jax.device_get(jax.jit(lambda arrays: jax.tree.map(_weighted_bits, arrays))(dict(params)))
  found = hashlib.blake2b(digest_size=12)
  for path, value in sorted(params.items()):
    found.update(f"{path} {value.shape} {value.dtype} {int(sums[path])}\n".encode())
  return found.hexdigest()


def _weighted_bits(array: Array) -> Array:
  """The sum of an array's bits as integers, each times an odd number of its place."""
  bits = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}").astype(jnp.uint32)
  place = jnp.zeros(array.shape, jnp.uint32)
  for axis, size in enumerate(array.shape):
    place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
  weight = (place * jnp.uint32(2654435769)) | jnp.uint32(1)
  return (bits * weight).sum(dtype=jnp.uint32)
