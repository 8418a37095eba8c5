"""What a vocabulary's kind must be able to do, and bytes: the simplest one."""

from collections.abc import Sequence
from typing import Protocol

from mtx.tokens.special import Special

BYTE_OFFSET = 3  # pad, eos and unk come before byte 0, as in ByT5 (Xue et al. 2022, arXiv 2105.13626)

_NAMES = ("<pad>", "</s>", "<unk>")


class Codec(Protocol):
  """Text to ids and back, without what a family adds at either end.

  Attributes:
    size: number of ids.
    sentinels: how many of them, from the end down, are T5's sentinels.
  """

  size: int
  sentinels: int

  @property
  def special(self) -> Special:
    """The special ids that the file alone tells."""

  def encode(self, text: str) -> list[int]:
    """Ids of a text."""

  def encode_marked(self, text: str) -> list[int]:
    """Ids of a text in which special tokens are written out, as chat templates do it."""

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids below `size`; special tokens are left out."""

  def spell(self, token: int) -> bytes | None:
    """UTF-8 of one token, its leading space kept; None if it is no text."""

  def written(self, token: int) -> str | None:
    """A token as the file writes it, special ones too; None if there is none."""

  def id_of(self, token: str) -> int | None:
    """Inverse of `written`."""


class Bytes:
  """ByT5's layout: pad 0, eos 1, unk 2, then the 256 bytes."""

  size = 256 + BYTE_OFFSET
  sentinels = 0
  special = Special(start_id=0, pad_id=0, eos_ids=(1,), unk_id=2, closes_inputs=True)

  def encode(self, text: str) -> list[int]:
    return [byte + BYTE_OFFSET for byte in text.encode("utf-8")]

  def encode_marked(self, text: str) -> list[int]:
    return self.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    return bytes(token - BYTE_OFFSET for token in ids if token >= BYTE_OFFSET).decode("utf-8", errors="ignore")

  def spell(self, token: int) -> bytes | None:
    return bytes([token - BYTE_OFFSET]) if BYTE_OFFSET <= token < self.size else None

  def written(self, token: int) -> str | None:
    if 0 <= token < BYTE_OFFSET:
      return _NAMES[token]
    return f"<0x{token - BYTE_OFFSET:02X}>" if BYTE_OFFSET <= token < self.size else None

  def id_of(self, token: str) -> int | None:
    return _NAMES.index(token) if token in _NAMES else None
