"""Block sizes by what they depend on: a table that `python -m pallas_kernels.bench --tune` writes, and what a kernel
says itself where the table has no line."""

import functools
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

TABLE = Path(__file__).parent / "table.json"
_trial: dict[str, dict[str, int]] = {}
_asked: dict[str, dict[str, int]] = {}


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
  name = key(kernel, jax.devices()[0].device_kind, dtype, size, length, features)
  line = _trial.get(name, table().get(name, {}))
  found = {block: line.get(block, size) for block, size in default.items()}
  _asked[name] = found
  return found


@functools.cache
def table() -> dict[str, dict[str, int]]:
  """All lines."""
  return json.loads(TABLE.read_text())


@contextmanager
def trying(lines: Mapping[str, dict[str, int]]) -> Iterator[dict[str, dict[str, int]]]:
  """Within it `lines` stand before the table; gives what was looked up since, filled as it goes."""
  _trial.update(lines)
  _asked.clear()
  try:
    yield _asked
  finally:
    _trial.clear()


def write(lines: Mapping[str, dict[str, int]]) -> None:
  """Adds lines to the table's file, in place of those of their names."""
  merged = json.loads(TABLE.read_text()) | dict(lines)
  TABLE.write_text(json.dumps(dict(sorted(merged.items())), indent=2) + "\n")
  table.cache_clear()
