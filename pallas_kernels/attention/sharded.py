"""Attention on a mesh of several devices.

What is plain XLA is split over a mesh by the compiler. A kernel is not: each device is told here what is its own, rows
and heads, and runs the kernel on that. Neither needs a word from the other devices.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from pallas_kernels.attention import api
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
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or name in api.PARTITIONED:
    return api.attention(q, k, v, spec, impl=name)
  rows = rows if _divides(mesh, rows, q.shape[0]) else None
  heads = heads if _divides(mesh, heads, k.shape[2]) else None
  laid = P(rows, None, heads, None)
  # Python numbers stay such: as arrays they would be offsets and windows that are not known when compiling.
  leaves, tree = jax.tree.flatten_with_path(spec)
  arrays = {
    i: _axes(path[-1].name, leaf, rows, heads) for i, (path, leaf) in enumerate(leaves) if not isinstance(leaf, int)
  }
  known = [leaf for _, leaf in leaves]

  def mine(q, k, v, *given):
    own = dict(enumerate(known)) | dict(zip(arrays, given, strict=True))
    return api.attention(q, k, v, jax.tree.unflatten(tree, own.values()), impl=name)

  split = jax.shard_map(mine, in_specs=(laid, laid, laid, *arrays.values()), out_specs=laid, check_vma=False)
  return split(q, k, v, *(known[i] for i in arrays))


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
