"""Vocabularies for SeqIO's tasks: of any kind that mtx reads, or trained on a source's own text."""

import functools
import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sentencepiece as spm

from mtx.errors import UserError
from mtx.tokens import digits
from mtx.tokens.special import T5, Writing
from mtx.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:  # it brings TensorFlow, and models are trained where there is none
  import seqio

BYTES = "bytes"
MODEL_TYPES = ("unigram", "word")
BYTES_FROM = 2048  # pieces
LONGEST_SENTENCE = 4096  # bytes; what is longer is cut, where the trainer alone would leave it out


def sentencepiece(path: str | Path, extra_ids: int = 0) -> "seqio.SentencePieceVocabulary":
  """The SeqIO vocabulary of a SentencePiece `.model` file, with `extra_ids` sentinels after its pieces.

  Raises:
    UserError: the file is missing, is no SentencePiece model, or has not T5's layout (pad 0, eos 1, unk 2).
  """
  path = Path(path).expanduser()
  if not path.is_file():
    raise UserError(f"vocabulary file {path} is not there", hint="give the path of a SentencePiece .model file")
  try:
    pieces = spm.SentencePieceProcessor(model_file=str(path))
  except (RuntimeError, OSError) as error:
    raise UserError(f"{path} is not a SentencePiece model", hint=str(error)) from error
  if (pieces.pad_id(), pieces.eos_id()) != (0, 1):
    raise UserError(
      f"{path}: pad is {pieces.pad_id()} and eos {pieces.eos_id()}, they must be 0 and 1",
      hint="train it with pad_id=0, eos_id=1, unk_id=2, bos_id=-1, as T5's is",
    )
  from mtx.tasks.source import seqio

  return seqio.SentencePieceVocabulary(str(path), extra_ids)


def opened(name: str | Path, extra_ids: int = 0) -> "seqio.Vocabulary":
  """The SeqIO vocabulary that a setting names, with `extra_ids` sentinels after its own ids.

  Args:
    name: "bytes"; "digits", "digits-3", "digits-3-left" or "digits-3-left:FILE" (see `mtx.tokens.digits`); or the path
      of a SentencePiece `.model` of any layout, a tokenizer.json, llama2.c's tokenizer or a folder with one of them.
    extra_ids: 0 leaves a folder its own.

  Raises:
    UserError: a file that is missing or is no vocabulary, one without EOS.
  """
  from mtx.tasks.source import seqio

  if name == BYTES:
    return seqio.ByteVocabulary(extra_ids)
  if found := digits.named(str(name)):
    grouping, base = found
    return wrapped(Vocabulary("digits", base, extra_ids, grouping=grouping))
  path = Path(name).expanduser()
  if not path.exists():
    raise UserError(
      f"vocabulary {name} is not there",
      hint=f"give the path of a .model, a tokenizer.json or a folder with one, or {BYTES}, digits, digits-3",
    )
  vocabulary = Vocabulary.open(path, extra_ids or None)
  alone = vocabulary.kind == "sentencepiece" and vocabulary.special is None
  if alone and (vocabulary.pad_id, vocabulary.eos_id, vocabulary.start_id) == (0, 1, 0):
    return sentencepiece(path, extra_ids)  # T5's layout: SeqIO's own class
  return wrapped(vocabulary)


def wrapped(vocabulary: Vocabulary) -> "seqio.Vocabulary":
  """A SeqIO vocabulary with the ids of one of ours. Equal where their fingerprints are; it can be pickled."""
  return _class()(vocabulary)


def unwrapped(vocabulary: "seqio.Vocabulary") -> Vocabulary | None:
  """What `wrapped` was given; None of SeqIO's own vocabularies."""
  return getattr(vocabulary, "ours", None)


def writing(vocabulary: "seqio.Vocabulary") -> Writing:
  """How the family of a vocabulary writes examples; SeqIO's own write T5's way."""
  ours = unwrapped(vocabulary)
  return ours.writing if ours else T5


def sentinels(vocabulary: "seqio.Vocabulary") -> int:
  """How many ids, from the end down, are T5's sentinels."""
  ours = unwrapped(vocabulary)
  return ours.sentinels if ours else vocabulary.extra_ids


@functools.cache
def _class() -> "type[seqio.Vocabulary]":
  """Made when it is first needed: SeqIO brings TensorFlow."""
  import numpy as np

  from mtx.tasks.source import seqio, tf

  class Wrapped(seqio.Vocabulary):
    """`ours` is the vocabulary that it shows to SeqIO."""

    def __init__(self, ours: Vocabulary):
      super().__init__(ours.extra_ids)
      self.ours = ours

    def __reduce__(self):
      return wrapped, (self.ours,)

    @property
    def bos_id(self) -> int | None:
      return self.ours.start_id

    @property
    def eos_id(self) -> int:
      return self.ours.eos_id

    @property
    def unk_id(self) -> int | None:
      return self.ours.unk_id

    @property
    def pad_id(self) -> int:
      return self.ours.pad_id

    @property
    def _base_vocab_size(self) -> int:
      return self.ours.size - self.ours.extra_ids

    def _encode(self, s: str) -> list[int]:
      return self.ours.encode(s)

    def _decode(self, ids: Iterable[int]) -> str:
      return self.ours.decode(ids)

    def decode(self, ids: Iterable[int]) -> str:
      return self.ours.decode(np.asarray(ids).tolist())

    def _encode_tf(self, s: "tf.Tensor") -> "tf.Tensor":
      """Of a scalar."""

      def encode(text: bytes | np.ndarray) -> np.ndarray:
        content = text.item() if isinstance(text, np.ndarray) else text  # the first outside of a pipeline
        return np.array(self.ours.encode(content.decode("utf-8")), np.int32)

      ids = tf.numpy_function(encode, [s], tf.int32)
      ids.set_shape([None])
      return ids

    def _decode_tf(self, ids: "tf.Tensor") -> "tf.Tensor":
      """Over the last axis."""

      def decode(rows: np.ndarray) -> np.ndarray:
        texts = [self.ours.decode(row).encode() for row in rows.reshape(-1, rows.shape[-1])]
        return np.array(texts, object).reshape(rows.shape[:-1])

      texts = tf.numpy_function(decode, [ids], tf.string)
      texts.set_shape(ids.shape[:-1])
      return texts

    def decode_tf(self, ids: "tf.Tensor") -> "tf.Tensor":
      return self._decode_tf(ids)

    def __eq__(self, other: object) -> bool:
      return isinstance(other, Wrapped) and self.ours.fingerprint == other.ours.fingerprint

    def __hash__(self) -> int:
      return hash(self.ours.fingerprint)

    def __str__(self) -> str:
      return f"{self.ours.kind} vocabulary of {self.ours.size} ids"

  return Wrapped


def trained(texts: Iterable[str], size: int, model_type: str = "unigram", dir: str | Path | None = None) -> Path:
  """Trains a SentencePiece model, or finds it when the same was trained before; returns its file.

  Args:
    texts: what to learn from, in an order that does not change between runs.
    size: number of ids, pad 0, eos 1 and unk 2 included; fewer where the text has not that many.
    model_type: "unigram", or "word": one id for every word between white space.
    dir: where models are kept under a hash of texts, size and type; default `vocabularies` in $MTX_CACHE,
      which is ~/.cache/mtx unless set.

  Raises:
    UserError: an unknown type, no text, or less text than `size` pieces need.
  """
  if model_type not in MODEL_TYPES:
    raise UserError(f"vocabulary type {model_type!r} is not known", hint=f"types: {', '.join(MODEL_TYPES)}")
  sentences = list(_sentences(texts))
  if not sentences:
    raise UserError("there is no text to train a vocabulary on", hint="give the path of a trained .model file")
  key = json.dumps([spm.__version__, _options(size, model_type)]) + "\n".join(sentences)
  name = f"{model_type}-{size}-{hashlib.blake2b(key.encode(), digest_size=10).hexdigest()}.model"
  folder = Path(dir or Path(os.environ.get("MTX_CACHE", "~/.cache/mtx")) / "vocabularies").expanduser()
  path = folder / name
  if not path.is_file():
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}-{uuid.uuid4().hex[:8]}"
    temporary.write_bytes(_train(sentences, size, model_type))
    os.replace(temporary, path)
  return path


def _sentences(texts: Iterable[str]) -> Iterator[str]:
  """Lines that the trainer accepts: it skips those with too many bytes or a NUL."""
  for text in texts:
    for line in text.replace("\0", " ").splitlines():
      words = line.split()
      while words:
        taken: list[str] = []
        length = 0
        while words and (not taken or length + len(words[0].encode()) < LONGEST_SENTENCE):
          taken.append(words.pop(0))
          length += len(taken[-1].encode()) + 1
        yield " ".join(taken)


def _options(size: int, model_type: str) -> dict[str, Any]:
  """Of the trainer; part of the name under which a model is kept."""
  words = model_type == "word"
  return {
    "vocab_size": size,
    "model_type": model_type,
    "pad_id": 0,
    "eos_id": 1,
    "unk_id": 2,
    "bos_id": -1,
    "character_coverage": 1.0 if words else 0.9995,
    # No text is unknown where there is room for the 256 bytes: a script that training text lacks, a rare sign.
    "byte_fallback": not words and size >= BYTES_FROM,
    "max_sentence_length": LONGEST_SENTENCE + 1,
    "shuffle_input_sentence": False,
    # Words are whole even where a letter meets a digit; pieces split digits, so that numbers share them.
    "split_by_unicode_script": not words,
    "split_by_number": not words,
    "split_digits": not words,
    "hard_vocab_limit": False,
    "num_threads": 1,  # sums of floats then have one order, so the same text gives the same model
  }


def _train(sentences: list[str], size: int, model_type: str) -> bytes:
  model = io.BytesIO()
  try:
    spm.SentencePieceTrainer.train(
      sentence_iterator=iter(sentences), model_writer=model, minloglevel=2, **_options(size, model_type)
    )
  except (RuntimeError, OSError) as error:
    raise UserError(
      f"a {model_type} vocabulary of {size} pieces can not be trained on this text",
      hint=str(error).splitlines()[-1].rsplit("] ", 1)[-1],  # the trainer says how many would do
    ) from error
  return model.getvalue()
