"""How tokens and vocabulary lie on a mesh, for backends that run on each device's part of them."""

import math
from dataclasses import dataclass, replace

import jax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from pallas_kernels.cross_entropy.head import LinearHead

Shaped = Array | jax.ShapeDtypeStruct


@dataclass(frozen=True)
class Split:
  """Names of mesh axes. Where they do not divide a size, every device along them holds it all.

  Attributes:
    rows: that the batch is split over.
    vocabulary: that the vocabulary is split over; None: no axis.
  """

  rows: tuple[str, ...] = ()
  vocabulary: str | None = None

  def fitted(self, x: Shaped, head: LinearHead) -> "Split":
    """The axes that divide these sizes, of the mesh that is set (`jax.sharding.use_abstract_mesh`); outside of one of
    several devices: none."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
      return Split()
    rows = self.rows if x.shape[0] % _ways(mesh, self.rows) == 0 else ()
    whole = self.vocabulary is None or head.vocabulary % mesh.shape[self.vocabulary]
    return Split(rows, None if whole else self.vocabulary)

  def logits(self, x: Shaped, head: LinearHead) -> int:
    """How many logits one device has, if they are all there."""
    fitted = self.fitted(x, head)
    axes = (*fitted.rows, *([fitted.vocabulary] if fitted.vocabulary else []))
    ways = _ways(jax.sharding.get_abstract_mesh(), axes) if axes else 1
    return math.prod(x.shape[:-1]) * head.vocabulary // ways

  def of_head(self, head: LinearHead) -> LinearHead:
    """A head with partitions for arrays."""
    weight = P(self.vocabulary, None) if head.vocabulary_first else P(None, self.vocabulary)
    bias = None if head.bias is None else P(self.vocabulary)
    return replace(head, weight=weight, bias=bias)  # type: ignore[arg-type]


def _ways(mesh: AbstractMesh, axes: tuple[str, ...]) -> int:
  return math.prod(mesh.shape[axis] for axis in axes)
