"""What a checkpoint is to its readers: a mapping, name -> lazy array."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class Lazy(Protocol):
  """An array that lies in a file: numpy's basic indexing reads what it asks for and nothing else."""

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def dtype(self) -> np.dtype: ...

  def __getitem__(self, index: Any) -> np.ndarray: ...


class Tensors(Mapping[str, Lazy]):
  """The tensors of a checkpoint.

  Attributes:
    path: the file or folder that was opened.
    config: what a config.json would say, for formats that hold it themselves; None otherwise.
  """

  def __init__(
    self,
    path: Path,
    arrays: Mapping[str, Lazy],
    files: Mapping[str, Path] | None = None,
    config: dict[str, Any] | None = None,
  ):
    self.path, self.config = path, config
    self._arrays, self._files = dict(arrays), dict(files or {})

  def __getitem__(self, name: str) -> Lazy:
    return self._arrays[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._arrays)

  def __len__(self) -> int:
    return len(self._arrays)

  def where(self, name: str) -> str:
    """A tensor and its file, for messages."""
    return f"{self._files.get(name, self.path)}: tensor `{name}`"

  @property
  def bytes(self) -> int:
    """Size of all arrays."""
    return sum(int(np.prod(a.shape, dtype=object)) * np.dtype(a.dtype).itemsize for a in self._arrays.values())


class Made:
  """An array that is made when it is asked for, each time anew.

  Args:
    make: gives the whole array.
  """

  def __init__(self, shape: tuple[int, ...], dtype: Any, make: Callable[[], np.ndarray]):
    self.shape, self.dtype, self._make = shape, np.dtype(dtype), make

  def __getitem__(self, index: Any) -> np.ndarray:
    return self._make()[index]
