"""Block sizes by what they depend on: a table that `python -m pallas_kernels.bench --tune` writes, and what a kernel
says itself where the table has no line."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

TABLE = Path(__file__).parent / "table.json"


def key(kernel: str, device: str, dtype: DTypeLike, size: int, length: int, features: tuple[str, ...] = ()) -> str:
  """The name of a line: lengths count by powers of two, features in any order.

  Args:
    kernel: name of the kernel and its direction, "attention_tpu_forward".
    device: `device_kind` of jax. size: of a head, or what else a kernel's width is. length: of the longest axis.
  """
  bucket = 1 << max(length - 1, 0).bit_length()
  return "/".join((kernel, device, jnp.dtype(dtype).name, str(size), str(bucket), "+".join(sorted(features)) or "-"))


def tuned(
  kernel: str, default: Mapping[str, int], dtype: DTypeLike, size: int, length: int, features: tuple[str, ...] = ()
) -> dict[str, int]:
  """Block sizes by name for the default device: the table's line, or else `default`."""
  line = table().get(key(kernel, jax.devices()[0].device_kind, dtype, size, length, features), {})
  return {name: line.get(name, blocks) for name, blocks in default.items()}


@functools.cache
def table() -> dict[str, dict[str, int]]:
  """All lines."""
  return json.loads(TABLE.read_text())
