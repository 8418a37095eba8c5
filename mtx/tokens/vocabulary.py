"""The vocabulary of a model or a mixture: text to token ids and back, without SeqIO and TensorFlow.

For T5's layout and for bytes the ids equal those of the SeqIO classes (but for ties, see `mtx.tokens.lines`), for a
folder of Hugging Face those of its tokenizer.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from mtx.errors import UserError
from mtx.tokens import digits
from mtx.tokens.chat import Turn, rendered
from mtx.tokens.codec import Bytes, Codec
from mtx.tokens.digits import DigitPieces, Grouping
from mtx.tokens.folder import BYT5_SENTINELS, MODELS, Settings, find
from mtx.tokens.hugging_face import HuggingFace
from mtx.tokens.sentencepieces import SentencePieces, read_llama2c, read_model
from mtx.tokens.special import Conversation, Special, Writing

KINDS = ("sentencepiece", "byte", "digits", "tokenizers", "llama2c")
FILES = {
  "sentencepiece": "a SentencePiece .model file",
  "tokenizers": "a tokenizer.json",
  "llama2c": "a tokenizer file of llama2.c",
}


@dataclass(frozen=True)
class Vocabulary:
  """Ids 0 to `size`: the file's own, then `extra_ids` sentinels, which count down from the end.

  Args:
    kind: one of KINDS. "sentencepiece" has any layout; "byte" is ByT5's; "digits" has numbers of a few digits a token
      around bytes or a SentencePiece model; "tokenizers" is Hugging Face's format; "llama2c" is llama2.c's.
    path: the file; None for bytes.
    extra_ids: sentinel tokens after the file's own, as in `seqio.Vocabulary`.
    special: special ids; None: as the file tells. `Vocabulary.open` reads them from the files of a folder.
    grouping: of "digits".

  Raises:
    UserError: an unknown kind, or a file that is not there.
  """

  kind: str
  path: Path | None = None
  extra_ids: int = 0
  special: Special | None = None
  grouping: Grouping | None = None

  def __post_init__(self):
    if self.kind not in KINDS:
      raise UserError(f"vocabulary kind {self.kind!r} is not known", hint=f"kinds: {', '.join(KINDS)}")
    needed = self.kind in FILES or self.path is not None
    if needed and not (self.path and Path(self.path).is_file()):
      hint = f"give the path of {FILES.get(self.kind, FILES['sentencepiece'])}"
      raise UserError(f"vocabulary file {self.path} is not there", hint=hint)

  @classmethod
  def open(cls, path: str | Path, extra_ids: int | None = None) -> "Vocabulary":
    """The vocabulary of a model's folder, or in a file.

    Args:
      path: a folder with tokenizer.json, a SentencePiece model, ByT5's settings or llama2.c's tokenizer, or such a
        file. A tokenizer.json is read with the settings that lie beside it, a `.model` file alone counts by its layout.
      extra_ids: sentinels after the file's own; None: as many as a folder says, none for a file.

    Raises:
      UserError: nothing that is a vocabulary, damaged files, no EOS.
    """
    path = Path(path).expanduser()
    if path.is_dir():
      found = find(path)
      if found is None:
        raise UserError(f"{path} has no vocabulary: {', '.join(('tokenizer.json', *MODELS))}", hint=_way_out(path))
      kind, file = found
    elif path.suffix in (".json", ".bin"):
      kind, file = {".json": "tokenizers", ".bin": "llama2c"}[path.suffix], path
    else:
      return cls("sentencepiece", path, extra_ids or 0)
    if kind == "llama2c":
      return cls(kind, file, extra_ids or 0)
    if file is None:
      number = Settings.read(path).tokenizer.get("extra_ids", BYT5_SENTINELS)
      return cls(kind, None, int(number) if extra_ids is None else extra_ids)
    cls(kind, file)  # is there a file
    settings = Settings.read(file.parent)
    codec = HuggingFace(file) if kind == "tokenizers" else SentencePieces(read_model(file), file)
    if extra_ids is None:
      extra_ids = 0 if kind == "tokenizers" or codec.sentinels else settings.sentinels
    added = _added(settings, codec, extra_ids)
    if added and isinstance(codec, SentencePieces):
      codec = SentencePieces(read_model(file), file, added)
    elif added:
      codec = HuggingFace(file, added)
    return cls(kind, file, extra_ids, replace(settings.special(codec), added=added))

  @cached_property
  def _codec(self) -> Codec:
    added = self.special.added if self.special else ()
    return _codec(self.kind, self.path, added, self.grouping)

  def __reduce__(self):
    # Not the codec: every process loads its own.
    return Vocabulary, (self.kind, self.path, self.extra_ids, self.special, self.grouping)

  @cached_property
  def _special(self) -> Special:
    return self.special or self._codec.special

  @property
  def start_id(self) -> int | None:
    """What a decoder's row begins with; None: with its first token."""
    return self._special.start_id

  @property
  def pad_id(self) -> int:
    """Fills up what is decoded; equal to `eos_id` where a family has no padding."""
    return self._special.pad_id

  @property
  def eos_id(self) -> int:
    """The last token of targets."""
    return self._special.eos_ids[0]

  @property
  def eos_ids(self) -> tuple[int, ...]:
    """Generation stops at any of them."""
    return self._special.eos_ids

  @property
  def unk_id(self) -> int | None:
    return self._special.unk_id

  @property
  def closes_inputs(self) -> bool:
    """Whether inputs end with EOS, too."""
    return self._special.closes_inputs

  @property
  def opens_id(self) -> int | None:
    """What inputs and targets of an encoder-decoder begin with; None: nothing."""
    return self._special.opens_id

  @property
  def chat_template(self) -> str | None:
    return self._special.chat_template

  def start(self, architecture: str) -> int | None:
    """`start_id`; padding for an encoder-decoder where the family has none: its decoder always begins with a token."""
    return self.pad_id if self.start_id is None and architecture == "encdec" else self.start_id

  @cached_property
  def _base(self) -> int:
    return self._codec.size

  @cached_property
  def size(self) -> int:
    """Number of ids, sentinels included."""
    return self._base + self.extra_ids

  @cached_property
  def sentinels(self) -> int:
    """How many ids, from the end down, are T5's sentinels: `extra_ids`, or those of the file's own."""
    return self.extra_ids or self._codec.sentinels

  @cached_property
  def fingerprint(self) -> str:
    """Hash of all that decides the ids: the file's bytes, the number of sentinels, special ids, grouping of digits."""
    content = None if self.path is None else Path(self.path).read_bytes()
    # What lies in the file alone is not told twice, so that fingerprints stay what they were.
    more = b""
    if self.special or self.kind in ("digits", "llama2c"):
      more = json.dumps([self.kind, self._entry()], sort_keys=True).encode()
    return fingerprint_of(content, self.extra_ids, more)

  def encode(self, text: str) -> list[int]:
    """Ids of `text`, no EOS."""
    return self._codec.encode(text)

  def encode_array(self, text: str) -> Int32[np.ndarray, "length"]:
    """`encode` as an array, which may be read-only; with SentencePiece it is faster."""
    codec = self._codec
    if isinstance(codec, (SentencePieces, DigitPieces)):
      return codec.array(text)
    return np.array(codec.encode(text), np.int32)

  def decode(self, ids: Iterable[int]) -> str:
    """Text up to the first EOS. Special tokens, padding and sentinels are left out, and ids that are none."""
    tokens: list[int] = ids.tolist() if isinstance(ids, np.ndarray) else list(map(int, ids))
    end = min((tokens.index(eos) for eos in self.eos_ids if eos in tokens), default=None)
    pad, base = self.pad_id, self._base
    return self._codec.decode([token for token in tokens[:end] if token != pad and 0 <= token < base])

  def spell(self, token: int) -> bytes | None:
    """UTF-8 of one token, its leading space kept; None if it is no text."""
    if token == self.pad_id or token in self.eos_ids or not 0 <= token < self._base - self._codec.sentinels:
      return None
    return self._codec.spell(token)

  def written(self, token: int) -> str | None:
    """A token as the file writes it, special ones too; None of sentinels and of ids that are none."""
    return self._codec.written(token) if 0 <= token < self._base else None

  def chat(self, turns: Sequence[Turn], add_generation_prompt: bool = False, **variables: Any) -> str:
    """A conversation as text, by the chat template that came with the model.

    Args:
      turns: (role, text), or messages with all that the template reads.
      add_generation_prompt: whether the text ends where the assistant's next answer begins.
      variables: more that the template reads: `tools`, `enable_thinking`.

    Raises:
      UserError: no template, or one that refuses the conversation.
    """
    if self.chat_template is None:
      raise UserError(
        f"the vocabulary {self.path or self.kind} has no chat template",
        hint="put a chat_template.jinja beside its tokenizer_config.json, and open it again",
      )
    names = dict(self._special.names)
    return rendered(self.chat_template, turns, add_generation_prompt=add_generation_prompt, names=names, **variables)

  def chat_ids(self, turns: Sequence[Turn], add_generation_prompt: bool = False, **variables: Any) -> list[int]:
    """Ids of `chat`, without the start token, which a decoder's row has anyway."""
    ids = self._codec.encode_marked(self.chat(turns, add_generation_prompt, **variables))
    return ids[1:] if ids[:1] == [self.start_id] else ids

  def conversation(self, turns: Sequence[Turn]) -> Conversation:
    """A conversation to learn from: what stands before the first answer, then the rest and which of it are answers.

    An answer ends with its EOS if the template writes one, and the last one always does. Where an answer begins is
    found by rendering what comes before it, with a generation prompt.

    Raises:
      UserError: no template, one that refuses the conversation, or one that writes a turn otherwise once others follow.
    """
    text, ids = self.chat(turns), self.chat_ids(turns)
    counts = [0] * len(ids)
    begin: int | None = None
    for index, turn in enumerate(turns):
      role = turn["role"] if not isinstance(turn, tuple) else turn[0]
      if role != "assistant":
        continue
      asked = turns[:index], turns[: index + 1]
      before, after = self.chat(asked[0], add_generation_prompt=True), self.chat(asked[1])
      if not (text.startswith(before) and text.startswith(after) and after.startswith(before)):
        at = "its generation prompt" if not text.startswith(before) else f"turn {index + 1}"
        raise UserError(
          f"the chat template writes {at} otherwise once a conversation goes on: answers can not be told apart",
          hint="train on conversations of one answer, or with a template whose text only grows",
        )
      start = _common(ids, self.chat_ids(asked[0], add_generation_prompt=True))
      end = _common(ids, self.chat_ids(asked[1]))
      stops = [place for place in range(start, end) if ids[place] in self.eos_ids]
      end = stops[-1] + 1 if stops else end
      counts[start:end] = [1] * (end - start)
      begin = start if begin is None else begin
      last = end
    if begin is None:
      raise UserError("a conversation without an answer has nothing to learn from", hint="end it with the assistant")
    targets, weights = ids[begin:last], counts[begin:last]
    if not targets or targets[-1] not in self.eos_ids:
      targets, weights = [*targets, self.eos_id], [*weights, 1]
    return ids[:begin], targets, weights

  @property
  def writing(self) -> Writing:
    """How examples are written."""
    return Writing(self.closes_inputs, self.opens_id, self.conversation if self.chat_template else None)

  def _entry(self) -> dict[str, Any]:
    entry: dict[str, Any] = {"special": self.special.to_json()} if self.special else {}
    return entry | ({"grouping": asdict(self.grouping)} if self.grouping else {})

  def to_json(self, root: Path) -> dict[str, Any]:
    """For the mixture's index; the path is kept relative to the cache folder `root`."""
    path = None if self.path is None else Path(self.path).relative_to(root).as_posix()
    return {"kind": self.kind, "path": path, "extra_ids": self.extra_ids, **self._entry()}

  @classmethod
  def from_json(cls, entry: dict[str, Any], root: Path) -> "Vocabulary":
    """Inverse of `to_json`; `root` is the cache folder."""
    path = None if entry["path"] is None else root / entry["path"]
    special = Special.from_json(entry["special"]) if "special" in entry else None
    grouping = Grouping(**entry["grouping"]) if "grouping" in entry else None
    return cls(entry["kind"], path, entry["extra_ids"], special, grouping)


def fingerprint_of(content: bytes | None, extra_ids: int, more: bytes = b"") -> str:
  """Hash of a vocabulary: its file's content (bytes have none), its sentinels, and what the file does not tell."""
  return hashlib.blake2b((content or b"byte") + str(extra_ids).encode() + more, digest_size=16).hexdigest()


def _added(
  settings: Settings, codec: HuggingFace | SentencePieces, extra_ids: int
) -> tuple[tuple[str, int, bool], ...]:
  """Tokens of the settings that the file lacks. T5's sentinels are counted apart."""
  if isinstance(codec, HuggingFace):
    return tuple(each for each in settings.added if codec.id_of(each[0]) is None)
  marks = tuple(each for each in settings.added if each[1] >= codec.size)
  return tuple(each for each in marks if not (extra_ids and each[0].startswith("<extra_id_")))


def _way_out(folder: Path) -> str:
  if (folder / "vocab.json").is_file():
    return (
      "vocab.json is an older format; AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) writes tokenizer.json"
    )
  return "copy the tokenizer's files into it, or give a .model file"


def _common(one: Sequence[int], other: Sequence[int]) -> int:
  """How many first ids are equal."""
  return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@functools.lru_cache(maxsize=4)
def _codec(kind: str, path: Path | None, added: tuple[tuple[str, int, bool], ...], grouping: Grouping | None) -> Codec:
  """Loads a file once a process."""
  if kind == "digits":
    return digits.over(None if path is None else read_model(path), path or "", grouping or Grouping())
  if path is None:
    return Bytes()
  if kind == "tokenizers":
    return HuggingFace(path, added)
  return SentencePieces(read_llama2c(path) if kind == "llama2c" else read_model(path), path, added)
