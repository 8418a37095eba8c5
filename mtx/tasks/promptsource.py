"""Tasks from PromptSource's templates over any data set: P3, xP3 and xP3mt are settings of it.

PromptSource (Bach et al. 2022, arXiv 2202.01279) keeps `templates/<data set>[/<subset>]/templates.yaml`; any
checkout of it or of its forks will do. As in xP3 (Muennighoff et al. 2023, arXiv 2211.01786) every data set x language
x template is a task with at most so many examples.

    promptsource.path = 'promptsource/promptsource'
    promptsource.datasets = {
        'super_glue/boolq': {'train': 'boolq/train.jsonl', 'test': 'boolq/val.jsonl'},
        'xquad/xquad.en': {'en': {'test': 'xquad.en.jsonl'}, 'de': {'test': 'xquad.de.jsonl'}},
    }
    promptsource.heldout = ['xquad/xquad.en']

What differs from the library's `Template.apply`: nothing is cut at 2048 characters; the filter `choice` chooses the
same for the same record; `|||` inside lists of a record does not split the prompt; a label of -1 is no last choice; a
null or a missing field is not printed as "None" or nothing (see `mtx.tasks.templates`).
"""

import functools
import heapq
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gin

from mtx.errors import UserError, did_you_mean
from mtx.tasks import formats
from mtx.tasks.files import DataFile, folder, located
from mtx.tasks.task import Collection, Reading, Row, TextTask, text_hash
from mtx.tasks.templates import SEPARATOR, BadRecord, Inapplicable, compiled, parts

Records = Callable[[], Iterable[Mapping[str, Any]]]
Source = DataFile | Records
SPLITS = ("train", "validation", "test")
EXAMPLES = 100_000  # MAX_EXAMPLES_PER_DATASET_PROMPT of xP3x
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
# The tags of the release, in lower case. What is not here is left to the metrics beside it, and where there is none to
# exact match or ROUGE-L: mtx does not measure edit distance, correlations are of numbers, which not all of the prompts
# with that tag ask for, and AUC (`auroc`) needs the same options in every example.
METRICS = {
  "accuracy": ("exact_match",),
  "bleu": ("bleu",),
  "rouge": ("rouge_l",),
  "squad": ("squad_f1", "squad_em"),
  "coqa f1": ("squad_f1",),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
  """One template of a file.

  Attributes:
    file: `<data set>[/<subset>]/templates.yaml`, in a translation after its language.
    identity: the id that PromptSource gave it.
    jinja: input and target, with `|||` between them.
    answer_choices: Jinja, with `|||` between choices; empty when there are none.
    metrics, languages: tags of the file.
    original_task: whether it asks for what the data set was made for.
  """

  file: str
  name: str
  identity: str
  jinja: str
  answer_choices: str
  metrics: tuple[str, ...]
  languages: tuple[str, ...]
  original_task: bool

  @property
  def place(self) -> str:
    return f"{self.file}: template {self.name!r}"

  def reads(self) -> frozenset[str]:
    """Fields that every record must have.

    Raises:
      UserError: as `mtx.tasks.templates.compiled`; it names answer choices, and there are none.
    """
    fields = compiled(self.jinja, self.place).reads
    if not self.answer_choices:
      if "answer_choices" in fields:
        raise UserError(f"{self.place} reads answer_choices, which it does not define")
      return fields
    choices = compiled(self.answer_choices, f"{self.place}: answer_choices").reads
    return fields - {"answer_choices"} | choices


@gin.configurable
def promptsource(
  path: str = gin.REQUIRED,
  datasets: Mapping[str, Mapping[str, Any]] = gin.REQUIRED,
  *,
  translations: str | None = None,
  templates: Sequence[str] | None = None,
  original_task_only: bool = False,
  languages: Sequence[str] | None = None,
  prompt_languages: Sequence[str] | None = None,
  examples: int | None = EXAMPLES,
  evaluation_examples: int | None = None,
  heldout: Sequence[str] = (),
  seed: int = 0,
) -> Collection:
  """Every data set x language x template as a task `promptsource_<data set>_<language>_<template>`.

  A row for which a template renders no input or no target is not an example of its task. A row that a template can
  not use (a field is missing or null) is a bad one.

  Args:
    path: folder that holds `templates/`.
    datasets: "<data set>[/<subset>]" -> split -> its records: a .jsonl, .csv, .tsv (all three also .gz) or .parquet
      file, or a function of a module that yields mappings. Splits are train, validation and test. With languages,
      "<data set>[/<subset>]" -> language -> split -> records: all are prompted by the same templates.
    translations: folder that holds `templates/<language>/<data set>[/<subset>]/templates.yaml`. Records of these
      languages get the translated templates instead (xP3mt); others keep those of `path` (xP3).
    templates: names of those that are used; None: all.
    original_task_only: leave out templates that turn a data set's task round, or into another one.
    languages: of the records that are used; None: all (`["en"]` makes P3 of xP3).
    prompt_languages: leave out templates that are tagged with a language that is not among these.
    examples: most training examples of a task; None: all. A hash of the record decides which.
    evaluation_examples: the same for its other splits.
    heldout: data sets that are judged on and not trained on.
    seed: of what the templates' filter `choice` chooses.

  Raises:
    UserError: no templates for a data set, of a name, or left by the filters; templates that can not be parsed, or
      try to leave the sandbox; records that are missing, or lack a field that a template reads; a data set to train
      on without a split train, or a held-out one without a split test.
  """
  root = folder("promptsource.path", path, "templates") / "templates"
  abroad = folder("promptsource.translations", translations, "templates") / "templates" if translations else None
  _check_settings(datasets, heldout, examples, evaluation_examples)
  variants = {name: _variants(name, places) for name, places in datasets.items()}
  known = {language for places in variants.values() for language in places}
  for language in languages or ():
    if language not in known:
      raise UserError(
        f"promptsource.languages: no data set has records in {language!r}", hint=did_you_mean(language, known)
      )
  used: dict[str, list[Prompt]] = {}
  train: list[TextTask] = []
  held: list[TextTask] = []
  seen: set[str] = set()
  for name, places in variants.items():
    for language, splits in places.items():
      if languages and language not in languages:
        continue
      every = _prompts(root, abroad, name, language)
      seen |= {prompt.name for prompt in every}
      chosen = [
        prompt
        for prompt in every
        if (templates is None or prompt.name in templates)
        and (prompt.original_task or not original_task_only)
        and (prompt_languages is None or set(prompt.languages) <= set(prompt_languages))
      ]
      used.setdefault(name, []).extend(chosen)
      kind = held if name in heldout else train
      tasks = _tasks(name, language, chosen, splits, examples, evaluation_examples, seed)
      kind.extend(tasks)
  _check_selection(used, templates, seen)
  _warn_of_shared(used, heldout)
  return Collection(
    name="promptsource",
    train=tuple(train),
    heldout=tuple(held),
    citation="PromptSource (Bach et al. 2022, arXiv 2202.01279; templates Apache-2.0), as in xP3 (arXiv 2211.01786)",
  )


class _Loader(formats.YamlLoader):
  """YAML with the library's two classes, which are read as mappings."""


for _tag in ("!Template", "!TemplateMetadata"):
  _Loader.add_constructor(_tag, formats.YamlLoader.table)


def read(file: Path, shown: str) -> list[Prompt]:
  """All templates of a `templates.yaml`, in the order of the file.

  Args:
    shown: what names the file in messages and tasks.

  Raises:
    UserError: it is not of PromptSource's format; file and line are named.
  """
  data = DataFile(file)
  content = formats.settings(data, _Loader)
  if not isinstance(content.get("templates"), formats.Table):
    raise UserError(f"{shown} has no mapping `templates`", hint=f"it has: {', '.join(map(str, content)) or 'nothing'}")
  return [_prompt(shown, identity, made, content["templates"]) for identity, made in content["templates"].items()]


def _prompt(shown: str, identity: str, made: Any, table: formats.Table) -> Prompt:
  place = f"{shown}:{table.lines[identity]}"
  if not isinstance(made, formats.Table):
    raise UserError(f"{place}: template {identity} is {type(made).__name__}, not a mapping")
  for field in ("name", "jinja", "metadata"):
    if field not in made:
      raise UserError(f"{place}: template {identity} has no field {field!r}", hint=f"it has: {', '.join(made)}")
  metadata = made["metadata"] or {}
  choices = made.get("answer_choices")
  texts = {"name": made["name"], "jinja": made["jinja"], "answer_choices": choices or ""}
  for field, value in texts.items():
    if not isinstance(value, str):
      raise UserError(f"{place}: field {field!r} of template {identity} is {type(value).__name__}, not text")
  if SEPARATOR not in made["jinja"]:
    raise UserError(f"{place}: template {made['name']!r} has no {SEPARATOR} between input and target")
  return Prompt(
    file=shown,
    identity=str(identity),
    metrics=tuple(metadata.get("metrics") or ()),
    languages=tuple(metadata.get("languages") or ()),
    original_task=bool(metadata.get("original_task")),
    **texts,
  )


def example(prompt: Prompt, record: Mapping[str, Any], draw: str) -> dict[str, Any] | None:
  """What a template makes of a record: `inputs`, `targets`, and `options` if the target is one of its choices.

  None: it makes no input or no target of it.

  Args:
    draw: decides what the templates' filter `choice` chooses.

  Raises:
    BadRecord: see `mtx.tasks.templates`.
  """
  choices = None
  try:
    if prompt.answer_choices:
      if "answer_choices" in record:
        raise BadRecord("the record has a field 'answer_choices', which the template defines")
      choices = parts(prompt.answer_choices, f"{prompt.place}: answer_choices", record, draw)
    made = parts(prompt.jinja, prompt.place, record, draw, choices)
  except Inapplicable:
    return None
  if len(made) > 2:
    raise BadRecord(f"makes {len(made)} parts of it: input {SEPARATOR} target are wanted")
  if len(made) < 2 or not all(made):
    return None
  row: dict[str, Any] = {"inputs": made[0], "targets": made[1]}
  if choices and made[1] in choices:
    row["options"] = list(dict.fromkeys(filter(None, choices)))
  return row


def _rows(
  split: str,
  reading: Reading,
  *,
  task: str,
  prompt: Prompt,
  sources: Mapping[str, Source],
  most: Mapping[str, int | None],
  seed: int,
  make: Callable[..., dict[str, Any] | None],
  render: Callable[..., list[str]],
  records: Callable[..., Iterator],
) -> Iterator[Row]:
  """Examples of a split, in the order of its records. `make`, `render` and `records` show their code to the cache."""
  del render

  def made() -> Iterator[tuple[int, int, Row]]:
    for number, (place, record) in enumerate(_records(sources[split], reading, records)):
      content = json.dumps(record, sort_keys=True, ensure_ascii=False, default=str)
      try:
        row = make(prompt, record, f"{seed}/{prompt.identity}/{content}")
      except BadRecord as error:
        reading.skip(place, f"{prompt.place} {error}")
        continue
      if row:
        yield text_hash(content), number, {"id": f"{task}-{split}-{number}", **row}

  rows: Iterable[tuple[int, int, Row]] = made()
  if (cap := most[split]) is not None:
    rows = sorted(heapq.nsmallest(cap, rows, key=lambda each: each[:2]), key=lambda each: each[1])
  for _, _, row in rows:
    yield row


def _records(source: Source, reading: Reading, records: Callable[..., Iterator]) -> Iterator[tuple[str, Any]]:
  if isinstance(source, DataFile):
    yield from records(source, reading)
    return
  for number, record in enumerate(source(), 1):
    if isinstance(record, Mapping):
      yield f"{_shown(source)}: record {number}", record
    else:
      reading.skip(f"{_shown(source)}: record {number}", f"is {type(record).__name__}, not a mapping")


def _shown(source: Source) -> str:
  if isinstance(source, DataFile):
    return source.name
  function = source.func if isinstance(source, functools.partial) else source
  return str(getattr(function, "__name__", function))


def _tasks(
  name: str,
  language: str,
  prompts: Sequence[Prompt],
  sources: Mapping[str, Source],
  examples: int | None,
  evaluation_examples: int | None,
  seed: int,
) -> Iterator[TextTask]:
  """The tasks of one data set in one language."""
  first = {split: _first(source) for split, source in sources.items()}
  slugs = [_slug(prompt.name) for prompt in prompts]
  for prompt, slug in zip(prompts, slugs, strict=True):
    for split, record in first.items():
      _check_fields(prompt, record, sources[split])
    if slugs.count(slug) > 1:
      slug += f"_{_slug(prompt.identity)[:8]}"
    task = f"promptsource_{_slug(name)}_{language.lower().replace('-', '_')}_{slug}"
    yield TextTask(
      name=task,
      category=name,
      rows=functools.partial(
        _rows,
        task=task,
        prompt=prompt,
        sources=dict(sources),
        most={split: examples if split == "train" else evaluation_examples for split in sources},
        seed=seed,
        make=example,
        render=parts,
        records=formats.records,
      ),
      splits=dict.fromkeys(sources),  # only rendering tells for which records a template is
      metrics=_metrics(prompt),
      language=_written(prompt, language),
    )


def _first(source: Source) -> Mapping[str, Any]:
  for _, record in _records(source, Reading(budget=sys.maxsize), formats.records):
    return record
  raise UserError(f"{_shown(source)} holds no records")


def _check_fields(prompt: Prompt, record: Mapping[str, Any], source: Source) -> None:
  if prompt.answer_choices and "answer_choices" in record:
    raise UserError(
      f"{_shown(source)} has a field 'answer_choices', which {prompt.place} defines itself", hint="rename the field"
    )
  if missing := sorted(prompt.reads() - set(record)):
    raise UserError(
      f"{prompt.place} reads field {missing[0]!r}, which {_shown(source)} has not",
      hint=f"{did_you_mean(missing[0], record)} A field that some records lack is written as null.",
    )


def _metrics(prompt: Prompt) -> tuple[str, ...]:
  names = [name for tag in prompt.metrics for name in METRICS.get(tag.lower(), ())]
  return tuple(dict.fromkeys(names)) or (("exact_match",) if prompt.answer_choices else ("rouge_l",))


def _written(prompt: Prompt, language: str) -> str:
  """What a model must write: the prompt's language where the choices are written in the template, else the records'."""
  fixed = prompt.answer_choices and not re.search(r"{[{%]", prompt.answer_choices)
  return prompt.languages[0] if fixed and prompt.languages else language


def _prompts(root: Path, abroad: Path | None, name: str, language: str) -> list[Prompt]:
  """The templates for a data set's records of a language."""
  if abroad:
    translated = abroad / language / name / "templates.yaml"
    if translated.is_file():
      return read(translated, f"{language}/{name}/templates.yaml")
    if (abroad / language).is_dir():
      logger.warning("promptsource: %s has no templates in %s: the original ones are used", name, language)
  file = root / name / "templates.yaml"
  if not file.is_file():
    known = [each.parent.relative_to(root).as_posix() for each in root.rglob("templates.yaml")]
    raise UserError(f"promptsource.datasets: {name!r} has no templates in {root.name}/", hint=did_you_mean(name, known))
  return read(file, f"{name}/templates.yaml")


def _variants(name: str, places: Mapping[str, Any]) -> dict[str, dict[str, Source]]:
  """Language -> split -> records."""
  where = f"promptsource.datasets[{name!r}]"
  if not isinstance(places, Mapping) or not places:
    raise UserError(f"{where} is {places!r:.60}", hint="it maps splits to files: {'train': 'train.jsonl'}")
  nested = [isinstance(value, Mapping) for value in places.values()]
  if any(nested) and not all(nested):
    raise UserError(f"{where} maps to files and to mappings", hint="either splits to files, or languages to splits")
  variants = dict(places) if all(nested) else {"en": places}
  for language, splits in variants.items():
    if not LANGUAGE.fullmatch(str(language)):
      raise UserError(f"{where}: {language!r} is no language", hint="a BCP 47 tag: en, de, zh-Hant")
    for split, source in splits.items():
      if split not in SPLITS:
        raise UserError(f"{where}: {split!r} is no split", hint=did_you_mean(str(split), SPLITS))
      if not callable(source) and not isinstance(source, (str, Path)):
        raise UserError(f"{where}: split {split!r} is {source!r:.60}", hint="a file, or a function that yields records")
  return {
    language: {split: source if callable(source) else DataFile(located(source)) for split, source in splits.items()}
    for language, splits in variants.items()
  }


def _check_settings(
  datasets: Mapping[str, Mapping[str, Any]],
  heldout: Sequence[str],
  examples: int | None,
  evaluation_examples: int | None,
) -> None:
  if not datasets:
    raise UserError("promptsource.datasets is empty", hint="{'super_glue/boolq': {'train': 'boolq/train.jsonl'}}")
  for setting, value in (("examples", examples), ("evaluation_examples", evaluation_examples)):
    if value is not None and value < 1:
      raise UserError(f"promptsource.{setting} = {value}", hint="a number of examples from 1, or None for all")
  for name in heldout:
    if name not in datasets:
      raise UserError(
        f"promptsource.heldout: {name!r} is not in promptsource.datasets", hint=did_you_mean(name, datasets)
      )
  for name, places in datasets.items():
    needed = "test" if name in heldout else "train"
    for language, splits in _variants(name, places).items():
      if needed not in splits:
        role = "held out" if name in heldout else "trained on"
        raise UserError(
          f"promptsource.datasets[{name!r}] ({language}) is {role} and has no split {needed!r}",
          hint=f"splits: {', '.join(splits) or 'none'}"
          + ("" if name in heldout else "; promptsource.heldout lists data sets that are only judged on"),
        )


def _check_selection(used: Mapping[str, Sequence[Prompt]], names: Sequence[str] | None, seen: set[str]) -> None:
  for name in names or ():
    if name not in seen:
      raise UserError(f"promptsource.templates: no data set has a template {name!r}", hint=did_you_mean(name, seen))
  for dataset, prompts in used.items():
    if not prompts:
      raise UserError(
        f"promptsource.datasets[{dataset!r}]: the filters leave none of its templates",
        hint="see promptsource.templates, original_task_only and prompt_languages",
      )


def _warn_of_shared(used: Mapping[str, Sequence[Prompt]], heldout: Sequence[str]) -> None:
  """Held-out scores mean less where training has seen the very prompt."""
  wording = lambda prompt: " ".join(prompt.jinja.split())
  trained = {wording(p): p for name, prompts in used.items() if name not in heldout for p in prompts}
  for name in heldout:
    if shared := [p for p in used.get(name, ()) if wording(p) in trained]:
      logger.warning(
        "promptsource: %d templates of held-out %s are also trained on, the first as %s",
        len({p.identity for p in shared}), name, trained[wording(shared[0])].place,
      )  # fmt: skip


def _slug(text: str) -> str:
  return re.sub(r"[^a-z0-9.]+", "_", text.lower()).strip("_.") or "template"
