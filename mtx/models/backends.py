"""Kernels under gin: what one refuses is a mistake of who bound it."""

from collections.abc import Iterator
from contextlib import contextmanager

from mtx.errors import UserError
from pallas_kernels.unsupported import Unsupported


@contextmanager
def bound(binding: str) -> Iterator[None]:
  """Within it `Unsupported` becomes a UserError that names the binding."""
  try:
    yield
  except Unsupported as error:
    raise UserError(f"binding `{binding}`: {error}") from error
