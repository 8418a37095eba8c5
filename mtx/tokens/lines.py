"""SentencePiece line by line: prompts of a task share most of their lines, and a line that is known costs a look-up.

Where a line's end is a space to the model, and no piece reaches over a space, the ids of a text are those of its lines.
One trap remains: unigram models add up scores over the whole text in float32. Where two segmentations of a word are
equally good, ii·i and i·ii, the rounding of what stands before decides. Texts with such words are encoded whole.

What is left are other words of which two segmentations differ by less than that rounding, 0.0004 nats after a thousand
tokens: two of 20,566 inputs and targets of Super-NaturalInstructions. Here such a word is split as it would be in a
short text, as the tokenizers of Hugging Face do, which look at every word alone.
"""

import functools
import re
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
import sentencepiece
from jaxtyping import Int32
from sentencepiece import sentencepiece_model_pb2

_proto: Any = sentencepiece_model_pb2
_Piece = _proto.ModelProto.SentencePiece
NORMALIZERS = ("nmt_nfkc", "nmt_nfkc_cf")  # to them a line's end is a space; the others keep it
SPACE = "▁"
KEPT = 1 << 11  # lines: those of the tasks at hand, and in each example a new one or two
TEXT = 8192  # characters; sums of longer texts are rounded more
WORD = 32  # characters; among the segmentations of longer ones there are too many to choose from
TIE = 0.01  # nats
# Pieces that can change places without changing the word repeat in it: iii, banana, abcabca.
_OVERLAP = re.compile(r"(\S)(?:\1\1|(\S)(?:\1\2\1|(\S)\1\2\3\1))")


class Tied(Exception):
  """A line that can not be encoded by itself."""


def encoder(pieces: sentencepiece.SentencePieceProcessor, model: bytes) -> Callable[[str], Int32[np.ndarray, "length"]]:
  """`pieces.encode` that gives arrays, which may be read-only.

  Args:
    model: the serialised ModelProto of `pieces`.
  """

  def whole(text: str) -> np.ndarray:
    if hasattr(pieces, "EncodeAsNumpy"):  # since 0.2.2
      return pieces.Encode(text, return_type="numpy")
    return np.array(pieces.encode(text), np.int32)

  found = _proto.ModelProto.FromString(model)
  if not separable(found):
    return whole
  unigram = found.trainer_spec.model_type == _proto.TrainerSpec.UNIGRAM

  @functools.lru_cache(KEPT)
  def line(text: str) -> bytes:
    if unigram and _OVERLAP.search(text) and _tied(text, pieces):
      raise Tied
    return array("i", pieces.encode(text)).tobytes()

  def encode(text: str) -> np.ndarray:
    # A space sign of the text's own is cut off where a text ends.
    if "\n" in text and len(text) <= TEXT and SPACE not in text:
      try:
        return np.frombuffer(b"".join(map(line, text.split("\n"))), np.int32)
      except Tied:
        pass
    return whole(text)

  return encode


def separable(model: Any) -> bool:
  """Whether the ids of a text are those of its lines, one after the other.

  Args:
    model: a ModelProto.
  """
  normalizer, trainer = model.normalizer_spec, model.trainer_spec
  return (
    trainer.model_type in (_proto.TrainerSpec.UNIGRAM, _proto.TrainerSpec.BPE)
    and normalizer.name in NORMALIZERS
    and normalizer.add_dummy_prefix
    and normalizer.remove_extra_whitespaces
    and normalizer.escape_whitespaces
    and not trainer.treat_whitespace_as_suffix
    # Else neighbours that are unknown would become one.
    and any(each.piece == SPACE and each.type in (_Piece.NORMAL, _Piece.USER_DEFINED) for each in model.pieces)
    and not any(SPACE in each.piece[1:] for each in model.pieces if each.type not in (_Piece.CONTROL, _Piece.UNKNOWN))
  )


def _tied(line: str, pieces: sentencepiece.SentencePieceProcessor) -> bool:
  """Whether a word with repetitions has two segmentations that are equally good, nearly."""
  for word in filter(_OVERLAP.search, line.split()):
    if len(word) > WORD:
      return True
    scores = [each.score for each in pieces.NBestEncodeAsImmutableProto(word, 2).nbests]
    if len(scores) > 1 and scores[0] - scores[1] < TIE:
      return True
  return False
