"""Your own tasks: a folder of JSONL, CSV, TSV or Parquet files, or of parallel texts, and a manifest of ten lines.

`tasks.yaml` (or `tasks.json`) lies beside the data:

    sentiment:
      files: {train: reviews.jsonl, test: reviews-test.csv}
      instruction: Is this review positive or negative?
      fields: [title, text]
      target: label
      options: [positive, negative]
    german:
      inputs: news.en.txt
      targets: news.de.txt
      template: "Translate to German: {{ inputs }}"

Each line of reviews.jsonl is `{"title": "...", "text": "...", "label": "positive"}`; the two texts are parallel, line
by line. Then `mixture.sources = [@own]` and `own.path = 'the/folder'`. The keys of a task:

    files        a file, a list of files, or split -> these. Splits are train, validation and test; without them all
                 is train, or test where the task is held out. Endings: .jsonl .csv .tsv (also .gz), .parquet. CSV and
                 TSV have a header.
    inputs, targets   instead of files: parallel text files, given alike. Their fields are `inputs` and `targets`.
    validation, test  share of train that becomes this split, as in `validation: 0.05`. A hash of what the input is made
                 of decides, so equal inputs come to the same side.
    instruction  text before the fields.
    fields       what a model reads: the value of one field, or `name: value` lines of several.
    template     Jinja over the fields, instead of instruction and fields.
    target       the field that holds the answer, or a template of it. Default: the first of the references.
    references   a field that lists all right answers.
    options      the answers to choose from, or the field that lists them. The target must be one of them.
    metrics      a name or a list, the main one first (mtx/tasks/metrics.py). Default exact_match.
    category     default `own`.
    language     that a model must write, a BCP 47 tag. Default en.
    heldout      true: judged on, never trained on.
"""

import functools
import itertools
import json
import logging
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gin

from mtx.errors import UserError, did_you_mean
from mtx.tasks import formats
from mtx.tasks.files import DataFile, folder
from mtx.tasks.metrics import METRICS
from mtx.tasks.task import Collection, Reading, Row, TextTask, text_hash
from mtx.tasks.templates import BadRecord, Inapplicable, compiled, render

MANIFESTS = ("tasks.yaml", "tasks.yml", "tasks.json")
SPLITS = ("train", "validation", "test")
# Key -> what it may hold.
KEYS: dict[str, tuple[type, ...]] = {
  "files": (str, list, dict),
  "inputs": (str, list, dict),
  "targets": (str, list, dict),
  "validation": (float,),
  "test": (float,),
  "instruction": (str,),
  "fields": (str, list),
  "template": (str,),
  "target": (str,),
  "references": (str,),
  "options": (str, list),
  "metrics": (str, list),
  "category": (str,),
  "language": (str,),
  "heldout": (bool,),
}
KINDS = {str: "text", dict: "a mapping", list: "a list", bool: "true or false", float: "a share such as 0.05"}
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")

logger = logging.getLogger(__name__)


@gin.configurable
def own(path: str = gin.REQUIRED, *, bad_rows: int = 0) -> Collection:
  """The tasks of a folder's manifest; the module's docstring says how to write one.

  Everything is checked here, in one pass over the data: a row that can not be used is found before anything is built.

  Args:
    path: folder of the manifest and its files.
    bad_rows: rows of a split that may be unusable and are left out; `build.bad_rows` must allow them too.

  Raises:
    UserError: what is wrong in the manifest, with its line, or in the data, with file, line and column.
  """
  root = folder("own.path", path)
  manifest = next((DataFile(root / name) for name in MANIFESTS if (root / name).is_file()), None)
  if manifest is None:
    raise UserError(f"own.path is {str(path)!r}: it holds no {MANIFESTS[0]}", hint="pydoc mtx.tasks.own shows one")
  content = formats.settings(manifest)
  if not content:
    raise UserError(f"{manifest.name} names no task", hint="pydoc mtx.tasks.own shows an example")
  train: list[TextTask] = []
  heldout: list[TextTask] = []
  names: dict[str, str] = {}
  for name, table in content.items():
    entry = _Entry(str(name), table, manifest, formats.place(manifest, content, name))
    task = _task(entry, root, bad_rows)
    if task.name in names:
      raise UserError(f"{entry.place}: tasks {names[task.name]!r} and {name!r} are both called {task.name!r}")
    names[task.name] = str(name)
    (heldout if entry.get("heldout") else train).append(task)
  return Collection(
    name="own", train=tuple(train), heldout=tuple(heldout), citation=f"{root.name}/{manifest.path.name}"
  )


@dataclass(frozen=True)
class Parallel:
  """Two text files of which equal lines belong together."""

  inputs: DataFile
  targets: DataFile

  @property
  def name(self) -> str:
    return f"{self.inputs.name} and {self.targets.path.name}"


Source = DataFile | Parallel


@dataclass(frozen=True)
class Form:
  """How a record becomes an example; attributes are the manifest's keys of that name, empty where they are not given.

  Attributes:
    place: manifest and task, for messages.
    options: the options themselves, or the field that lists them.
  """

  place: str
  instruction: str
  fields: tuple[str, ...]
  template: str
  target: str
  references: str
  options: tuple[str, ...] | str

  def fingerprint(self) -> str:
    """All of it but the place: a line moved in the manifest leaves the cache as it is."""
    return json.dumps({key: value for key, value in vars(self).items() if key != "place"}, ensure_ascii=False)

  def input_fields(self) -> frozenset[str]:
    """Fields that the input is made of."""
    return compiled(self.template, f"{self.place}: template").reads if self.template else frozenset(self.fields)

  def reads(self) -> dict[str, str]:
    """Field that every record must have -> key of the manifest that says so."""
    target: frozenset[str] = frozenset(filter(None, [self.target]))
    if _is_template(self.target):
      target = compiled(self.target, f"{self.place}: target").reads
    listed = {self.references: "references", self.options if isinstance(self.options, str) else "": "options"}
    found = dict.fromkeys(sorted(self.input_fields()), "template" if self.template else "fields")
    return {**found, **dict.fromkeys(sorted(target), "target"), **{f: key for f, key in listed.items() if f}}

  def check(self, record: Mapping[str, Any], source: str) -> None:
    """Raises UserError if the records of a source lack a field."""
    for field, key in self.reads().items():
      if field not in record:
        raise UserError(
          f"{self.place}: {key!r} reads field {field!r}, which {source} has not", hint=did_you_mean(field, record)
        )

  def example(self, record: Mapping[str, Any]) -> tuple[str, Row]:
    """(what the input is made of, example).

    Raises:
      BadRecord: it can not be used; the message says why.
    """
    made_of = json.dumps({f: record.get(f) for f in sorted(self.input_fields())}, ensure_ascii=False, default=str)
    try:
      inputs = self._inputs(record, made_of)
      references = _texts(record, self.references) if self.references else []
      target = self._target(record, made_of) if self.target else references[0]
    except Inapplicable as error:
      raise BadRecord(f"lacks an element that the template uses: {error.message}") from error
    for key, text in (("input", inputs), ("target", target)):
      if not text:
        raise BadRecord(f"its {key} is empty")
    row: dict[str, Any] = {"inputs": inputs, "targets": target}
    if references:
      row["references"] = references
    if self.options:
      row["options"] = _texts(record, self.options) if isinstance(self.options, str) else list(self.options)
      if target not in row["options"]:
        raise BadRecord(f"its target {target!r:.60} is none of the options ({', '.join(row['options'])})")
    return made_of, row

  def _inputs(self, record: Mapping[str, Any], draw: str) -> str:
    if self.template:
      return render(self.template, f"{self.place}: template", record, draw).strip()
    values = {field: _text(record, field) for field in self.fields}
    lines = [next(iter(values.values()))] if len(values) == 1 else [f"{f}: {value}" for f, value in values.items()]
    if not any(values.values()):
      return ""
    return "\n\n".join(filter(None, [self.instruction.strip(), "\n".join(lines)]))

  def _target(self, record: Mapping[str, Any], draw: str) -> str:
    if _is_template(self.target):
      return render(self.target, f"{self.place}: target", record, draw).strip()
    return _text(record, self.target)


def _is_template(text: str) -> bool:
  return "{{" in text or "{%" in text


def _text(record: Mapping[str, Any], field: str) -> str:
  if field not in record:
    raise BadRecord(f"no field {field!r} (fields: {', '.join(record)})")
  value = record[field]
  if value is None or value != value:  # tables write what is missing as NaN
    raise BadRecord(f"field {field!r} is {'null' if value is None else 'NaN'}")
  if not isinstance(value, (str, int, float)):
    raise BadRecord(f"field {field!r} is {type(value).__name__}, not text or a number: a template can write it")
  return str(value).strip()


def _texts(record: Mapping[str, Any], field: str) -> list[str]:
  values = record.get(field)
  if not isinstance(values, list) or not values or not all(isinstance(v, (str, int, float)) and str(v) for v in values):
    raise BadRecord(f"field {field!r} is {values!r:.60}, not a list of texts")
  return [str(value).strip() for value in values]


@dataclass(frozen=True)
class _Entry:
  """A task as the manifest writes it, checked for its keys and their kinds as they are read."""

  name: str
  table: Any
  manifest: DataFile
  place: str

  def __post_init__(self):
    if not isinstance(self.table, formats.Table):
      raise UserError(
        f"{self.place}: task {self.name!r} is {type(self.table).__name__}, not a mapping",
        hint=f"its keys are: {', '.join(KEYS)}",
      )
    for key, value in self.table.items():
      if key not in KEYS:
        raise self.error(key, "is not known", did_you_mean(str(key), KEYS))
      if not isinstance(value, KEYS[key]):
        raise self.error(key, f"is {value!r:.60}", f"it is {' or '.join(KINDS[kind] for kind in KEYS[key])}")

  def get(self, key: str, default: Any = None) -> Any:
    return self.table.get(key, default)

  def names(self, key: str) -> tuple[str, ...]:
    """One text or a list of them."""
    value = self.get(key, [])
    for each in (listed := [value] if isinstance(value, str) else value):
      if isinstance(each, (bool, dict, list)) or each is None:
        raise self.error(key, f"lists {each!r}", 'put texts like "true" or "null" in quotes')
    return tuple(str(each) for each in listed)

  def error(self, key: str, what: str, hint: str = "") -> UserError:
    """An error that names file, line, task and key."""
    return UserError(f"{formats.place(self.manifest, self.table, key)}: task {self.name!r}: {key!r} {what}", hint=hint)


class _Checking(Reading):
  """Reading whose budget is `own.bad_rows`."""

  def skip(self, place: str, reason: str) -> None:
    try:
      super().skip(place, reason)
    except UserError as error:
      hint = "leave out bad rows with own.bad_rows = 100 and build.bad_rows = 100, the most a split"
      raise UserError(error.message, hint=hint) from None


def _task(entry: _Entry, root: Path, bad_rows: int) -> TextTask:
  """A task, after reading all its data once."""
  form = _form(entry)
  sources = _sources(entry, root)
  shares = _shares(entry, sources)
  counts: dict[str, int] = {}
  ranges: dict[str, tuple[int, int]] = {}
  for split, files in sources.items():
    reading = _Checking(budget=bad_rows)
    hashes = sorted(digest for digest, _ in _examples(files, form, reading))
    shown = ", ".join(file.name for file in files)
    if reading.bad:
      logger.warning(
        "own: task %s, split %s: %d rows of %s left out, the first: %s: %s",
        entry.name, split, len(reading.bad), shown, *reading.bad[0],
      )  # fmt: skip
    if not hashes:
      raise UserError(f"{entry.place}: task {entry.name!r}: split {split!r} ({shown}) has no usable row")
    if split == "train" and shares:
      ranges = _ranges(hashes, shares)
      counts |= {part: bisect_left(hashes, high) - bisect_left(hashes, low) for part, (low, high) in ranges.items()}
      for part, count in counts.items():
        if not count:
          raise entry.error(
            next(iter(shares)), f"leaves no row for {part!r}: {shown} has {len(hashes)}", "raise or lower the share"
          )
    else:
      counts[split] = len(hashes)
  return TextTask(
    name=f"own_{_slug(entry.name)}",
    category=entry.get("category", "own"),
    rows=functools.partial(_rows, sources=sources, form=form, ranges=ranges, records=formats.records, write=render),
    splits={split: counts[split] for split in SPLITS if split in counts},
    metrics=_metrics(entry),
    language=_language(entry),
  )


def _form(entry: _Entry) -> Form:
  template, fields = entry.get("template", ""), entry.names("fields")
  if template and (fields or "instruction" in entry.table):
    raise entry.error("template", "stands beside fields or an instruction", "write all of it into the template")
  if "inputs" in entry.table:
    fields = fields or (() if template else ("inputs",))
  if not template and not fields:
    raise UserError(f"{entry.place}: task {entry.name!r} has neither fields nor a template", hint="fields: [question]")
  target = entry.get("target", "targets" if "targets" in entry.table else "")
  if not target and "references" not in entry.table:
    raise UserError(f"{entry.place}: task {entry.name!r} has no target", hint="target: answer")
  options = entry.get("options", ())
  form = Form(
    place=f"{entry.place}: task {entry.name!r}",
    instruction=entry.get("instruction", ""),
    fields=fields,
    template=template,
    target=target,
    references=entry.get("references", ""),
    options=options if isinstance(options, str) else entry.names("options"),
  )
  form.reads()  # compiles the templates
  return form


def _sources(entry: _Entry, root: Path) -> dict[str, tuple[Source, ...]]:
  """Split -> its files, all of them there."""
  if ("inputs" in entry.table) != ("targets" in entry.table):
    here, other = ("inputs", "targets") if "inputs" in entry.table else ("targets", "inputs")
    raise entry.error(here, f"is there without {other!r}", "parallel texts are two files, line by line")
  if ("inputs" in entry.table) == ("files" in entry.table):
    wrong = "both files and inputs" if "files" in entry.table else "neither files nor inputs and targets"
    raise UserError(f"{entry.place}: task {entry.name!r} has {wrong}", hint="files: train.jsonl")
  if "files" in entry.table:
    sources: dict[str, tuple[Source, ...]] = {}
    for split, names in _by_split(entry, "files").items():
      files = [_file(entry, "files", root, name) for name in names]
      for file in files:
        formats.ending_of(file)
      sources[split] = tuple(files)
    return sources
  sides = {key: _by_split(entry, key) for key in ("inputs", "targets")}
  if {s: len(names) for s, names in sides["inputs"].items()} != {s: len(n) for s, n in sides["targets"].items()}:
    raise entry.error("targets", "has other splits than inputs", "every file of inputs needs one of targets")
  return {
    split: tuple(
      Parallel(_file(entry, "inputs", root, left), _file(entry, "targets", root, right))
      for left, right in zip(names, sides["targets"][split], strict=True)
    )
    for split, names in sides["inputs"].items()
  }


def _by_split(entry: _Entry, key: str) -> dict[str, list[str]]:
  """Split -> names of its files."""
  given = entry.get(key)
  if not isinstance(given, dict):
    alone = "test" if entry.get("heldout") and not {"validation", "test"} & set(entry.table) else "train"
    given = {alone: given}
  found = {}
  for split, names in given.items():
    if split not in SPLITS:
      raise entry.error(key, f"has a split {split!r}", did_you_mean(str(split), SPLITS))
    found[split] = [names] if isinstance(names, str) else names
    if not isinstance(found[split], list) or not found[split] or not all(isinstance(n, str) for n in found[split]):
      raise entry.error(key, f"of split {split!r} is {names!r:.60}", "it is a file or a list of files")
  needed = "test" if entry.get("heldout") else "train"
  if needed not in found and needed not in entry.table:
    role = "is held out" if entry.get("heldout") else "is trained on"
    raise entry.error(key, f"has no split {needed!r}, and the task {role}", f"splits: {', '.join(found) or 'none'}")
  return found


def _file(entry: _Entry, key: str, root: Path, name: str) -> DataFile:
  if not (root / name).is_file():
    near = did_you_mean(name, [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()])
    raise entry.error(key, f"names {name!r}, which is not in {root.name}/", near)
  return DataFile(root / name)


def _shares(entry: _Entry, sources: Mapping[str, Any]) -> dict[str, float]:
  """Split -> share of train that it takes."""
  shares = {split: entry.get(split) for split in ("test", "validation") if split in entry.table}
  for split, share in shares.items():
    if split in sources:
      raise entry.error(split, "is a share, and the split has files of its own", "keep one of the two")
    if "train" not in sources:
      raise entry.error(split, "is a share of train, which has no files", "files: {train: train.jsonl}")
    if not 0 < share < 1:
      raise entry.error(split, f"is {share}", "a share between 0 and 1, for example 0.05")
  if sum(shares.values()) >= 1:
    raise entry.error(
      "test", f"and validation are {sum(shares.values()):g} of train", "something must be left to train"
    )
  return shares


def _ranges(hashes: Sequence[int], shares: Mapping[str, float]) -> dict[str, tuple[int, int]]:
  """Split -> from which hash to below which it goes.

  A share of n rows is round(share * n) of them and at least one; equal hashes are equal inputs and stay together.
  """
  ranges, low, taken = {}, 0, 0
  for split, share in shares.items():
    taken = min(taken + max(1, round(share * len(hashes))), len(hashes) - 1)
    ranges[split] = (low, hashes[taken])
    low = hashes[taken]
  return {**ranges, "train": (low, 1 << 64)}


def _metrics(entry: _Entry) -> tuple[str, ...]:
  names = entry.names("metrics") or ("exact_match",)
  for name in names:
    if name not in METRICS:
      raise entry.error("metrics", f"names {name!r}, which is not known", did_you_mean(name, METRICS))
  return names


def _language(entry: _Entry) -> str:
  language = entry.get("language", "en")
  if not LANGUAGE.fullmatch(language):
    raise entry.error("language", f"is {language!r}", "a BCP 47 tag: en, de, zh-Hant")
  return language


def _rows(
  split: str,
  reading: Reading,
  *,
  sources: Mapping[str, tuple[Source, ...]],
  form: Form,
  ranges: Mapping[str, tuple[int, int]],
  records: Any,
  write: Any,
) -> Iterator[Row]:
  """Examples of a split, in the order of its files. `records` and `write` show their code to the cache."""
  del records, write
  low, high = ranges.get(split, (0, 1 << 64))
  for digest, row in _examples(sources.get(split, sources.get("train", ())), form, reading):
    if low <= digest < high:
      yield row


def _examples(files: Sequence[Source], form: Form, reading: Reading) -> Iterator[tuple[int, Row]]:
  """(hash of what the input is made of, example)."""
  for file in files:
    rows = formats.records(file, reading) if isinstance(file, DataFile) else _pairs(file)
    for position, (place, record) in enumerate(rows):
      if position == 0:
        form.check(record, file.name)
      try:
        made_of, row = form.example(record)
      except BadRecord as error:
        reading.skip(place, str(error))
        continue
      yield text_hash(made_of), row


def _pairs(files: Parallel) -> Iterator[tuple[str, dict[str, str]]]:
  """(place, record with `inputs` and `targets`) of every line."""
  with files.inputs.decoded() as inputs, files.targets.decoded() as targets:
    for number, pair in enumerate(itertools.zip_longest(inputs, targets), 1):
      if None in pair:
        shorter, more = number - 1, number + sum(1 for _ in itertools.chain(inputs, targets))
        counts = (more, shorter) if pair[1] is None else (shorter, more)
        raise UserError(
          f"{files.inputs.name} has {counts[0]} lines and {files.targets.name} {counts[1]}: they are not parallel",
          hint="line n of one must be the answer to line n of the other",
        )
      sides = (side.removesuffix("\n").rstrip("\r") for side in pair)
      yield f"{files.inputs.name}:{number}", dict(zip(("inputs", "targets"), sides, strict=True))


def _slug(text: str) -> str:
  return re.sub(r"[^a-z0-9_.]+", "_", text.lower()).strip("_.") or "task"
