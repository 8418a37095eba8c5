"""Plain text to learn from, by span corruption, prefix LM, causal LM or UL2's mixture of denoisers.

    train.source = @mixture
    mixture.sources = [@text]
    mixture.extra_ids = 128
    text.files = ['corpus/*.txt.gz']
    text.objectives = ['ul2']

A document is a line of a JSON-lines file, or some pages of lines of a text file. It is tokenised and cut into chunks,
as long as the objective allows, and none of its tokens is lost: the last two chunks share evenly what is left. A
document is in one split for all objectives and vocabularies: a hash of its place (file and line) decides which.

Corruption is static, as a cache needs it: a hash of chunk, objective and seed draws it. Training on `draws` different
draws of each chunk is like as many epochs with fresh noise.
"""

import functools
import glob
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gin
import numpy as np

from mtx.errors import UserError, did_you_mean
from mtx.tasks.denoise import UL2, CausalLM, Objective, PrefixLM, SpanCorruption, chunk_length, chunks
from mtx.tasks.files import DataFile, located
from mtx.tasks.task import Collection, Reading, Row, TextTask, text_hash

OBJECTIVES = ("span_corruption", "prefix_lm", "causal_lm", "ul2")
SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")
VOCABULARY_CHARACTERS = 10_000_000  # of training text that a vocabulary learns from


@gin.configurable
def text(
  files: str | Sequence[str] = gin.REQUIRED,
  *,
  name: str = "text",
  objectives: Sequence[str] = ("span_corruption",),
  inputs_length: int = 512,
  targets_length: int | None = None,
  rate: float = 0.15,
  mean_span: float = 3.0,
  modes: Sequence[str] | None = ("[R]", "[S]", "[X]"),
  draws: int = 1,
  validation: float = 0.05,
  field: str = "text",
  page: int = 10_000,
  seed: int = 0,
  language: str = "en",
) -> Collection:
  """A task an objective, with splits "train" and "validation".

  UL2 gives seven tasks, `<name>_ul2_r_3_15` and so on, one a denoiser: the mixture's rates are their shares.
  `mixture.rates = @uniform` takes all seven equally often, `@explicit` as one likes.

  Args:
    files: paths or globs (`**` goes into folders) of .txt and .jsonl files, plain or .gz.
    name: of the collection, and the first word of its tasks' names: scopes of `text` need different ones.
    objectives: of "span_corruption", "prefix_lm", "causal_lm", "ul2".
    inputs_length: most tokens of an input, EOS and mode included.
    targets_length: most tokens of a target, EOS included; None: as `inputs_length`. Chunks are as long as both allow:
      568 tokens for 512 and 114 with T5's noise, 511 for causal LM with 512 targets.
    rate, mean_span: share of noise and mean length of its spans, for "span_corruption".
    modes: what an input of UL2's R-, S- and X-denoisers begins with; None: nothing.
    draws: different draws of noise for each training chunk. Validation has one, and so has causal LM.
    validation: share of the documents that are not trained on; 0: no such split.
    field: of a JSON line, the text.
    page: characters of a .txt file after which, at the end of a line, another document begins.
    seed: of the noise.

  Raises:
    UserError: an argument that is none of the above, a pattern that matches no file, two files of one name and folder.
  """
  for argument, number, least in (
    ("draws", draws, 1), ("page", page, 1), ("inputs_length", inputs_length, 2), ("targets_length", targets_length, 2)
  ):  # fmt: skip
    if number is not None and number < least:
      raise UserError(f"text.{argument} is {number}", hint=f"it is {least} or more")
  if not 0 <= validation < 1:
    raise UserError(f"text.validation is {validation}", hint="it is a share of the documents, from 0 to below 1")
  if modes is not None and (isinstance(modes, str) or len(modes) != 3):
    raise UserError(f"text.modes is {modes!r}", hint="it is three texts, for R, S and X, or None")
  if not isinstance(files, (str, list, tuple)):
    raise UserError(f"text.files is {files!r}", hint="it is a path or a list of paths: 'corpus/*.txt'")
  corpus = _corpus([files] if isinstance(files, str) else files)
  documents = functools.partial(_documents, files=corpus, field=field, page=page, validation=validation)
  splits: dict[str, int | None] = dict.fromkeys(["train", "validation"] if validation else ["train"])

  def task(group: str, key: str, objective: Objective, mode: str = "") -> TextTask:
    rows = functools.partial(
      _rows,
      documents=documents,
      objective=objective,
      cut=chunks,  # bound, so that the cache's fingerprint covers the code of the objectives' module
      key=key,
      mode=mode,
      inputs_length=inputs_length,
      targets_length=targets_length or inputs_length,
      draws=draws if objective.random else 1,
      seed=seed,
    )
    return TextTask(f"{name}_{key}", group, rows, splits, language=language)

  tasks: list[TextTask] = []
  for chosen in dict.fromkeys([objectives] if isinstance(objectives, str) else objectives):
    if chosen == "span_corruption":
      tasks.append(task(chosen, chosen, SpanCorruption(rate, mean_span)))
    elif chosen == "prefix_lm":
      tasks.append(task(chosen, chosen, PrefixLM()))
    elif chosen == "causal_lm":
      tasks.append(task(chosen, chosen, CausalLM()))
    elif chosen == "ul2":
      marks = dict(zip("rsx", modes or ("", "", ""), strict=True))
      tasks += [task(chosen, f"ul2_{key}", denoiser, marks[key[0]]) for key, denoiser in UL2.items()]
    else:
      raise UserError(f"text.objectives: {chosen!r} is not known", hint=did_you_mean(chosen, OBJECTIVES))
  if not tasks:
    raise UserError("text.objectives is empty", hint=f"valid choices: {', '.join(OBJECTIVES)}")
  return Collection(
    name,
    tuple(tasks),
    citation="objectives: Raffel et al. 2020, arXiv 1910.10683; Tay et al. 2022, arXiv 2205.05131",
    texts=functools.partial(_texts, documents, math.ceil(VOCABULARY_CHARACTERS / len(corpus))),
  )


def _corpus(patterns: Sequence[str]) -> tuple[DataFile, ...]:
  """Files that the patterns match, in the order of their paths."""
  paths: set[Path] = set()
  for pattern in patterns:
    # A pattern's folder is located; the pattern itself is no path.
    where = str(located(Path(pattern).parent) / Path(pattern).name)
    found = [path for path in map(Path, glob.glob(where, recursive=True)) if path.is_file()]
    if not found:
      raise UserError(f"text.files: {pattern!r} matches no file")
    paths.update(found)
  files = tuple(DataFile(path) for path in sorted(paths))
  for file in files:
    if not file.path.name.endswith(SUFFIXES):
      raise UserError(f"text.files: {file.name} is no text file", hint=f"files end with {', '.join(SUFFIXES)}")
  name, count = Counter(file.name for file in files).most_common(1)[0] if files else ("", 0)
  if count > 1:
    raise UserError(f"text.files: {count} files are called {name}", hint="their chunks would have the same ids")
  if not files:
    raise UserError("text.files is empty", hint="for example `text.files = 'corpus/*.txt'`")
  return files


def _documents(
  split: str, reading: Reading, *, files: Sequence[DataFile], field: str, page: int, validation: float
) -> Iterator[tuple[DataFile, str, str]]:
  """(file, place, text) of the documents of a split."""
  for file in files:
    jsonl = file.path.name.endswith((".jsonl", ".jsonl.gz"))
    found = _records(file, field, reading) if jsonl else _pages(file, page)
    for place, document in found:
      if (text_hash(place) < validation * 2**64) == (split == "validation"):
        yield file, place, document


def _records(file: DataFile, field: str, reading: Reading) -> Iterator[tuple[str, str]]:
  for place, record in file.jsonl({field: str}, reading):
    yield place, record[field]


def _pages(file: DataFile, page: int) -> Iterator[tuple[str, str]]:
  """(place, lines): whole lines, the fewest that have `page` characters."""
  lines: list[str] = []
  size = first = 0
  with file.decoded() as text:
    for number, line in enumerate(text, 1):
      first = first if lines else number
      lines.append(line)
      size += len(line)
      if size >= page:
        yield f"{file.name}:{first}", "".join(lines)
        lines, size = [], 0
  if lines:
    yield f"{file.name}:{first}", "".join(lines)


def _rows(
  split: str,
  reading: Reading,
  *,
  documents: functools.partial,
  objective: Objective,
  cut: Callable[[int, int], list[tuple[int, int]]],
  key: str,
  mode: str,
  inputs_length: int,
  targets_length: int,
  draws: int,
  seed: int,
) -> Iterator[Row]:
  """Examples of a split, chunk by chunk, as token ids.

  Raises:
    UserError: lengths that leave no room, more spans than the vocabulary has sentinels, a split without a document.
  """
  opening = list(reading.encode(mode)) if mode else []
  longest = chunk_length(objective, inputs_length - len(opening), targets_length)
  if longest < 2:
    raise UserError(
      f"text: {key} has no room in {inputs_length} input and {targets_length} target tokens",
      hint="raise text.inputs_length or text.targets_length",
    )
  empty = True
  for _, place, document in documents(split, reading):
    empty = False
    tokens = list(reading.encode(document))
    for start, end in cut(len(tokens), longest):
      for draw in range(draws if split == "train" else 1):
        identity = f"{place}:{start}-{draw}"
        rng = np.random.default_rng(text_hash(f"{seed} {key} {identity}"))
        inputs, targets = objective.example(tokens[start:end], rng, reading.sentinel)
        yield {"id": identity, "inputs": opening + inputs, "targets": targets}
  if empty:
    raise UserError(
      f"text: no document is in split {split!r}",
      hint="documents are lines of .jsonl and pages of .txt: lower text.page, or change text.validation (0: no split)",
    )


def _texts(documents: functools.partial, most: int) -> Iterator[str]:
  """Training documents of every file, at most `most` characters of each (and the rest of a document)."""
  taken: Counter[DataFile] = Counter()
  for file, _, document in documents("train", Reading(budget=sys.maxsize)):
    if taken[file] < most:
      taken[file] += len(document)
      yield document
