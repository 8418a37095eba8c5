"""A model's folder: which file is its vocabulary, and the special ids that its settings name."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtx.errors import UserError
from mtx.tokens.hugging_face import HuggingFace
from mtx.tokens.sentencepieces import SENTINEL, SentencePieces
from mtx.tokens.special import Special

MODELS = ("spiece.model", "tokenizer.model", "sentencepiece.model", "sentencepiece.bpe.model")
SETTINGS = (
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "generation_config.json",
  "config.json",
  "chat_template.jinja",
)
# All that a vocabulary is opened from: what to copy where a model goes to another folder.
FILES = ("tokenizer.json", *MODELS, *SETTINGS)
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
BYT5_SENTINELS = 125


def find(folder: Path) -> tuple[str, Path | None] | None:
  """Kind and file of a folder's vocabulary; None if it has none."""
  if (folder / "tokenizer.json").is_file():
    return "tokenizers", folder / "tokenizer.json"
  for name in MODELS:
    if (folder / name).is_file():
      return "sentencepiece", folder / name
  if str(_json(folder / "tokenizer_config.json").get("tokenizer_class", "")).startswith("ByT5"):
    return "byte", None
  llama2c = sorted(folder.glob("tok*.bin"))
  return ("llama2c", llama2c[0]) if len(llama2c) == 1 else None


@dataclass(frozen=True)
class Settings:
  """What the files beside a vocabulary say; empty where a file is not there.

  Attributes:
    tokenizer: tokenizer_config.json, with the names of special_tokens_map.json where it has none.
    generation: generation_config.json.
    model: config.json.
    template: the chat template.
  """

  folder: Path
  tokenizer: Mapping[str, Any]
  generation: Mapping[str, Any]
  model: Mapping[str, Any]
  template: str | None

  @classmethod
  def read(cls, folder: Path) -> "Settings":
    """Raises UserError for a file that is no JSON object."""
    # What special_tokens_map.json says is older, and weaker.
    tokenizer = {**_json(folder / "special_tokens_map.json"), **_json(folder / "tokenizer_config.json")}
    if "added_tokens_decoder" not in tokenizer and (folder / "added_tokens.json").is_file():
      tokenizer["added_tokens_decoder"] = {
        str(token): {"content": text, "special": True} for text, token in _json(folder / "added_tokens.json").items()
      }
    template = tokenizer.get("chat_template")
    if isinstance(template, list):  # several, by name
      template = {each["name"]: each["template"] for each in template}.get("default")
    if (folder / "chat_template.jinja").is_file():
      template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    models = _json(folder / "generation_config.json"), _json(folder / "config.json")
    return cls(folder, tokenizer, *models, template)

  @property
  def added(self) -> tuple[tuple[str, int, bool], ...]:
    """(text, id, whether it is special) of every token that is named with its id."""
    entries = self.tokenizer.get("added_tokens_decoder") or {}
    return tuple(
      (_text(entry), int(token), bool(entry.get("special")) if isinstance(entry, Mapping) else False)
      for token, entry in sorted(entries.items(), key=lambda each: int(each[0]))
    )

  @property
  def sentinels(self) -> int:
    """How many <extra_id_...> there are, or are to be added."""
    named = {text for text, _, _ in self.added}
    named |= {_text(each) for each in self.tokenizer.get("additional_special_tokens") or ()}
    found = sum(bool(SENTINEL.fullmatch(text)) for text in named)
    return found or int(self.tokenizer.get("extra_ids") or 0)

  def names(self) -> dict[str, str]:
    """Special tokens by the name under which a chat template knows them."""
    named = {name: _text(self.tokenizer[name]) for name in NAMES if self.tokenizer.get(name)}
    more = self.tokenizer.get("extra_special_tokens")
    return named | ({name: _text(text) for name, text in more.items()} if isinstance(more, Mapping) else {})

  def flag(self, name: str) -> bool | None:
    value = self.tokenizer.get(name)
    return value if isinstance(value, bool) else None

  def ids(self, name: str) -> Iterator[int]:
    """Of a setting of generation, or else of the model: one number, or a list of them."""
    value = self.generation.get(name, self.model.get(name))
    for each in value if isinstance(value, list) else [value]:
      if isinstance(each, int) and each >= 0:
        yield each

  def special(self, codec: HuggingFace | SentencePieces) -> Special:
    """Special ids of a vocabulary in this folder.

    What a row starts with and whether EOS closes inputs is what the tokenizer puts around a text. An encoder-decoder
    starts with the model's `decoder_start_token_id`.

    Raises:
      UserError: no EOS is named anywhere.
    """
    own = codec.special if isinstance(codec, SentencePieces) else None
    names = {**dict(own.names if own else ()), **self.names()}
    id_of = lambda name: codec.id_of(names[name]) if name in names else None
    eos, bos, pad = id_of("eos_token"), id_of("bos_token"), id_of("pad_token")
    before, after = self._frame(codec, bos, eos)
    stops = list(dict.fromkeys([*([] if eos is None else [eos]), *self.ids("eos_token_id"), *after[-1:]]))
    if not stops:
      raise UserError(
        f"{self.folder}: no file says which token ends a text",
        hint='name it in tokenizer_config.json: "eos_token": "</s>"',
      )
    encdec = self.model.get("is_encoder_decoder")
    if encdec is None:
      encdec = "decoder_start_token_id" in self.model or (not self.model and bool(after))
    pads = [] if pad is None else [pad]
    pad = next(iter([*pads, *self.ids("pad_token_id"), stops[0]]))
    start = before[0] if before else None
    if encdec:
      start = next(self.ids("decoder_start_token_id"), pad)
    return Special(
      start_id=start,
      pad_id=pad,
      eos_ids=tuple(stops),
      unk_id=id_of("unk_token"),
      closes_inputs=bool(after),
      opens_id=before[0] if encdec and before else None,
      names=tuple(sorted(names.items())),
      chat_template=self.template,
    )

  def _frame(
    self, codec: HuggingFace | SentencePieces, bos: int | None, eos: int | None
  ) -> tuple[list[int], list[int]]:
    """What stands before and after a text. Settings count more than the tokenizer's file."""
    opens, closes = self.flag("add_bos_token"), self.flag("add_eos_token")
    if isinstance(codec, HuggingFace):
      before, after = codec.frame
      if opens is not None or closes is not None:
        before, after = ([bos] if opens and bos is not None else []), ([eos] if closes and eos is not None else [])
      return before, after
    layout = codec.special
    encdec = bool(self.model.get("is_encoder_decoder", layout.closes_inputs))
    opens = (bos is not None and not encdec) if opens is None else opens
    closes = encdec if closes is None else closes
    return [bos] if opens and bos is not None else [], [eos] if closes and eos is not None else []


def _text(entry: Any) -> str:
  """Of a token that is written as text, or as an object with its content."""
  return str(entry.get("content", "") if isinstance(entry, Mapping) else entry)


def _json(path: Path) -> dict[str, Any]:
  """A file's object; empty if there is no such file."""
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    return {}
  except (ValueError, OSError) as error:
    raise UserError(f"{path} can not be read: {error}", hint="copy it again") from error
  if not isinstance(found, dict):
    raise UserError(f"{path} is no JSON object", hint="copy it again")
  return found
