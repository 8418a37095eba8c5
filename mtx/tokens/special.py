"""What a family does with a vocabulary beside text: how a row starts, what ends an answer, what pads, how it chats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

Conversation = tuple[list[int], list[int], list[int]]  # inputs, targets, weights of the targets


@dataclass(frozen=True)
class Special:
  """Special ids and settings of a vocabulary.

  Attributes:
    start_id: what a decoder's row begins with: T5's pad 0, Llama's BOS; None where the family has no such token.
    pad_id: fills rows up after their end; the EOS where a family has no padding of its own.
    eos_ids: generation stops at any of them; the first one ends targets in training.
    unk_id: of text without a token; None where there is no such text.
    closes_inputs: whether EOS comes after inputs (encoder-decoders), and not after targets only.
    opens_id: comes before every text of an encoder-decoder, inputs and targets (BART's <s>); None elsewhere.
    names: what chat templates may name, `bos_token` for example, with its text.
    added: (text, id, whether it is special) of tokens that a folder's settings add to the file's own.
    chat_template: Jinja text.
  """

  start_id: int | None
  pad_id: int
  eos_ids: tuple[int, ...]
  unk_id: int | None = None
  closes_inputs: bool = False
  opens_id: int | None = None
  names: tuple[tuple[str, str], ...] = ()
  added: tuple[tuple[str, int, bool], ...] = ()
  chat_template: str | None = None

  def to_json(self) -> dict[str, Any]:
    return asdict(self)

  @classmethod
  def from_json(cls, entry: Mapping[str, Any]) -> "Special":
    """Inverse of `to_json`, after a trip through JSON, which has no tuples."""
    lists = {name: tuple(tuple(each) for each in entry[name]) for name in ("names", "added")}
    return cls(**{**entry, **lists, "eos_ids": tuple(entry["eos_ids"])})


class Writing(NamedTuple):
  """How examples are written in a family's vocabulary. The default is T5's way.

  Attributes:
    closes_inputs, opens_id: as in `Special`.
    chat: turns, (role, text) each, to token ids by the family's chat template; None: it has none.
  """

  closes_inputs: bool = True
  opens_id: int | None = None
  chat: Callable[[Sequence[tuple[str, str]]], Conversation] | None = None


T5 = Writing()
