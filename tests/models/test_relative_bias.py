"""T5's relative position buckets, and the bias read from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mtx.models.attention import RelativeBias
from pallas_kernels.attention.bias import relative_buckets
from pallas_kernels.attention.spec import AttentionSpec


@pytest.mark.parametrize("buckets, max_distance", [(32, 128), (8, 16), (16, 128), (6, 20)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_equal_transformers(bidirectional, buckets, max_distance):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  t5 = pytest.importorskip("transformers.models.t5.modeling_t5", reason="transformers is not installed")
  relative = np.arange(-300, 301)[None, :]
  theirs = t5.T5Attention._relative_position_bucket(
    torch.tensor(relative), bidirectional=bidirectional, num_buckets=buckets, max_distance=max_distance
  )
  ours = relative_buckets(relative, bidirectional=bidirectional, buckets=buckets, max_distance=max_distance)
  np.testing.assert_array_equal(ours, theirs.numpy())
  assert len(np.unique(ours)) > buckets // 2 - 1


def test_bias_is_toeplitz_and_offset_slices_it():
  """The bias depends on key minus query alone; `offset` gives the rows of a longer square, as decoding needs."""
  make = lambda rngs: RelativeBias(3, bidirectional=False, buckets=8, max_distance=16, std=1.0, rngs=rngs)
  bias = make(nnx.Rngs(0))()
  square = np.asarray(AttentionSpec(bias=bias).dense_bias(12, 12))[0]
  assert square.shape == (3, 12, 12)
  np.testing.assert_array_equal(square[:, 1:, 1:], square[:, :-1, :-1])
  rows = jax.jit(lambda i: AttentionSpec(bias=bias, offset=i).dense_bias(2, 12)[0])(jnp.int32(7))
  np.testing.assert_array_equal(rows, square[:, 7:9])
  assert len(np.unique(square[0])) == 8 - 1  # 12 positions do not reach the last bucket
