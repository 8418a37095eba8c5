"""Copies of any strides are exact, and cuts of an index cover it once."""

import math

import ml_dtypes
import numpy as np
import pytest

from mtx.pretrained.blocks import LINE, ahead, buffer, cut, fill
from mtx.pretrained.safetensors_file import write_file
from mtx.pretrained.tensors import open_tensors


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.uint8])
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0), (2, 0, 1), (1, 0, 2)])
def test_fill_copies_transposed_blocks(dtype, order):
  value = np.random.default_rng(0).integers(0, 200, (3, 1100, 37)).astype(dtype).transpose(order)
  out = buffer(value.shape, np.dtype(dtype))
  assert out.ctypes.data % LINE == 0 and out.flags.c_contiguous
  fill(out, value)
  assert out.tobytes() == np.ascontiguousarray(value).tobytes()
  back = np.zeros((3, 1100, 37), dtype)
  fill(back.transpose(order), out)
  assert np.array_equal(back.transpose(order), value)


def test_fill_casts_and_takes_scalars():
  out = buffer((70, 1200), np.dtype(np.float32))
  value = np.random.default_rng(0).normal(size=(1200, 70)).astype(ml_dtypes.bfloat16).T
  fill(out, value)
  assert np.array_equal(out, value.astype(np.float32))
  scalar = buffer((), np.dtype(np.float32))
  fill(scalar, np.array(3, np.float32))
  assert scalar == 3


@pytest.mark.parametrize("most", [1, 4, 12, 40, 100, 1000])
def test_cuts_cover_an_index_once(most):
  index = (slice(2, 5), slice(0, 4), slice(1, 6))
  seen = np.zeros((6, 6, 6), int)
  for part in cut(index, 4, most):
    seen[part] += 1
    size = 4 * math.prod(s.stop - s.start for s in part)
    assert size <= max(most, 4)
  assert (seen[index] == 1).all() and seen.sum() == 3 * 4 * 5
  assert list(cut((), 4, most)) == [()]


def test_reading_ahead_is_only_advice(tmp_path):
  path = tmp_path / "m.safetensors"
  write_file(path, {"a": np.arange(10_000, dtype=np.float32).reshape(100, 100), "e": np.zeros((0, 3), np.float32)})
  read = open_tensors(path)
  ahead(read["a"].T[3:, ::2])
  ahead(read["e"])
  ahead(np.ones(3))
  assert np.array_equal(read["a"].reshape(-1), np.arange(10_000))
