"""What is added to attention scores: nothing, T5's buckets, ALiBi, or an array of any values.

Buckets and ALiBi depend on key index minus query index alone. `relative` gives them as one value for each such
difference, which is what kernels read: a tile of the bias is a Toeplitz matrix of a slice of it, and its gradient the
sums of the tile's diagonals.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def relative_buckets(
  relative: Int[Array, "*shape"], *, bidirectional: bool, buckets: int, max_distance: int
) -> Int[Array, "*shape"]:
  """Bucket of each key position minus query position: exact near, logarithmic far (Raffel et al. 2020, section 2.1).

  Args:
    relative: key index minus query index.
    bidirectional: half of the buckets for keys after the query; otherwise those all share bucket 0.
    buckets: how many in all.
    max_distance: distance from which everything shares the last bucket.
  """
  offset = jnp.zeros_like(relative)
  if bidirectional:
    buckets //= 2
    offset = jnp.where(relative > 0, buckets, 0)
    distance = jnp.abs(relative)
  else:
    distance = jnp.maximum(-relative, 0)
  exact = buckets // 2
  # +eps keeps log(0) out of the branch that jnp.where discards.
  ratio = jnp.log(distance.astype(jnp.float32) / exact + jnp.finfo(jnp.float32).eps) / jnp.log(max_distance / exact)
  far = exact + (ratio * (buckets - exact)).astype(jnp.int32)
  return offset + jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Buckets:
  """T5's learned bias, one value a bucket and head; see `relative_buckets`.

  Attributes:
    bidirectional, max_distance: static.
  """

  table: Float[Array, "bucket heads"]
  bidirectional: bool = field(metadata={"static": True})
  max_distance: int = field(metadata={"static": True})

  def relative(self, difference: Int[Array, "*shape"]) -> Float[Array, "heads *shape"]:
    """Values of key index minus query index."""
    index = relative_buckets(
      difference, bidirectional=self.bidirectional, buckets=self.table.shape[0], max_distance=self.max_distance
    )
    return jnp.moveaxis(self.table[index], -1, 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Alibi:
  """slope * (key index - query index); slopes get no gradient (Press et al. 2022, arXiv 2108.12409)."""

  slopes: Float[Array, " heads"]

  def relative(self, difference: Int[Array, "*shape"]) -> Float[Array, "heads *shape"]:
    """Values of key index minus query index."""
    slopes = jax.lax.stop_gradient(jnp.asarray(self.slopes))
    return slopes.reshape(-1, *(1,) * difference.ndim) * difference.astype(slopes.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DenseBias:
  """A value for every query and key, the same in all rows or not."""

  values: Float[Array, "heads query key"] | Float[Array, "#batch heads query key"]


Bias = Buckets | Alibi | DenseBias


def toeplitz(diagonals: Float[Array, "*lead diagonal"], queries: int) -> Float[Array, "*lead query key"]:
  """The matrix whose element (i, j) is diagonals[j - i + queries - 1]; there are queries + keys - 1 diagonals.

  By one copy and a reshape: rows of a table that is one column too short slip by one place from row to row. The
  transpose, which sums diagonals, is as cheap; a gather's would be a scatter.
  """
  count = diagonals.shape[-1]
  if queries == 1:
    return diagonals[..., None, :]
  lead = diagonals.shape[:-1]
  turned = jnp.roll(diagonals, 1 - queries, axis=-1)
  rows = jnp.broadcast_to(turned[..., None, :], (*lead, queries, count)).reshape(*lead, queries * count)
  rows = rows[..., : queries * (count - 1)].reshape(*lead, queries, count - 1)
  return rows[..., : count - queries + 1]
