"""Attention on a mesh of several devices.

What is plain XLA is split over a mesh by the compiler. A kernel is not: each device is told here what is its own, rows
and heads, and runs the kernel on that. Neither needs a word from the other devices.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from pallas_kernels.attention import api, decode
from pallas_kernels.attention.decode import Cached
from pallas_kernels.attention.spec import AttentionSpec

Names = str | tuple[str, ...] | None


def attention(
  q: Float[Array, "batch query heads d_kv"],
  k: Float[Array, "batch key kv_heads d_kv"],
  v: Float[Array, "batch key kv_heads d_kv"],
  spec: AttentionSpec,
  *,
  impl: str | None,
  rows: Names,
  heads: Names,
) -> Float[Array, "batch query heads d_kv"]:
  """`api.attention` on the mesh of `jax.sharding.use_abstract_mesh`.

  Args:
    rows, heads: mesh axes that rows, and heads of queries and keys alike, are split over; None: not split. Axes that do
      not divide them evenly are left out.
  """
  name = api.chosen(q, k, v, spec) if impl is None else impl
  call = lambda q, k, v, spec: api.attention(q, k, v, spec, impl=name)
  if _by_compiler(name):
    return call(q, k, v, spec)
  rows, heads = _dividing(rows, heads, k)
  laid = P(rows, None, heads)
  return _split(call, (q, k, v), (laid, laid, laid), spec, rows, heads)


def in_cache(
  q: Float[Array, "batch query heads d_kv"],
  cached: Cached,
  spec: AttentionSpec,
  *,
  impl: str | None,
  decode_impl: str | None,
  rows: Names,
  heads: Names,
) -> Float[Array, "batch query heads d_kv"]:
  """`decode.in_cache` with what `decode.chosen` gives, on the mesh of `jax.sharding.use_abstract_mesh`; see
  `attention`."""
  name = decode.chosen(q, cached.shape, spec, impl, decode_impl)
  call = lambda q, cached, spec: decode.in_cache(q, cached, spec, impl=name)
  if _by_compiler(name):
    return call(q, cached, spec)
  rows, heads = _dividing(rows, heads, cached.shape)
  cached = cached._replace(layer=jnp.asarray(cached.layer))
  kept = jax.tree.map(lambda x: P(None, rows, heads) if x.ndim else P(), cached)
  return _split(call, (q, cached), (P(rows, None, heads), kept), spec, rows, heads)


def _by_compiler(name: str) -> bool:
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.empty or mesh.size == 1 or name in api.PARTITIONED


def _dividing(rows: Names, heads: Names, k: api.Shaped) -> tuple[Names, Names]:
  """Those of the axes that divide rows and heads of k evenly."""
  mesh = jax.sharding.get_abstract_mesh()
  return rows if _divides(mesh, rows, k.shape[0]) else None, heads if _divides(mesh, heads, k.shape[2]) else None


def _split(call: Callable, arrays: tuple, laid: tuple, spec: AttentionSpec, rows: Names, heads: Names) -> Array:
  """`call(*arrays, spec)` on each device with its own rows and heads, which lie in `arrays` as `laid` says."""
  # Python numbers stay such: as arrays they would be offsets and windows that are not known when compiling.
  leaves, tree = jax.tree.flatten_with_path(spec)
  given = {
    i: _axes(path[-1].name, leaf, rows, heads) for i, (path, leaf) in enumerate(leaves) if not isinstance(leaf, int)
  }
  known = [leaf for _, leaf in leaves]

  def mine(arrays, *of_spec):
    own = dict(enumerate(known)) | dict(zip(given, of_spec, strict=True))
    return call(*arrays, jax.tree.unflatten(tree, own.values()))

  split = jax.shard_map(mine, in_specs=(laid, *given.values()), out_specs=laid[0], check_vma=False)
  return split(arrays, *(known[i] for i in given))


def _divides(mesh: jax.sharding.AbstractMesh, names: Names, size: int) -> bool:
  ways = 1
  for name in (names,) if isinstance(names, str) else names or ():
    ways *= mesh.shape[name]
  return size % ways == 0


def _axes(field: str, leaf: Array, rows: Names, heads: Names) -> P:
  """Mesh axes of an array of the spec or of its bias."""
  match field:
    case "table":
      return P(None, heads)
    case "slopes":
      return P(heads)
    case "values":
      return P(heads) if leaf.ndim == 3 else P(rows if leaf.shape[0] > 1 else None, heads)
  return P(rows) if jnp.ndim(leaf) else P()
