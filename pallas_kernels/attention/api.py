"""The one attention call of all models, and the choice of a backend."""

import functools
import importlib
import logging
from collections.abc import Callable
from dataclasses import replace

from jaxtyping import Array, Float

from pallas_kernels.attention.bias import DenseBias
from pallas_kernels.attention.spec import AttentionSpec

logger = logging.getLogger(__name__)
# Name -> module with `attention(q, k, v, spec)`.
BACKENDS = {
  "reference": "pallas_kernels.attention.reference",
  "xla": "pallas_kernels.attention.xla",
  "xla_chunked": "pallas_kernels.attention.chunked",
}
DENSE = ("reference", "xla")  # these hold all scores in memory
# Scores of a row and head, from which on they are not held in memory at once: 16 MB in float32.
DENSE_SCORES = 2048 * 2048


def backend(impl: str) -> Callable[..., Array]:
  """The function of that name.

  Raises:
    ValueError: no such backend.
  """
  if impl not in BACKENDS:
    raise ValueError(f"no attention backend {impl!r}; there are: {', '.join(BACKENDS)}.")
  return importlib.import_module(BACKENDS[impl]).attention


def chosen(queries: int, keys: int) -> str:
  """The backend that is fastest of those that honour every field, on the default device."""
  return "xla" if queries * keys <= DENSE_SCORES else "xla_chunked"


def prepared(spec: AttentionSpec, queries: int, keys: int, impl: str | None = None) -> AttentionSpec:
  """The spec with what a stack's layers share computed once: a bias that the backend reads written out is so here."""
  reads_dense = (chosen(queries, keys) if impl is None else impl) in DENSE
  bias = spec.dense_bias(queries, keys) if reads_dense else None
  return spec if bias is None else replace(spec, bias=DenseBias(bias))


def attention(
  q: Float[Array, "batch query heads d_kv"],
  k: Float[Array, "batch key kv_heads d_kv"],
  v: Float[Array, "batch key kv_heads d_kv"],
  spec: AttentionSpec,
  *,
  impl: str | None = None,
) -> Float[Array, "batch query heads d_kv"]:
  """Attention as `spec` says.

  Args:
    k, v: fewer heads than q serve groups of its heads: head h of q uses head h // (heads / kv_heads).
    impl: name of a backend; None: the best that honours the spec.

  Raises:
    ValueError: no such backend, or heads that are no multiple of key heads.
  """
  if q.shape[2] % k.shape[2]:
    raise ValueError(f"attention: {q.shape[2]} heads of queries are no multiple of {k.shape[2]} heads of keys.")
  name = chosen(q.shape[1], k.shape[1]) if impl is None else impl
  _tell(name, spec.features)
  return backend(name)(q, k, v, spec)


@functools.cache
def _tell(name: str, features: tuple[str, ...]) -> None:
  """Says once which backend was taken for what."""
  logger.info("attention: %s for %s", name, ", ".join(features) or "full attention")
