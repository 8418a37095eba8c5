"""The device mesh: what fits, and what is said when it does not."""

import jax
import pytest

from mtx.errors import UserError
from mtx.parallel.mesh import batch_ways, check_batch, make_mesh

pytestmark = pytest.mark.skipif(len(jax.devices()) != 8, reason="XLA_FLAGS of this process gives another number than 8")


@pytest.mark.parametrize(
  "written, sizes",
  [
    ({}, (8, 1, 1)),
    ({"fsdp": 2, "tensor": 2}, (2, 2, 2)),
    ({"data": 1, "fsdp": -1}, (1, 8, 1)),
    ({"data": 2, "fsdp": 1, "tensor": -1}, (2, 1, 4)),
    ({"data": 4, "fsdp": 2, "tensor": 1}, (4, 2, 1)),
  ],
)
def test_sizes(written, sizes):
  mesh = make_mesh(**written)
  assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), sizes, strict=True))
  assert batch_ways(mesh) == sizes[0] * sizes[1]


@pytest.mark.parametrize(
  "written, message, hint",
  [
    ({"fsdp": 3}, r"mesh\(data=-1, fsdp=3, tensor=1\) does not fit 8 devices", "one of \\[1, 2, 4, 8\\]"),
    ({"data": 3}, r"mesh\(data=3, fsdp=1, tensor=1\) needs 3 devices, and there are 8", "product must be 8"),
    ({"data": 2, "fsdp": 2, "tensor": 4}, r"needs 16 devices, and there are 8", "product must be 8"),
    ({"fsdp": -1}, "at most one may be -1", ""),
    ({"data": 0}, "sizes are at least 1", ""),
    ({"tensor": -2}, "sizes are at least 1", ""),
  ],
)
def test_what_does_not_fit(written, message, hint):
  with pytest.raises(UserError, match=f"{message}[^@]*{hint}"):
    make_mesh(**written)


def test_batch(mesh8):
  """Rows split over data and fsdp, not tensor, in every microbatch; the nearest batch that works is named."""
  check_batch(8, 2, mesh8)
  with pytest.raises(UserError, match=r"`feed.batch` = 18 .*2 \* 2 \* 2 = 8") as error:
    check_batch(18, 2, mesh8)
  assert "nearest valid batch is 16" in error.value.hint
  with pytest.raises(UserError, match=r"`feed.batch` = 2 ") as error:
    check_batch(2, 1, mesh8)
  assert "nearest valid batch is 4" in error.value.hint
