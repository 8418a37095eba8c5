"""SentencePiece models in any layout: T5's, Llama's, Gemma's; and llama2.c's tokenizer files, which hold the same."""

import functools
import itertools
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from jaxtyping import Int32
from sentencepiece import sentencepiece_model_pb2

from mtx.errors import UserError
from mtx.tokens import lines
from mtx.tokens.special import Special

SENTINEL = re.compile(r"▁?<extra_id_(\d+)>")
proto: Any = sentencepiece_model_pb2  # its classes are made when it is imported, which no checker sees
_Piece = proto.ModelProto.SentencePiece
_LLAMA2C_BYTES = 3  # ids before byte 0: <unk>, BOS, EOS


class SentencePieces:
  """A model's own pieces, then tokens that a folder's settings add.

  Args:
    model: a serialised ModelProto.
    path: of it, for messages.
    added: (text, id, whether it is special), with ids from the end of the pieces on; ids of pieces name those.
  """

  def __init__(self, model: bytes, path: Path | str, added: Sequence[tuple[str, int, bool]] = ()):
    self.pieces = _processor(model, path)
    self._model, self._path = model, path
    self._count = self.pieces.GetPieceSize()
    self.size = max([self._count, *(token + 1 for _, token, _ in added)])
    self.sentinels = _sentinels(self.pieces) if self.size == self._count else 0
    self._shown = {token: text for text, token, special in added if not special}
    # Asked of the processor, one piece after the other, this would take a second for 256,000 pieces.
    special = (_Piece.CONTROL, _Piece.UNKNOWN)
    found = enumerate(proto.ModelProto.FromString(model).pieces)
    self._marks = {each.piece: i for i, each in found if each.type in special}
    self._marks |= {text: token for text, token, _ in added}
    self._written = {token: text for text, token in self._marks.items()}
    longest_first = sorted(self._marks, key=len, reverse=True)
    self._mark = re.compile("|".join(map(re.escape, longest_first)))

  @functools.cached_property
  def special(self) -> Special:
    """By layout: with a BOS a decoder's (Llama, Gemma), without one T5's, whose rows begin with padding.

    Raises:
      UserError: no EOS.
    """
    pieces = self.pieces
    bos, eos, pad, unk = pieces.bos_id(), pieces.eos_id(), pieces.pad_id(), pieces.unk_id()
    if eos < 0:
      raise UserError(f"{self._path} has no EOS: nothing ends a target", hint="train it with eos_id=1")
    names = {"bos_token": bos, "eos_token": eos, "pad_token": pad, "unk_token": unk}
    start = bos if bos >= 0 else pad
    return Special(
      start_id=start if start >= 0 else None,
      pad_id=pad if pad >= 0 else eos,
      eos_ids=(eos,),
      unk_id=unk if unk >= 0 else None,
      closes_inputs=bos < 0,
      names=tuple((name, pieces.IdToPiece(token)) for name, token in names.items() if token >= 0),
    )

  def encode(self, text: str) -> list[int]:
    return self.array(text).tolist()

  @functools.cached_property
  def array(self) -> Callable[[str], Int32[np.ndarray, "length"]]:
    """`encode` that gives arrays, perhaps read-only ones."""
    return lines.encoder(self.pieces, self._model)

  def encode_marked(self, text: str) -> list[int]:
    """Only what stands first gets the space that a model puts before text."""
    ids: list[int] = []
    at = 0
    for found in itertools.chain(self._mark.finditer(text), [None]):
      part = text[at : found.start() if found else len(text)]
      if part:
        ids += self.encode(part) if at == 0 else self._inner.encode(part)
      if found:
        ids.append(self._marks[found[0]])
        at = found.end()
    return ids

  @functools.cached_property
  def _inner(self) -> sentencepiece.SentencePieceProcessor:
    """For text after a special token."""
    model = proto.ModelProto.FromString(self._model)
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    return _processor(model.SerializeToString(), self._path)

  def decode(self, ids: Sequence[int]) -> str:
    if not self.sentinels and self.size == self._count:
      return self.pieces.decode(list(ids))
    text = ""
    for shown, run in itertools.groupby(ids, key=self._shown.__contains__):
      if shown:
        text += "".join(self._shown[token] for token in run)
      else:
        text += self.pieces.decode([token for token in run if token < self._count - self.sentinels])
    return text

  def spell(self, token: int) -> bytes | None:
    if token in self._shown:
      return self._shown[token].encode()
    if not 0 <= token < self._count or self.pieces.IsControl(token) or self.pieces.IsUnknown(token):
      return None
    piece = self.pieces.IdToPiece(token)
    if self.pieces.IsByte(token):
      return bytes([int(piece[3:-1], 16)])
    return piece.replace("▁", " ").encode()

  def written(self, token: int) -> str | None:
    return self._written.get(token) or (self.pieces.IdToPiece(token) if 0 <= token < self._count else None)

  def id_of(self, token: str) -> int | None:
    if token in self._marks:
      return self._marks[token]
    found = self.pieces.PieceToId(token)
    return found if self.pieces.IdToPiece(found) == token else None


def read_model(path: Path) -> bytes:
  """A `.model` file."""
  return Path(path).read_bytes()


def read_llama2c(path: Path) -> bytes:
  """A tokenizer file of llama2.c as a ModelProto.

  The file is int32 longest piece, then float32 score, int32 length and bytes of every piece: <unk>, BOS, EOS, the 256
  bytes, then pieces with plain spaces. Its encoder puts a space before the text, takes characters (bytes where one has
  no piece) and joins the neighbours whose union scores best, the leftmost of equals, until there are none: that is
  SentencePiece's BPE.

  Raises:
    UserError: sizes that the file does not hold, or another order.
  """
  content = Path(path).read_bytes()
  model = proto.ModelProto()
  at = 4
  found: list[tuple[str, float]] = []
  try:
    while at < len(content):
      score, length = struct.unpack_from("<fi", content, at)
      at += 8
      if not 0 <= length <= len(content) - at:
        raise ValueError(f"piece {len(found)} has {length} bytes")
      found.append((content[at : at + length].decode("utf-8"), score))
      at += length
    if [text for text, _ in found[_LLAMA2C_BYTES:][:256]] != [f"<0x{byte:02X}>" for byte in range(256)]:
      raise ValueError("ids 3 to 258 are not the 256 bytes")
  except (struct.error, ValueError) as error:
    raise UserError(f"{path} is not a tokenizer file of llama2.c: {error}", hint="copy it again") from error
  kinds = {0: _Piece.UNKNOWN, 1: _Piece.CONTROL, 2: _Piece.CONTROL}
  names = {0: "<unk>", 1: "<s>", 2: "</s>"}
  for token, (text, score) in enumerate(found):
    kind = kinds.get(token, _Piece.BYTE if token < 256 + _LLAMA2C_BYTES else _Piece.NORMAL)
    model.pieces.add(piece=names.get(token, text.replace(" ", "▁")), score=score, type=kind)
  spec = model.trainer_spec
  spec.model_type, spec.byte_fallback, spec.vocab_size = proto.TrainerSpec.BPE, True, len(found)
  spec.unk_id, spec.bos_id, spec.eos_id, spec.pad_id = 0, 1, 2, -1
  model.normalizer_spec.name = "identity"
  model.normalizer_spec.remove_extra_whitespaces = False
  return model.SerializeToString()


def _processor(model: bytes, path: Path | str) -> sentencepiece.SentencePieceProcessor:
  try:
    return sentencepiece.SentencePieceProcessor(model_proto=model)
  except (RuntimeError, OSError) as error:
    raise UserError(f"{path} is not a SentencePiece model", hint=f"copy or build it again; {error}") from error


def _sentinels(pieces: sentencepiece.SentencePieceProcessor) -> int:
  """How many pieces, counted from the end, are <extra_id_0>, <extra_id_1>, ...: mT5 has them in its model."""
  size = pieces.GetPieceSize()
  for index in range(size):
    found = SENTINEL.fullmatch(pieces.IdToPiece(size - 1 - index))
    if not (found and int(found[1]) == index):
      return index
  return size
