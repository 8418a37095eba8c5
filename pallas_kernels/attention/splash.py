"""jax's own attention kernels for TPU ("splash"), behind the spec: for shapes without bias whose mask is known when
traced. Compiled for v5e, v5p and v6e; run only in interpret mode, never on a chip."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float

from pallas_kernels.attention.spec import AttentionSpec
from pallas_kernels.platforms import on
from pallas_kernels.tuning.lookup import tuned

HONOURED = ("causal", "segments", "window", "soft_cap")
LANES = 128


def attention(
  q: Float[Array, "batch query heads d_kv"],
  k: Float[Array, "batch key kv_heads d_kv"],
  v: Float[Array, "batch key kv_heads d_kv"],
  spec: AttentionSpec,
) -> Float[Array, "batch query heads d_kv"]:
  """See `AttentionSpec`; q is scaled in its own dtype."""
  queries, keys, heads = q.shape[1], k.shape[1], q.shape[2]
  scaled = (q * spec.scale).astype(q.dtype)
  ids = None
  if spec.query_segments is not None and spec.key_segments is not None:
    ids = splash.SegmentIds(spec.query_segments.astype(jnp.int32), spec.key_segments.astype(jnp.int32))
  sizes = _sizes(q, k, spec)
  mask = masks.MultiHeadMask([_mask(spec, queries, keys)] * heads)

  def call(q, k, v, ids, *, interpret: bool):
    kernel = splash.make_splash_mha(
      mask,
      block_sizes=sizes,
      head_shards=1,
      q_seq_shards=1,
      attn_logits_soft_cap=spec.soft_cap or None,
      interpret=interpret,
    )
    return jax.vmap(kernel)(q, k, v, ids)

  heads_first = partial(jnp.moveaxis, source=2, destination=1)
  y = on("tpu", call, *(heads_first(x) for x in (scaled, k, v)), ids)
  y = jnp.moveaxis(y, 1, 2)
  if ids is None and spec.window is None:
    return y
  # Where all is hidden, splash averages what it should not see.
  allowed = spec.allowed(queries, keys)
  return y if allowed is None else jnp.where(allowed.any(-1)[:, 0, :, None, None], y, 0)


def _mask(spec: AttentionSpec, queries: int, keys: int) -> masks.Mask:
  if isinstance(spec.window, int):
    return masks.LocalMask((queries, keys), (spec.window - 1, 0 if spec.causal else None), offset=0)
  return masks.CausalMask((queries, keys)) if spec.causal else masks.FullMask((queries, keys))


def _sizes(q, k, spec: AttentionSpec) -> splash.BlockSizes:
  """The tuned sizes, halved until they divide the lengths."""
  default = {"q": 512, "k": 512}
  most = tuned("attention_splash", default, q.dtype, q.shape[3], max(q.shape[1], k.shape[1]), spec.features)

  def divides(length: int, size: int) -> int:
    while length % size:
      size //= 2
    return size

  of_q, of_k = divides(q.shape[1], most["q"]), divides(k.shape[1], most["k"])
  return splash.BlockSizes(
    block_q=of_q,
    block_kv=of_k,
    block_kv_compute=of_k,
    block_q_dkv=of_q,
    block_kv_dkv=of_k,
    block_kv_dkv_compute=of_k,
    block_q_dq=of_q,
    block_kv_dq=of_k,
  )


def refusal(q, k, v, spec: AttentionSpec) -> str | None:
  """Lengths and heads that are no multiples of what the chip works on, windows that are data, and float32: it would
  multiply in bfloat16."""
  if q.dtype != jnp.bfloat16 or k.dtype != q.dtype or v.dtype != q.dtype:
    return f"q, k, v of {q.dtype}, {k.dtype}, {v.dtype}, where it takes bfloat16"
  if q.shape[1] % LANES or k.shape[1] % LANES:
    return f"{q.shape[1]} queries and {k.shape[1]} keys, where it takes multiples of {LANES}"
  if q.shape[3] % 64 or q.shape[3] > 256:
    return f"heads of size {q.shape[3]}, where it takes multiples of 64 up to 256"
  if spec.window is not None and not (isinstance(spec.window, int) and spec.window > 0):
    return "a window that is not a number known when traced, and over 0"
  return None
