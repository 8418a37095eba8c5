"""Which backend is taken where nothing is said."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.attention import api
from pallas_kernels.attention.bias import Buckets
from pallas_kernels.attention.spec import AttentionSpec

LEARNED = Buckets(jnp.ones((32, 4)), True, 128)
SPECS = {
  "causal": AttentionSpec(causal=True),
  "T5": AttentionSpec(bias=LEARNED),
  "layers that differ in windows": AttentionSpec(causal=True, window=jnp.int32(5)),
}


@pytest.mark.parametrize(
  ("platform", "length", "wanted"),
  [
    ("cpu", 512, ("xla", "xla", "xla")),
    ("cpu", 4096, ("xla_chunked", "xla_chunked", "xla_chunked")),
    ("tpu", 128, ("xla", "xla", "xla")),
    ("tpu", 512, ("splash", "mosaic_tpu", "mosaic_tpu")),
    ("tpu", 16384, ("splash", "xla_chunked", "mosaic_tpu")),  # the bias of so many diagonals does not fit on the chip
    ("gpu", 128, ("xla", "xla", "xla")),
    ("gpu", 512, ("triton", "triton", "triton")),  # cuDNN is not where there is no GPU
  ],
)
def test_choice(monkeypatch, platform, length, wanted):
  monkeypatch.setattr(jax, "default_backend", lambda: platform)
  x = jax.ShapeDtypeStruct((2, length, 4, 64), jnp.bfloat16)
  assert tuple(api.chosen(x, x, x, spec) for spec in SPECS.values()) == wanted


def test_what_is_chosen_from_is_there():
  named = {*api.DENSE, *api.PARTITIONED, *(name for names in api.KERNELS.values() for name in names)}
  assert named <= set(api.BACKENDS)
