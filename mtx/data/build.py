"""SeqIO tasks to cached examples: a task's own preprocessors run once, and again only when something changed.

The fingerprint of a split covers: the source's content, its module's code, its settings (prompt, caps), the
preprocessors' code, the vocabulary's bytes, the output features, SeqIO's version, the cache format. When one
of them changes, the line that is logged names it. A data source whose content lies outside its code (a file
it reads) shows that content to the fingerprint by a method `fingerprint() -> str` on any object bound to its
function, as `mtx.tasks.files.DataFile` does.

Tasks that are text (`mtx.tasks.task.TextTask`) are encoded without TensorFlow, by as many processes as there are
cores; other SeqIO tasks run through their own preprocessors here.
"""

import ast
import dataclasses
import functools
import hashlib
import inspect
import json
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gin
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mtx.data.cache import (
  FORMAT,
  CachedMixture,
  CachedSplit,
  CachedTask,
  Example,
  digest,
  finish_split,
  keep_vocabulary,
  write_index,
  write_split,
)
from mtx.data.jobs import Job, run_here
from mtx.data.replayed import earlier, replayed
from mtx.data.vocabulary import Vocabulary
from mtx.errors import UserError, did_you_mean
from mtx.tasks.encode import encoded
from mtx.tasks.source import Source, seqio, tf
from mtx.tasks.task import TaskInfo, TextTask
from mtx.tasks.vocabularies import unwrapped
from mtx.tokens.vocabulary import fingerprint_of

READ_EXAMPLES = 512  # at a time
SHARD_EXAMPLES = 50_000  # a larger split is written in several shards, by several workers


def registered() -> set[str]:
  """Names of every SeqIO Task and Mixture that is registered."""
  return {*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()}


@gin.configurable("build", allowlist=["workers", "bad_rows"])
def build_mixture(
  source: Source,
  mixture_name: str,
  cache_dir: str | Path,
  *,
  log: Callable[[str], Any] = print,
  workers: int | None = None,
  bad_rows: int = 0,
  run: Callable[[list[Job]], Iterable[Job]] | None = None,
) -> CachedMixture:
  """Opens the mixture's cache, after building what is missing or stale in it.

  Args:
    source: its vocabulary, categories, metrics and rates go into the cache.
    mixture_name: a SeqIO Mixture, or a single Task.
    cache_dir: shared by all mixtures; made when missing.
    log: called with one line per summary and per reason for building something again.
    workers: processes; None takes one a core, or none for a few examples.
    bad_rows: of a split that may be left out; they are counted and the first is told. 0 stops at the first.
    run: does the jobs and gives each back when it is done; None: here. `mtx.data.beam` has one for pipelines.

  Raises:
    UserError: unknown mixture, a vocabulary that is neither SentencePiece nor bytes or not the source's own,
      a rate that can not be computed, a task whose examples lack `inputs`/`targets` token ids, a bad row, a cache
      that can not be written.
  """
  root = Path(cache_dir)
  if mixture_name not in registered():
    raise UserError(f"mixture {mixture_name!r} is not registered", hint=did_you_mean(mixture_name, registered()))
  provider = seqio.get_mixture_or_task(mixture_name)
  tasks = list(provider.tasks) if isinstance(provider, seqio.Mixture) else [provider]
  tasks.sort(key=lambda task: task.name)
  vocabulary = keep_vocabulary(root, _vocabulary(source.vocabulary, root))

  wanted = {
    (task.name, split): _ingredients(task, split, vocabulary, source.texts.get(task.name))
    for task in tasks
    for split in task.splits
  }
  folders = {
    (name, split): root / "tasks" / name / f"{split}-{digest(ingredients)}"
    for (name, split), ingredients in wanted.items()
  }
  missing = [key for key in wanted if not folders[key].is_dir()]
  for line in _reasons(missing, wanted, folders):
    log(line)
  if missing:
    log(f"{mixture_name}: {len(wanted) - len(missing)} splits cached, {len(missing)} to build in {root}")
  by_name = {task.name: task for task in tasks}
  jobs = [
    Job(task, split, shard, shards, vocabulary, folders[name, split], bad_rows, wanted[name, split])
    for name, split in missing
    if (task := source.texts.get(name))
    for shards in [max(1, -(-(task.splits[split] or 0) // SHARD_EXAMPLES))]
    for shard in range(shards)
  ]
  others = [(name, split) for name, split in missing if name not in source.texts]
  opened = {folder: CachedSplit(folder) for folder in folders.values()}
  waiting = Counter(job.folder for job in jobs)
  bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
  with Progress(*bar, transient=True, disable=not (missing and sys.stdout.isatty())) as progress:
    step = progress.add_task(mixture_name, total=len(jobs) + len(others))
    for job in (run or functools.partial(run_here, workers=workers))(jobs):
      progress.update(step, description=f"{job.task.name} {job.split}", advance=1)
      waiting[job.folder] -= 1
      if not waiting[job.folder]:
        if job.shards > 1:
          finish_split(job.folder, job.shards, fingerprint=digest(job.ingredients), ingredients=job.ingredients)
        done = opened[job.folder]
        if left_out := done.manifest["left_out"]:
          first = ": ".join(left_out[0])
          log(f"{job.task.name} {job.split}: {len(left_out)} bad rows left out of {len(done)}; the first: {first}")
    for name, split in others:
      progress.update(step, description=f"{name} {split}")
      ingredients = wanted[name, split]
      examples = _examples(by_name[name], split, source.vocabulary)
      write_split(folders[name, split], examples, fingerprint=digest(ingredients), ingredients=ingredients)
      progress.advance(step)

  cached = tuple(
    CachedTask(
      name=task.name,
      category=source.categories.get(task.name, task.name),
      metrics=tuple(source.metrics.get(task.name, ("exact_match",))),
      fingerprint=digest([folders[task.name, split].name for split in task.splits]),
      splits={split: opened[folders[task.name, split]] for split in task.splits},
    )
    for task in tasks
  )
  rates = _rates(provider, tasks, source, cached)
  if replays := source.replays.get(mixture_name):
    cached, rates = replayed(cached, rates, replays, earlier(root, mixture_name))
  mixture = CachedMixture(mixture_name, cached, rates, vocabulary)
  write_index(root, mixture)
  return mixture


def _rates(
  provider: seqio.Mixture | seqio.Task, tasks: list[seqio.Task], source: Source, cached: tuple[CachedTask, ...]
) -> tuple[float, ...]:
  if isinstance(provider, seqio.Task):
    return (1.0,)
  try:
    if provider.name in source.rates:
      infos = [
        TaskInfo(t.name, t.category, source.sources.get(t.name, source.name), len(t.splits.get("train", ())))
        for t in cached
      ]
      rates = [float(rate) for rate in source.rates[provider.name](infos)]
    else:
      rates = [float(provider.get_rate(task)) for task in tasks]
  except (TypeError, KeyError, ValueError) as error:
    raise UserError(
      f"mixture {provider.name!r}: its rates can not be computed ({error})",
      hint="give the data sources `num_input_examples`, or the mixture numbers as rates",
    ) from error
  total = sum(rates)
  if not 0 < total < float("inf"):
    raise UserError(f"mixture {provider.name!r}: its rates sum to {total}", hint="give one task a positive rate")
  return tuple(rate / total for rate in rates)


def _vocabulary(vocabulary: seqio.Vocabulary, root: Path) -> Vocabulary:
  """The TensorFlow-free twin of a SeqIO vocabulary."""
  if ours := unwrapped(vocabulary):
    return ours
  if isinstance(vocabulary, seqio.ByteVocabulary):
    return Vocabulary("byte", extra_ids=vocabulary.extra_ids)
  if isinstance(vocabulary, seqio.SentencePieceVocabulary):
    file = str(vocabulary.sentencepiece_model_file)
    if "://" in file:  # T5's own lies in a bucket
      local = root / "vocabularies" / f"{digest(file)}.model"
      local.parent.mkdir(parents=True, exist_ok=True)
      tf.io.gfile.copy(file, str(local), overwrite=True)
      file = str(local)
    return Vocabulary("sentencepiece", Path(file), vocabulary.extra_ids)
  raise UserError(
    f"vocabulary {type(vocabulary).__name__} can not be read without SeqIO",
    hint="use seqio.SentencePieceVocabulary, seqio.ByteVocabulary or mtx.tasks.vocabularies.opened",
  )


def _examples(task: seqio.Task, split: str, vocabulary: seqio.Vocabulary) -> Iterator[Example]:
  """Runs the task's source and preprocessors, in order and untruncated; random preprocessors are seeded."""
  if task.supports_caching and task.cache_dir:
    dataset = task.get_dataset(None, split, use_cached=True, shuffle=False, seed=0)
  else:
    dataset = task.source.get_dataset(split=split, shuffle=False)
    dataset = task.preprocess_precache(dataset, seed=0)
    dataset = task.preprocess_postcache(dataset, sequence_length=None, seed=0)
  spec = dataset.element_spec
  if "targets" not in spec or any(spec[f].dtype.is_integer is False for f in ("inputs", "targets") if f in spec):
    raise UserError(
      f"task {task.name!r}: its preprocessors must end with token ids in `targets` (and `inputs`); "
      f"they give {', '.join(sorted(spec))}",
      hint="end them with seqio.preprocessors.tokenize and seqio.preprocessors.append_eos",
    )
  for index, fields in enumerate(_rows(dataset)):
    inputs, targets = (np.asarray(fields.get(name, ()), np.int32) for name in ("inputs", "targets"))
    if "references" in fields:
      references = json.loads(fields["references"])
    else:
      references = [_text(fields, "targets", vocabulary)]
    yield {
      "inputs": inputs,
      "targets": targets,
      "id": fields["id"].decode() if "id" in fields else f"{task.name}-{split}-{index}",
      "references": references,
      "text": _text(fields, "inputs", vocabulary),
    }


def _rows(dataset: tf.data.Dataset) -> Iterator[dict[str, Any]]:
  """Elements as numpy values, fetched many at a time: one at a time, TensorFlow's own calls cost most of a build."""
  for batch in dataset.ragged_batch(READ_EXAMPLES):
    columns = {
      name: np.split(value.flat_values.numpy(), value.row_splits.numpy()[1:-1])
      if isinstance(value, tf.RaggedTensor)
      else value.numpy()
      for name, value in batch.items()
    }
    for values in zip(*columns.values(), strict=True):
      yield dict(zip(columns, values, strict=True))


def _text(fields: Mapping[str, Any], feature: str, vocabulary: seqio.Vocabulary) -> str:
  pretokenized = fields.get(f"{feature}_pretokenized")
  if isinstance(pretokenized, bytes):
    return pretokenized.decode()
  return vocabulary.decode([int(token) for token in fields.get(feature, ())])


def _ingredients(task: seqio.Task, split: str, vocabulary: Vocabulary, text: TextTask | None) -> dict[str, Any]:
  if text is not None:
    return {
      "format": FORMAT,
      "split": split,
      "rows": _describe(text.rows),
      "encoding": _module_code(encoded.__module__),
      "vocabulary": vocabulary.fingerprint,
    }
  features = {}
  for name, feature in task.output_features.items():
    if _vocabulary_key(feature.vocabulary) != vocabulary.fingerprint:
      raise UserError(
        f"task {task.name!r}: feature {name!r} has another vocabulary than the source",
        hint="inputs and targets of all tasks share one vocabulary",
      )
    features[name] = {"add_eos": feature.add_eos, "dtype": feature.dtype.name, "required": feature.required}
  return {
    "format": FORMAT,
    "seqio": seqio.__version__,
    "split": split,
    "source": _seqio_cache(task, split) or _describe(task.source),
    "preprocessors": [_describe(preprocessor) for preprocessor in task.preprocessors],
    "features": features,
    "vocabulary": vocabulary.fingerprint,
  }


def _seqio_cache(task: seqio.Task, split: str) -> dict[str, str]:
  """Name -> content hash of the files that SeqIO's own caching job wrote for a split; empty if it did not."""
  if not (task.supports_caching and task.cache_dir):
    return {}
  files = sorted(tf.io.gfile.glob(f"{seqio.get_cached_tfrecord_prefix(task.cache_dir, split)}-*"))
  return {Path(file).name: _content_hash(file) for file in files}


def _reasons(
  missing: list[tuple[str, str]],
  wanted: Mapping[tuple[str, str], dict[str, Any]],
  folders: Mapping[Any, Path],
) -> Iterator[str]:
  """Lines that say which ingredient made which splits stale: equal reasons share a line."""
  stale: dict[str, list[str]] = {}
  for name, split in missing:
    earlier = list(folders[name, split].parent.glob(f"{split}-*/manifest.json"))
    if earlier:
      newest = max(earlier, key=lambda path: path.stat().st_mtime)
      try:
        before = json.loads(newest.read_text(encoding="utf-8"))["ingredients"]
      except (ValueError, KeyError, TypeError):  # a damaged manifest does not know
        before = {}
      changes = ", ".join(_changes(before, json.loads(json.dumps(wanted[name, split]))))
      stale.setdefault(changes, []).append(f"{name} {split}")
  for changes, splits in stale.items():
    others = f" and {len(splits) - 1} more" if len(splits) > 1 else ""
    yield f"cache is stale: {changes}: building {splits[0]}{others} again"


def _changes(before: Any, after: Any, path: str = "") -> Iterator[str]:
  """Dotted names of the leaves that differ, with short values."""
  if isinstance(before, dict) and isinstance(after, dict):
    for key in sorted({*before, *after}):
      yield from _changes(before.get(key), after.get(key), f"{path}.{key}" if path else key)
  elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
      yield from _changes(old, new, f"{path}[{index}]")
  elif before != after:
    shown = (json.dumps(value, ensure_ascii=False) for value in (before, after))
    yield f"{path} " + " -> ".join(text if len(text) <= 24 else text[:20] + "..." for text in shown)


def _vocabulary_key(vocabulary: seqio.Vocabulary) -> str:
  if ours := unwrapped(vocabulary):
    return ours.fingerprint
  file = str(vocabulary.sentencepiece_model_file) if isinstance(vocabulary, seqio.SentencePieceVocabulary) else ""
  return _file_key(file, vocabulary.extra_ids) if file else fingerprint_of(_kind(vocabulary), vocabulary.extra_ids)


def _kind(vocabulary: seqio.Vocabulary) -> bytes:
  return type(vocabulary).__name__.removesuffix("Vocabulary").lower().encode()


@functools.cache
def _file_key(file: str, extra_ids: int) -> str:
  """Of a SentencePiece model, perhaps in a bucket, that many tasks have."""
  return fingerprint_of(tf.io.gfile.GFile(file, "rb").read(), extra_ids)


@functools.cache
def _module_code(name: str) -> str | None:
  """Hash of a module's syntax tree: editing a comment or the layout leaves it equal."""
  try:
    return digest(ast.dump(ast.parse(inspect.getsource(sys.modules[name]))))
  except (KeyError, OSError, TypeError):  # typed into an interpreter: no file
    return None


def _describe(value: Any, depth: int = 0) -> Any:
  """What `value` is, as JSON: equal in two processes exactly when it would act the same."""
  recur = functools.partial(_describe, depth=depth + 1)
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  if depth > 12:
    return type(value).__qualname__
  if isinstance(value, seqio.Vocabulary):
    return _vocabulary_key(value)
  if callable(getattr(value, "fingerprint", None)) and not isinstance(value, type):
    return value.fingerprint()
  if isinstance(value, functools.partial):
    bound = {key: recur(item) for key, item in value.keywords.items()}
    return {"function": recur(value.func), "args": [recur(item) for item in value.args], **bound}
  if isinstance(value, types.MethodType):
    return {"method": recur(value.__func__), "of": recur(value.__self__)}
  if isinstance(value, types.FunctionType):
    code = _module_code(value.__module__) or hashlib.blake2b(value.__code__.co_code, digest_size=10).hexdigest()
    bound = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
    described: dict[str, Any] = {"name": f"{value.__module__}.{value.__qualname__}", "code": code}
    if bound:
      described["closure"] = {key: recur(cell.cell_contents) for key, cell in bound.items()}
    return described
  if isinstance(value, type):
    return {"class": f"{value.__module__}.{value.__qualname__}", "code": _module_code(value.__module__)}
  if isinstance(value, Path):
    return str(value)
  if isinstance(value, Mapping):
    return {str(key): recur(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [recur(item) for item in value]
  if isinstance(value, (set, frozenset)):
    return sorted(json.dumps(recur(item), sort_keys=True) for item in value)
  if isinstance(value, seqio.FileDataSource):
    return {"files": _files(value), **_fields(value, recur)}
  if isinstance(value, seqio.TfdsDataSource):
    return {"tfds": value.tfds_dataset.name, "splits": recur(dict(value.tfds_dataset._split_map or {}))}
  if dataclasses.is_dataclass(value) or hasattr(value, "__dict__"):
    return _fields(value, recur)
  return repr(value)


def _fields(value: Any, recur: Callable[[Any], Any]) -> dict[str, Any]:
  return {
    "class": type(value).__qualname__,
    **{key.lstrip("_"): recur(item) for key, item in vars(value).items()},
  }


def _files(source: seqio.FileDataSource) -> dict[str, str]:
  """Name -> content hash of every file of every split."""
  files = sorted({file for split in source.splits for file in source.list_shards(split)})
  return {file: _content_hash(file) for file in files}


def _content_hash(file: str) -> str:
  return hashlib.blake2b(tf.io.gfile.GFile(file, "rb").read(), digest_size=10).hexdigest()
