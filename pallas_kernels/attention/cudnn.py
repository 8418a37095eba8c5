"""cuDNN's flash attention on NVIDIA GPUs, by way of `jax.nn.dot_product_attention`, for what it means exactly as a spec
does.

Refused although cuDNN has something like it: causal order of unequal lengths (which ends are aligned differs between
versions), windows together with key lengths (a query may see nothing), and biases of another dtype than q's (cuDNN
would round them). Not run on a GPU: the same arguments were checked with XLA's implementation.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pallas_kernels.attention.bias import DenseBias
from pallas_kernels.attention.spec import AttentionSpec

HONOURED = ("causal", "key_lengths", "window", "bias:DenseBias")
DTYPES = ("bfloat16", "float16")
HOPPER = 9


def attention(
  q: Float[Array, "batch query heads d_kv"],
  k: Float[Array, "batch key kv_heads d_kv"],
  v: Float[Array, "batch key kv_heads d_kv"],
  spec: AttentionSpec,
  *,
  implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "batch query heads d_kv"]:
  """See `AttentionSpec`.

  Args:
    implementation: of `jax.nn.dot_product_attention`.
  """
  lengths = None
  if spec.key_lengths is not None:
    # What a row without keys gives is not defined: it is shown one, and its output set to zero.
    lengths = jnp.clip(jnp.asarray(spec.key_lengths, jnp.int32), 1, k.shape[1])
  y = jax.nn.dot_product_attention(
    q,
    k,
    v,
    bias=spec.dense_bias(q.shape[1], k.shape[1]),
    scale=spec.scale,
    is_causal=spec.causal,
    key_value_seq_lengths=lengths,
    local_window_size=(spec.window - 1, 0) if isinstance(spec.window, int) else None,
    implementation=implementation,
  )
  if spec.key_lengths is None:
    return y
  return jnp.where(jnp.asarray(spec.key_lengths)[:, None, None, None] > 0, y, 0)


def refusal(q, k, v, spec) -> str | None:
  """What cuDNN has no kernel for, and machines without it."""
  generation = compute_capability()
  if generation is None:
    return "it takes a CUDA device"
  if not q.dtype == k.dtype == v.dtype or q.dtype.name not in DTYPES:
    return f"it takes q, k and v of one dtype of {', '.join(DTYPES)}, not {q.dtype}, {k.dtype}, {v.dtype}"
  widest = 256 if generation >= HOPPER else 128
  if q.shape[3] > widest or q.shape[3] % 8 or v.shape[3] != q.shape[3]:
    return f"it takes heads of one size, a multiple of 8 up to {widest}, not {q.shape[3]} and {v.shape[3]}"
  if spec.causal and q.shape[1] != k.shape[1]:
    return f"it takes causal order of as many queries as keys, not {q.shape[1]} and {k.shape[1]}"
  return _refused_window(spec) or _refused_bias(q, k, spec)


def compute_capability() -> int | None:
  """Major version of the default device's, or None where that is no CUDA device."""
  version = getattr(jax.devices()[0], "compute_capability", None)
  return int(version.split(".")[0]) if isinstance(version, str) and version[:1].isdigit() else None


def _refused_window(spec: AttentionSpec) -> str | None:
  if spec.window is None:
    return None
  if not isinstance(spec.window, int) or not spec.causal or spec.key_lengths is not None:
    return "it takes a window that is a Python int, with causal order and without key lengths"
  return None


def _refused_bias(q, k, spec: AttentionSpec) -> str | None:
  if not isinstance(spec.bias, DenseBias):
    return None
  if spec.bias.values.dtype != q.dtype:
    return f"it takes a bias of q's dtype {q.dtype}, not {spec.bias.values.dtype}"
  if q.shape[1] % 2 or k.shape[1] % 2:
    return f"it takes a bias of an even number of queries and of keys, not {q.shape[1]} and {k.shape[1]}"
  return None
