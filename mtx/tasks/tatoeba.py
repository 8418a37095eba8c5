"""Tatoeba's sentence pairs with English, those of LASER's test set (Artetxe & Schwenk 2019, arXiv 1812.10464).

Reads `tatoeba_test.jsonl`, as it is or compressed: {"lang" (ISO 639-3), "text", "eng"} a line. It comes as one set: a
hash of the English sentence, upper case or not, puts 10 % into `test` and 5 % into `validation`, in all languages
alike, so that no English sentence that is tested was learned with another language.
"""

import functools
import sys
from collections.abc import Iterator, Sequence

import gin
import langcodes

from mtx.errors import UserError
from mtx.tasks.files import DataFile, chosen, folder, lacks, plain_or_packed
from mtx.tasks.task import Collection, Reading, Row, TextTask, share

CITATION = "Tatoeba contributors (CC BY 2.0 FR), selected by Artetxe & Schwenk 2019, github.com/facebookresearch/LASER"
FIELDS = {"lang": str, "text": str, "eng": str}
ENGLISH = "eng"
SPLITS = ("train", "validation", "test")


@gin.configurable
def tatoeba(
  path: str = gin.REQUIRED, *, languages: Sequence[str] | None = None, heldout_languages: Sequence[str] = ()
) -> Collection:
  """Two tasks a language, into English and out of it, with splits `train`, `validation` and `test`.

  Args:
    path: folder with `tatoeba_test.jsonl` or `tatoeba_test.jsonl.gz`.
    languages: ISO 639-3 codes; None: all of the file.
    heldout_languages: languages whose two tasks are held out.

  Raises:
    UserError: a language that the file has not or that is none, no such folder, or it lacks the file.
  """
  file = plain_or_packed(folder("tatoeba.path", path, "tatoeba_test.jsonl*"), "tatoeba_test.jsonl")
  pairs, _ = _pairs(file, file.fingerprint())
  codes = tuple(pairs) if languages is None else chosen("tatoeba.languages", languages, pairs)
  heldout_languages = chosen("tatoeba.heldout_languages", heldout_languages, pairs)

  def task(code: str, into_english: bool) -> TextTask:
    language, english = _language(file, code), _language(file, ENGLISH)
    read, written = (language, english) if into_english else (english, language)
    ask = f"Translate {read.display_name()} to {written.display_name()}: "
    return TextTask(
      name=f"tatoeba_{code}_{ENGLISH}" if into_english else f"tatoeba_{ENGLISH}_{code}",
      category="Translation",
      rows=functools.partial(_rows, file=file, code=code, first=code == codes[0], into_english=into_english, ask=ask),
      splits={split: len(pairs[code][split]) for split in SPLITS},
      metrics=("chrf", "bleu"),
      language=written.to_tag(),
    )

  train, heldout = (
    tuple(task(code, into) for code in codes if (code in heldout_languages) == held for into in (True, False))
    for held in (False, True)
  )
  return Collection("tatoeba", train, heldout, CITATION)


def _language(file: DataFile, code: str) -> langcodes.Language:
  """Of the macrolanguage, which is how people call it: Chinese, not Mandarin Chinese."""
  if not langcodes.tag_is_valid(code):
    raise UserError(f"{file.name}: field 'lang' is {code!r}, which is no code of ISO 639-3")
  return langcodes.Language.get(langcodes.standardize_tag(code, macro=True))


def _rows(
  split: str, reading: Reading, *, file: DataFile, code: str, first: bool, into_english: bool, ask: str
) -> Iterator[Row]:
  """Pairs of one language. Bad lines count for their own language, those that do not tell it for the first."""
  pairs, bad = _pairs(file, file.fingerprint())
  for language, place, reason in bad:
    if language == code or (first and language not in pairs):
      reading.skip(place, reason)
  for text, english in pairs[code][split]:
    source, target = (text, english) if into_english else (english, text)
    yield {"inputs": ask + source, "targets": target}


Pairs = dict[str, dict[str, list[tuple[str, str]]]]


@functools.lru_cache(maxsize=1)
def _pairs(file: DataFile, content: str) -> tuple[Pairs, list[tuple[str, str, str]]]:
  """Language -> split -> (text, English), and (language, place, reason) of bad lines; a language "" is not known.

  Kept for the next task: all of them are in one file. `content`, its hash, is there to notice another one.
  """
  pairs: Pairs = {}
  bad: list[tuple[str, str, str]] = []
  reading = Reading(budget=sys.maxsize)
  for place, line in file.jsonl({}, reading):
    code = line["lang"].strip() if isinstance(line.get("lang"), str) else ""
    if reason := lacks(line, FIELDS):
      bad.append((code, place, reason))
      continue
    text, english = line["text"].strip(), line["eng"].strip()
    if not (text and english):
      bad.append((code, place, f"field {'eng' if text else 'text'!r} is empty"))
      continue
    position = share(english.casefold())
    split = "test" if position < 0.1 else "validation" if position < 0.15 else "train"
    pairs.setdefault(code, {split: [] for split in SPLITS})[split].append((text, english))
  return pairs, [*(("", *each) for each in reading.bad), *bad]
