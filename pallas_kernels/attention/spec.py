"""Who may look at whom: one mask object for every backend, so that no kernel can accept a mask and drop it."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
  """Segment isolation, optionally causal, optionally with a prefix that all of its segment may see, or a window.

  A query sees a key if both have the same segment id and, when `causal`, the key is not later in the row or lies in
  the prefix. Padding is segment 0: it sees only padding, so no row of the softmax is ever empty there.

  Attributes:
    query_segments: segment id per query, 0 = padding.
    key_segments: segment id per key, 0 = padding.
    prefix: keys that every query of the same segment sees, whatever the order; None = no prefix.
    offset: row index of the first query (decoding with a cache), one for all rows or one a row; 0 in training.
    window: a query sees no key that is `window` or more before it; None = no limit.
    causal: static.
  """

  query_segments: Int[Array, "batch query"]
  key_segments: Int[Array, "batch key"]
  prefix: Bool[Array, "batch key"] | None = None
  offset: Int[Array, ""] | Int[Array, " batch"] | int = 0
  window: Int[Array, ""] | int | None = None
  causal: bool = field(default=False, metadata={"static": True})

  def allowed(self) -> Bool[Array, "batch 1 query key"]:
    """The mask written out, True where a query sees a key."""
    same = self.query_segments[:, :, None] == self.key_segments[:, None, :]
    if not self.causal and self.window is None:
      return same[:, None]
    # One row for all, or one for each: [batch or 1, query, key].
    query = jnp.arange(self.query_segments.shape[1])[:, None] + jnp.reshape(self.offset, (-1, 1, 1))
    key = jnp.arange(self.key_segments.shape[1])
    if self.causal:
      ordered = key <= query
      same = same & (ordered if self.prefix is None else ordered | self.prefix[:, None, :])
    if self.window is not None:
      same = same & (query - key < self.window)
    return same[:, None]
