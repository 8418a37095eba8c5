"""Tokenizers in Hugging Face's format: one tokenizer.json, read by their own library."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from mtx.errors import UserError
from mtx.tokens.sentencepieces import SENTINEL
from mtx.tokens.special import Special


class HuggingFace:
  """A tokenizer.json without the tokens that it puts around a text. Special tokens that a text writes out are read.

  Args:
    path: of the file.
    added: (text, id, whether it is special) of tokens that a folder's settings add.
  """

  def __init__(self, path: Path | str, added: Sequence[tuple[str, int, bool]] = ()):
    self._path = path
    self.tokenizer = _tokenizer(path)
    for text, token, special in sorted(added, key=lambda each: each[1]):
      if self.tokenizer.token_to_id(text) is None:
        made = AddedToken(text, special=special, normalized=not special)
        (self.tokenizer.add_special_tokens if special else self.tokenizer.add_tokens)([made])
      if self.tokenizer.token_to_id(text) != token:
        raise UserError(
          f"{path}: token {text!r} would have id {self.tokenizer.token_to_id(text)}, tokenizer_config.json says {token}"
        )
    self._tokens = {token: text for text, token in self.tokenizer.get_vocab(with_added_tokens=True).items()}
    self._added = self.tokenizer.get_added_tokens_decoder()
    self.size = max(self._tokens, default=-1) + 1
    self.sentinels = next(i for i in range(self.size + 1) if not self._is_sentinel(i))

  def _is_sentinel(self, index: int) -> bool:
    found = SENTINEL.fullmatch(self._tokens.get(self.size - 1 - index, ""))
    return bool(found and int(found[1]) == index)

  @functools.cached_property
  def frame(self) -> tuple[list[int], list[int]]:
    """What the file puts before and after a text."""
    whole = self.tokenizer.encode("a", add_special_tokens=True)
    inside = [i for i, special in enumerate(whole.special_tokens_mask) if not special] or [len(whole.ids)]
    return whole.ids[: inside[0]], whole.ids[inside[-1] + 1 :]

  @property
  def special(self) -> Special:
    """Always from the folder."""
    raise UserError(
      f"{self._path}: its special tokens are not known", hint="open it with Vocabulary.open, which reads its folder"
    )

  def encode(self, text: str) -> list[int]:
    return self.tokenizer.encode(text, add_special_tokens=False).ids

  def encode_marked(self, text: str) -> list[int]:
    return self.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    return self.tokenizer.decode(list(ids), skip_special_tokens=True)

  def spell(self, token: int) -> bytes | None:
    if token in self._added:
      added = self._added[token]
      return None if added.special else added.content.encode()
    piece = self._tokens.get(token)
    if piece is None:
      return None
    if self._byte_level:
      return bytes(_BYTES[character] for character in piece if character in _BYTES)
    if found := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):
      return bytes([int(found[1], 16)])
    return piece.replace("▁", " ").encode()

  @functools.cached_property
  def _byte_level(self) -> bool:
    return "ByteLevel" in repr(self.tokenizer.decoder)

  def written(self, token: int) -> str | None:
    return self._tokens.get(token)

  def id_of(self, token: str) -> int | None:
    return self.tokenizer.token_to_id(token)


def _tokenizer(path: Path | str) -> Tokenizer:
  try:
    tokenizer = Tokenizer.from_file(str(path))
  except Exception as error:  # the library has no class of its own for what it can not read
    raise UserError(f"{path} is not a tokenizer.json: {error}", hint="save the tokenizer again") from error
  tokenizer.no_truncation()
  tokenizer.no_padding()
  return tokenizer


def _characters() -> dict[str, int]:
  """GPT-2's table: bytes that can be seen stand for themselves, the others for characters from 256 on, in order."""
  seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
  hidden = [byte for byte in range(256) if byte not in seen]
  return {chr(byte): byte for byte in seen} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_BYTES = _characters()
