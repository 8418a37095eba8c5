"""Attention of a few queries, those of one decoding step, on keys and values that lie in a cache.

A kernel for it is given keys and values of all layers, and a layer's number: XLA would copy a layer that it had to cut
out for a kernel, at every step.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.attention import api
from pallas_kernels.attention.api import Shaped
from pallas_kernels.attention.bias import DenseBias
from pallas_kernels.attention.decode_rows import QUERIES
from pallas_kernels.attention.spec import AttentionSpec
from pallas_kernels.unsupported import Unsupported

# Of `jax.default_backend()`. Modules of these have, beside what every backend has, `in_cache(q, cached, spec) -> y`.
KERNELS = {"tpu": "decode_tpu", "gpu": "decode_triton"}


class Cached(NamedTuple):
  """Keys and values of all layers, and the layer that is meant."""

  k: Float[Array, "layer batch kv_heads key d_kv"]
  v: Float[Array, "layer batch kv_heads key d_kv"]
  layer: Int[Array, ""] | int

  @property
  def shape(self) -> jax.ShapeDtypeStruct:
    """Of `k` as `api.attention` takes it, [batch, key, kv_heads, d_kv]."""
    _, batch, shared, keys, d_kv = self.k.shape
    return jax.ShapeDtypeStruct((batch, keys, shared, d_kv), self.k.dtype)


def without_cache(in_cache: Callable[..., Array]) -> Callable[..., Array]:
  """`attention(q, k, v, spec)` as every backend has it, by `in_cache`: keys and values are a cache of one layer."""

  def attention(
    q: Float[Array, "batch query heads d_kv"],
    k: Float[Array, "batch key kv_heads d_kv"],
    v: Float[Array, "batch key kv_heads d_kv"],
    spec: AttentionSpec,
  ) -> Float[Array, "batch query heads d_kv"]:
    k, v = (jnp.swapaxes(x, 1, 2)[None] for x in (k, v))
    return in_cache(q, Cached(k, v, 0), spec)

  return attention


def chosen(q: Shaped, k: Shaped, spec: AttentionSpec, impl: str | None, decode_impl: str | None) -> str:
  """The backend for queries on a cache.

  Args:
    q, k: as of `api.attention`; only shapes and dtypes are read.
    impl: for more queries than kernels of decoding take, and where `decode_impl` is None and none of them can do it;
      None: `api.chosen`.
    decode_impl: any backend; None: the kernel of the default device. On TPU not for rows at an index of their own: new
      keys are then written by a scatter, whose order XLA copies whole caches to and from (seen in what it compiles).
  """
  otherwise = api.chosen(q, k, k, spec) if impl is None else impl
  if q.shape[1] > QUERIES:
    return otherwise
  if decode_impl is not None:
    return decode_impl
  kernel = KERNELS.get(jax.default_backend())
  if kernel is None or api.refusal(kernel, q, k, k, spec) is not None:
    return otherwise
  return otherwise if kernel == "decode_tpu" and jnp.ndim(spec.offset) else kernel


def prepared(spec: AttentionSpec, q: Shaped, k: Shaped, *, impl: str | None, decode_impl: str | None) -> AttentionSpec:
  """`api.prepared` for what is `chosen`: layers share the bias, which kernels of decoding read written out."""
  name = chosen(q, k, spec, impl, decode_impl)
  if name not in KERNELS.values():
    return api.prepared(spec, q, k, name)
  bias = spec.dense_bias(q.shape[1], k.shape[1])
  return spec if bias is None else replace(spec, bias=DenseBias(bias))


def in_cache(
  q: Float[Array, "batch query heads d_kv"], cached: Cached, spec: AttentionSpec, *, impl: str
) -> Float[Array, "batch query heads d_kv"]:
  """Attention on one layer of a cache, as `spec` says; kernels of decoding take no gradient.

  Args:
    impl: name of any backend.

  Raises:
    ValueError: no such backend, or heads that are no multiple of key heads.
    Unsupported: the backend can not do it, or a gradient is asked of a kernel.
  """
  if impl not in KERNELS.values():
    k, v = (jnp.swapaxes(x[cached.layer], 1, 2) for x in (cached.k, cached.v))
    return api.attention(q, k, v, spec, impl=impl)
  why = api.refusal(impl, q, cached.shape, cached.shape, spec)
  if why is not None:
    raise Unsupported(f"attention backend {impl!r} can not do this: {why}.")
  return api.backend(impl).in_cache(q, cached, spec)
