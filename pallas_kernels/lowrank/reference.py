"""The routed projection written out, for what it means and not for speed: every backend is held against it."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.lowrank.routes import by_token


def projection(
  x: Float[Array, "batch length din"],
  kernel: Float[Array, "din dout"],
  a: Float[Array, "split skill block_in rank"],
  b: Float[Array, "split skill rank block_out"],
  w: Float[Array, "*route split skill"],
  ids: Int[Array, "batch length"] | None,
) -> Float[Array, "batch length dout"]:
  """x W + x A_t B_t of every token t, in float64 where x64 is enabled, else in float32; the result has x's dtype.

  A_t = concat_q sum_s w[t,q,s] A[q,s], B_t likewise: factors are mixed, then multiplied.
  """
  dtype = jnp.promote_types(jnp.asarray(0.0).dtype, jnp.float32)
  given = x.dtype
  x, kernel, a, b, w = (each.astype(dtype) for each in (x, kernel, a, b, w))
  w = by_token(w, ids, x.shape[1])
  tokens = w.shape[:2]
  mixed_a = jnp.einsum("blqs,qsdr->blqdr", w, a, precision="highest").reshape(*tokens, x.shape[2], -1)
  mixed_b = jnp.einsum("blqs,qsre->blrqe", w, b, precision="highest").reshape(*tokens, -1, kernel.shape[1])
  delta = jnp.einsum("bld,bldr,blre->ble", x, mixed_a, mixed_b, precision="highest")
  return (jnp.einsum("bld,de->ble", x, kernel, precision="highest") + delta).astype(given)


def refusal(x, kernel, a, b, w, ids) -> None:
  """Nothing is refused."""
