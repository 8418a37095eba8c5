"""What kernels of decoding have in common: queries as rows of one matrix, and the spec written out for them.

Mask and bias are by query and key, few numbers beside keys and values. They are computed by `AttentionSpec` itself, so
decoding means what the spec means; and from the mask follows which blocks of keys a row of the batch need not read.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.attention.spec import AttentionSpec
from pallas_kernels.unsupported import Unsupported

HIDDEN = -1e30
# More of them are another kernel's.
QUERIES = 16
LARGEST_HEAD = 256
DTYPES = (jnp.float32, jnp.bfloat16)


class Rows(NamedTuple):
  """What a kernel reads beside keys and values. A row is a query of one head; all rows that share keys lie together,
  by head first.

  Attributes:
    mask: 1 where a row sees a key; as long as whole blocks are.
    first, last: the first block of keys that a row of the batch sees, and the one after the last; both 0: none.
  """

  q: Float[Array, "batch kv_heads row d_kv"]
  mask: Int[Array, "#batch row filled"]
  bias: Float[Array, "#batch kv_heads row key"] | None
  first: Int[Array, " batch"]
  last: Int[Array, " batch"]


def rows(q: Float[Array, "batch query heads d_kv"], keys: int, shared: int, block: int, spec: AttentionSpec) -> Rows:
  """See `Rows`.

  Args:
    keys: how many. shared: heads of keys. block: keys of a block.
  """
  batch, queries, heads, d_kv = q.shape
  groups = heads // shared
  allowed = spec.allowed(queries, keys)
  allowed = jnp.ones((1, 1, 1, 1), bool) if allowed is None else allowed
  allowed = jnp.broadcast_to(allowed[:, 0], (allowed.shape[0], queries, keys))
  allowed = jnp.pad(allowed, ((0, 0), (0, 0), (0, -keys % block)))
  bias = spec.dense_bias(queries, keys)
  first, last = (jnp.broadcast_to(x, (batch,)) for x in visited(allowed, block))
  return Rows(
    q=jnp.moveaxis(q, 1, 2).reshape(batch, shared, groups * queries, d_kv),
    mask=jnp.tile(allowed, (1, groups, 1)).astype(jnp.int8),
    bias=None if bias is None else bias.astype(jnp.float32).reshape(-1, shared, groups * queries, keys),
    first=first,
    last=last,
  )


def visited(
  allowed: Bool[Array, "#batch query filled"], block: int
) -> tuple[Int[Array, " #batch"], Int[Array, " #batch"]]:
  """The first block of keys that some query of a row of the batch sees, and the one after the last; both 0: none."""
  seen = allowed.reshape(*allowed.shape[:2], -1, block).any((1, 3))
  last = jnp.where(seen, jnp.arange(1, seen.shape[1] + 1), 0).max(1)
  return jnp.argmax(seen, axis=1).astype(jnp.int32), last.astype(jnp.int32)


def joined(y: Float[Array, "batch kv_heads row d_kv"], queries: int) -> Float[Array, "batch query heads d_kv"]:
  """Rows as queries and heads again."""
  return jnp.moveaxis(y.reshape(y.shape[0], -1, queries, y.shape[3]), 1, 2)


def precision(dtype) -> jax.lax.Precision:
  """Of products: float32 operands are multiplied in float32, which memory hides."""
  return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else jax.lax.Precision.DEFAULT


def forward_only(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
  """`function`, which raises `Unsupported` where a gradient is asked of it."""

  def refused(*_: Any) -> Any:
    raise Unsupported(f"attention backend {name!r} is for decoding and has no gradient; 'xla' has.")

  function = jax.custom_vjp(function)
  function.defvjp(refused, refused)
  return function


def refusal(q, k, v) -> str | None:
  """What no kernel of decoding can do, if that is asked for."""
  if q.shape[1] > QUERIES:
    return f"it takes at most {QUERIES} queries, and there are {q.shape[1]}"
  if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
    return f"it takes float32 or bfloat16, the same of all three, not {q.dtype}, {k.dtype} and {v.dtype}"
  if q.shape[3] > LARGEST_HEAD:
    return f"it takes heads of at most {LARGEST_HEAD}, not {q.shape[3]}"
  return None
