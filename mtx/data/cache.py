"""Tokenised examples on disk: read by index, without TensorFlow, under a fingerprint of what made them.

    <cache>/<mixture>.json                    index: tasks, rates, vocabulary, folder of every split
    <cache>/sources/<source>.json             the names of its mixtures by role, `train` and `heldout`
    <cache>/vocabularies/<hash>.model
    <cache>/tasks/<task>/<split>-<fingerprint>/
        examples-<shard>.array_record         one msgpack record an example, any of them in microseconds; their lengths
        shard-<shard>.json                    of several shards, its part of the manifest: what a build goes on from
        manifest.json                         fingerprint, its ingredients, counts, size and hash of every file

Example i lies in shard i % shards, so several workers can write one split and its order is that of one. Two settings
of one task have two folders, so neither run disturbs the other. A split of one shard appears by one rename. Several
shards appear in `<split>-<fingerprint>.parts-<shards>`, each by one rename, and the folder by one rename when all are
there: a build that was killed goes on, and two builders at once do no harm.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mtx.data.splits import (
  FORMAT,
  OPEN_FILES,
  CachedSplit,
  CachedSubset,
  Example,
  digest,
  finish_split,
  replace,
  write_shard,
  write_split,
)
from mtx.data.vocabulary import Vocabulary
from mtx.errors import UserError, did_you_mean

__all__ = [
  "FORMAT", "OPEN_FILES", "CachedMixture", "CachedSplit", "CachedSubset", "CachedTask", "Example", "digest",
  "finish_split", "keep_vocabulary", "open_mixture", "open_source", "sources", "write_index", "write_shard",
  "write_source", "write_split",
]  # fmt: skip


@dataclass(frozen=True)
class CachedTask:
  """One task's examples, and what evaluation must know of it. `fingerprint` covers all its splits."""

  name: str
  category: str
  metrics: tuple[str, ...]
  fingerprint: str
  splits: Mapping[str, CachedSplit]


@dataclass(frozen=True)
class CachedMixture:
  """Tasks to draw from. A task's id in a batch is its index in `tasks`; `rates` sum to 1."""

  name: str
  tasks: tuple[CachedTask, ...]
  rates: tuple[float, ...]
  vocabulary: Vocabulary

  @cached_property
  def fingerprint(self) -> str:
    """Of everything a feed reads: the tasks in order, their examples and rates."""
    return digest([[task.name, task.fingerprint, rate] for task, rate in zip(self.tasks, self.rates, strict=True)])


def keep_vocabulary(cache_dir: Path, vocabulary: Vocabulary) -> Vocabulary:
  """The same vocabulary with its file inside the cache, so that the cache can be moved to another machine."""
  if vocabulary.path is None:
    return vocabulary
  target = cache_dir / "vocabularies" / f"{vocabulary.fingerprint}.model"
  content = Path(vocabulary.path).read_bytes()
  if not target.exists() or target.read_bytes() != content:  # a damaged file is mended
    replace(target, content)
  return dataclasses.replace(vocabulary, path=target)


def write_index(cache_dir: Path, mixture: CachedMixture) -> None:
  """Replaces `<cache_dir>/<mixture>.json`. Paths in it are relative to `cache_dir`."""
  tasks = [
    {
      "name": task.name,
      "category": task.category,
      "metrics": list(task.metrics),
      "fingerprint": task.fingerprint,
      "splits": {name: split.folder.relative_to(cache_dir).as_posix() for name, split in task.splits.items()},
      "rows": {name: list(split.rows) for name, split in task.splits.items() if isinstance(split, CachedSubset)},
    }
    for task in mixture.tasks
  ]
  index = {
    "format": FORMAT,
    "name": mixture.name,
    "vocabulary": mixture.vocabulary.to_json(cache_dir),
    "rates": list(mixture.rates),
    "tasks": tasks,
  }
  replace(cache_dir / f"{mixture.name}.json", json.dumps(index, indent=1).encode())


def open_mixture(cache_dir: str | Path, name: str) -> CachedMixture:
  """The mixture that was last built under `name`. Reads the index only; examples are read when asked for.

  Raises:
    UserError: no such mixture (lists near names), an index of another format, or a vocabulary file that is
      gone.
  """
  root = Path(cache_dir)
  path = root / f"{name}.json"
  if not path.is_file():
    hint = did_you_mean(name, (p.stem for p in root.glob("*.json")))
    raise UserError(f"no mixture {name!r} in the cache {root}", hint=hint)
  try:
    index = json.loads(path.read_text(encoding="utf-8"))
    version = index["format"]
    if version != FORMAT:
      raise UserError(f"{path} has cache format {version}, this mtx reads {FORMAT}", hint="build the cache again")
    tasks = tuple(
      CachedTask(
        name=task["name"],
        category=task["category"],
        metrics=tuple(task["metrics"]),
        fingerprint=task["fingerprint"],
        splits={
          split: CachedSubset(root / folder, task["rows"][split])
          if split in task["rows"]
          else CachedSplit(root / folder)
          for split, folder in task["splits"].items()
        },
      )
      for task in index["tasks"]
    )
    vocabulary = Vocabulary.from_json(index["vocabulary"], root)
    return CachedMixture(index["name"], tasks, tuple(index["rates"]), vocabulary)
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{path} is not the index of a cached mixture", hint="build the cache again") from error


def _split(folder: Path, rows: list[int] | None) -> CachedSplit:
  return CachedSplit(folder) if rows is None else CachedSubset(folder, rows)


def write_source(cache_dir: Path, name: str, roles: Mapping[str, str]) -> None:
  """Keeps the names of a source's mixtures by role; with them the cache can be used where its source can not."""
  replace(_source_record(cache_dir, name), json.dumps(dict(roles)).encode())


def open_source(cache_dir: Path, name: str) -> dict[str, str]:
  """Role -> mixture of a source whose tasks were cached.

  Raises:
    UserError: no such source (near names are listed), or a record that is damaged.
  """
  path = _source_record(cache_dir, name)
  if not path.is_file():
    raise UserError(f"source {name!r} is not in the cache {cache_dir}.", hint=did_you_mean(name, sources(cache_dir)))
  try:
    return dict(json.loads(path.read_text(encoding="utf-8")))
  except (ValueError, TypeError) as error:
    raise UserError(f"{path} is damaged: {error}", hint="build the cache again") from error


def sources(cache_dir: Path) -> list[str]:
  """Names of the sources whose tasks were cached."""
  return sorted(path.stem for path in _source_record(cache_dir, "").parent.glob("*.json"))


def _source_record(cache_dir: Path, name: str) -> Path:
  return cache_dir / "sources" / f"{name}.json"
