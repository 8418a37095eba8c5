"""What attention means: who may look at whom and what is added to scores, in one object that every backend takes.

A backend honours every field of it or refuses by name (`mtx`'s rule: never a wrong mask in silence).
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.attention.bias import Bias, DenseBias, toeplitz

Start = Int[Array, ""] | int
# Every name that `AttentionSpec.features` may give.
FEATURES = (
  "causal",
  "segments",
  "key_lengths",
  "prefix",
  "prefix_lengths",
  "offset",
  "offset_by_row",
  "window",
  "soft_cap",
  "bias:Buckets",
  "bias:Alibi",
  "bias:DenseBias",
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AttentionSpec:
  """softmax(cap(scale * q k^T) + bias, over the visible keys) v.

  A query sees a key if all of this holds: both have the same segment id; the key's index is below its row's key length;
  with `causal`, the key is not after the query or lies in the prefix; it is less than `window` before the query. A
  query that sees no key gives 0, and passes no gradient.

  Padding is segment 0: it sees only padding.

  Attributes:
    query_segments, key_segments: ids, both or neither; None: all of a row is one segment.
    key_lengths: keys of a row that are there, the first ones; None: all.
    prefix: keys that every query of their segment sees, in any order (packed rows). None: no such key.
    prefix_lengths: the same for the first keys of a row. None: no such key.
    offset: index of the first query, one for all rows or one a row (decoding with a cache).
    window: None: no limit.
    bias: of scores, by index of key and query.
    causal, scale, soft_cap: static. cap(s) = c tanh(s / c) (Gemma 2, arXiv 2408.00118); 0: no cap. T5 folds the scale
      into the initialisation of q, hence the default 1 (Raffel et al. 2020, arXiv 1910.10683).
  """

  query_segments: Int[Array, "batch query"] | None = None
  key_segments: Int[Array, "batch key"] | None = None
  key_lengths: Int[Array, " batch"] | None = None
  prefix: Bool[Array, "batch key"] | None = None
  prefix_lengths: Int[Array, " batch"] | None = None
  offset: Int[Array, ""] | Int[Array, " batch"] | int = 0
  window: Int[Array, ""] | int | None = None
  bias: Bias | None = None
  causal: bool = field(default=False, metadata={"static": True})
  scale: float = field(default=1.0, metadata={"static": True})
  soft_cap: float = field(default=0.0, metadata={"static": True})

  def __post_init__(self):
    if (self.query_segments is None) != (self.key_segments is None):
      raise ValueError("AttentionSpec: give segments of queries and of keys, or of neither.")

  @property
  def features(self) -> tuple[str, ...]:
    """Names of what is asked for beyond full attention: what a backend may have to refuse."""
    asked = {
      "causal": self.causal,
      "segments": self.query_segments is not None,
      "key_lengths": self.key_lengths is not None,
      "prefix": self.prefix is not None,
      "prefix_lengths": self.prefix_lengths is not None,
      "offset": not (isinstance(self.offset, int) and self.offset == 0),
      "offset_by_row": jnp.ndim(self.offset) == 1,
      "window": self.window is not None,
      "soft_cap": bool(self.soft_cap),
      f"bias:{type(self.bias).__name__}": self.bias is not None,
    }
    return tuple(name for name, there in asked.items() if there)

  def allowed(self, queries: int, keys: int) -> Bool[Array, "#batch 1 #query #key"] | None:
    """The mask, True where a query sees a key; None: everywhere."""
    query = jnp.arange(queries)[:, None] + jnp.reshape(self.offset, (-1, 1, 1))  # [batch or 1, query, 1]
    key = jnp.arange(keys)
    parts = []
    if self.query_segments is not None and self.key_segments is not None:
      parts.append(self.query_segments[:, :, None] == self.key_segments[:, None, :])
    if self.key_lengths is not None:
      parts.append(key < self.key_lengths[:, None, None])
    if self.causal:
      ordered = key <= query
      if self.prefix is not None:
        ordered = ordered | self.prefix[:, None, :]
      if self.prefix_lengths is not None:
        ordered = ordered | (key < self.prefix_lengths[:, None, None])
      parts.append(ordered)
    if self.window is not None:
      parts.append(query - key < self.window)
    if not parts:
      return None
    mask = parts[0]
    for part in parts[1:]:
      mask = mask & part
    return mask[:, None]

  def diagonals(self, queries: int, keys: int) -> Float[Array, "#batch heads diagonal"] | None:
    """A bias that depends on key index minus query index: its queries + keys - 1 values, from the last query's first
    key to the first query's last; None where the bias is of another kind."""
    if self.bias is None or isinstance(self.bias, DenseBias):
      return None
    difference = jnp.arange(1 - queries, keys) - jnp.reshape(self.offset, (-1, 1))
    return jnp.moveaxis(self.bias.relative(difference), 1, 0)

  def dense_bias(self, queries: int, keys: int) -> Float[Array, "#batch heads query key"] | None:
    """The bias written out."""
    if isinstance(self.bias, DenseBias):
      return self.bias.values if self.bias.values.ndim == 4 else self.bias.values[None]
    diagonals = self.diagonals(queries, keys)
    return None if diagonals is None else toeplitz(diagonals, queries)

  def block(self, first_query: Start, queries: int, first_key: Start, keys: int) -> "AttentionSpec":
    """The spec of some queries and some keys of this one. `allowed` of it is that block of `allowed`."""
    of_queries = lambda x: x if x is None else jax.lax.dynamic_slice_in_dim(x, first_query, queries, 1)
    of_keys = lambda x: x if x is None else jax.lax.dynamic_slice_in_dim(x, first_key, keys, 1)
    shorter = lambda x: x if x is None else x - first_key
    bias = self.bias
    if isinstance(bias, DenseBias):
      values = jax.lax.dynamic_slice_in_dim(bias.values, first_query, queries, -2)
      bias = DenseBias(jax.lax.dynamic_slice_in_dim(values, first_key, keys, -1))
    return replace(
      self,
      query_segments=of_queries(self.query_segments),
      key_segments=of_keys(self.key_segments),
      key_lengths=shorter(self.key_lengths),
      prefix=of_keys(self.prefix),
      prefix_lengths=shorter(self.prefix_lengths),
      offset=self.offset + first_query - first_key,
      bias=bias,
    )
