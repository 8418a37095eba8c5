"""Vocabularies whose numbers are tokens of one to a few digits, around bytes, pieces or words.

The Number Cookbook (Yang et al. 2024, arXiv 2411.03766) compares 1, 2 and 3 digits a token, grouped from the left or
the right. A number is a run of ASCII digits: the two sides of a decimal point are two numbers. After the base's own ids
there is a token for every string of 1 to `most` digits, the shorter ones first: 10, 110 or 1110 tokens.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from mtx.errors import UserError
from mtx.tokens.codec import Bytes
from mtx.tokens.sentencepieces import SentencePieces, proto
from mtx.tokens.special import Special

ALIGNMENTS = ("left", "right")
LARGEST = 3
NAME = re.compile(r"digits(?:-(\d+))?(?:-(\w+))?(?::(.+))?")
_RUN = re.compile("([0-9]+)")
_WORD = re.compile(r"\s+|[0-9]+|[^\s0-9]+")
_PRIVATE = 0xF0000  # the first of 65,534 private characters: text has no use for them
_WORD_MODEL = proto.TrainerSpec.WORD


@dataclass(frozen=True)
class Grouping:
  """How a number falls into tokens.

  Attributes:
    most: digits a token, 1 to 3.
    align: the end from which full groups are counted: 12345 is 123 45 from the "left" and 12 345 from the "right".

  Raises:
    UserError: another number of digits, or another end.
  """

  most: int = 1
  align: str = "right"

  def __post_init__(self):
    if not 1 <= self.most <= LARGEST:
      raise UserError(f"{self.most} digits a token", hint=f"1 to {LARGEST}")
    if self.align not in ALIGNMENTS:
      raise UserError(f"digits are aligned {self.align!r}", hint=f"valid choices: {', '.join(ALIGNMENTS)}")

  def __call__(self, number: str) -> list[str]:
    """Groups of a run of digits."""
    first = len(number) % self.most if self.align == "right" else 0
    cuts = sorted({0, *range(first, len(number), self.most), len(number)})
    return [number[a:b] for a, b in itertools.pairwise(cuts)]

  @property
  def groups(self) -> list[str]:
    """Every group there can be, in the order of ids."""
    return [f"{i:0{size}}" for size in range(1, self.most + 1) for i in range(10**size)]


def named(name: str) -> tuple[Grouping, Path | None] | None:
  """The grouping and the base of `digits`, `digits-3`, `digits-3-left`, `digits-3-left:FILE`; None of another name.

  FILE is a SentencePiece model, which may be one of words; without it the base is bytes.
  """
  found = NAME.fullmatch(name)
  if not found:
    return None
  grouping = Grouping(int(found[1] or 1), found[2] or "right")
  return grouping, Path(found[3]).expanduser() if found[3] else None


def over(model: bytes | None, path: Path | str, grouping: Grouping) -> "DigitBytes | DigitPieces | DigitWords":
  """The codec on top of a SentencePiece model; None: of bytes."""
  if model is None:
    return DigitBytes(grouping)
  if proto.ModelProto.FromString(model).trainer_spec.model_type == _WORD_MODEL:
    return DigitWords(model, path, grouping)
  return DigitPieces(model, path, grouping)


class DigitBytes:
  """Bytes; numbers have tokens of their own."""

  sentinels = 0
  special = Bytes.special

  def __init__(self, grouping: Grouping):
    self._bytes, self._grouping, self._groups = Bytes(), grouping, grouping.groups
    self._ids = {group: Bytes.size + i for i, group in enumerate(self._groups)}
    self.size = Bytes.size + len(self._groups)

  def encode(self, text: str) -> list[int]:
    ids: list[int] = []
    for i, part in enumerate(_RUN.split(text)):
      ids += [self._ids[group] for group in self._grouping(part)] if i % 2 else self._bytes.encode(part)
    return ids

  def encode_marked(self, text: str) -> list[int]:
    return self.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    return b"".join(filter(None, map(self.spell, ids))).decode("utf-8", errors="ignore")

  def spell(self, token: int) -> bytes | None:
    if Bytes.size <= token < self.size:
      return self._groups[token - Bytes.size].encode()
    return self._bytes.spell(token)

  def written(self, token: int) -> str | None:
    return self._groups[token - Bytes.size] if Bytes.size <= token < self.size else self._bytes.written(token)

  def id_of(self, token: str) -> int | None:
    return self._ids.get(token, self._bytes.id_of(token))


class DigitPieces:
  """A model of pieces in which every group of digits is a private character, a piece that nothing joins with."""

  def __init__(self, model: bytes, path: Path | str, grouping: Grouping):
    self._grouping, self._groups = grouping, grouping.groups
    self._characters = {group: chr(_PRIVATE + i) for i, group in enumerate(self._groups)}
    self._back = {ord(character): group for group, character in self._characters.items()}
    wider = proto.ModelProto.FromString(model)
    for character in self._characters.values():
      wider.pieces.add(piece=character, score=0.0, type=proto.ModelProto.SentencePiece.USER_DEFINED)
    self._pieces = SentencePieces(wider.SerializeToString(), path)
    self.size, self.sentinels = self._pieces.size, 0

  @property
  def special(self) -> Special:
    return self._pieces.special

  def encode(self, text: str) -> list[int]:
    return self._pieces.encode(self._hidden(text))

  def array(self, text: str) -> Int32[np.ndarray, "length"]:
    """`encode` as an array."""
    return self._pieces.array(self._hidden(text))

  def encode_marked(self, text: str) -> list[int]:
    return self._pieces.encode_marked(self._hidden(text))

  def _hidden(self, text: str) -> str:
    plain = text.translate(dict.fromkeys(self._back, "\ufffd"))  # or it would come back as a number
    return _RUN.sub(lambda found: "".join(map(self._characters.__getitem__, self._grouping(found[0]))), plain)

  def decode(self, ids: Sequence[int]) -> str:
    return self._pieces.decode(ids).translate(self._back)

  def spell(self, token: int) -> bytes | None:
    found = self._pieces.spell(token)
    return found and found.decode("utf-8", errors="surrogateescape").translate(self._back).encode(
      "utf-8", errors="surrogateescape"
    )

  def written(self, token: int) -> str | None:
    found = self._pieces.written(token)
    return found and found.translate(self._back)

  def id_of(self, token: str) -> int | None:
    return self._pieces.id_of(self._characters.get(token, token))


class DigitWords:
  """A model of whole words. What follows without a space is marked, so that text comes back up to its white space.

  After the words: groups with a space before them, groups without one, then one mark for a word without one.
  """

  sentinels = 0

  def __init__(self, model: bytes, path: Path | str, grouping: Grouping):
    self._words, self._grouping, self._groups = SentencePieces(model, path), grouping, grouping.groups
    self._first = self._words.size
    self._ids = {group: self._first + i for i, group in enumerate(self._groups)}
    self._glue = self._first + 2 * len(self._groups)
    self.size = self._glue + 1

  @property
  def special(self) -> Special:
    return self._words.special

  def encode(self, text: str) -> list[int]:
    return list(self._encode(text))

  def _encode(self, text: str) -> Iterator[int]:
    joined = False
    for part in _WORD.findall(text):
      if part.isspace():
        joined = False
        continue
      if part[0] in "0123456789":
        for group in self._grouping(part):
          yield self._ids[group] + (len(self._groups) if joined else 0)
          joined = True
      else:
        if joined:
          yield self._glue
        yield from self._words.encode(part)
        joined = True

  def encode_marked(self, text: str) -> list[int]:
    return self.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    text, glued = "", True
    for is_word, run in itertools.groupby(ids, key=lambda token: token < self._first):
      for shown, joined in [(self._words.decode(list(run)), False)] if is_word else map(self._group, run):
        if shown:
          text += shown if glued or joined else f" {shown}"
        glued = not shown and (glued or joined)
    return text

  def _group(self, token: int) -> tuple[str, bool]:
    """Digits and whether they follow without a space; no digits are the mark for a word."""
    if token == self._glue:
      return "", True
    place = token - self._first
    return self._groups[place % len(self._groups)], place >= len(self._groups)

  def spell(self, token: int) -> bytes | None:
    if token < self._first:
      return self._words.spell(token)
    if token >= self._glue:
      return None
    group, joined = self._group(token)
    return group.encode() if joined else f" {group}".encode()

  def written(self, token: int) -> str | None:
    if token < self._first:
      return self._words.written(token)
    if token > self._glue:
      return None
    group, joined = self._group(token)
    return f"##{group}" if joined else group

  def id_of(self, token: str) -> int | None:
    return next((i for i in range(self._first, self.size) if self.written(i) == token), self._words.id_of(token))
