"""The building of a cache beside its tokenizer alone: what reading, checking and writing cost."""

import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from sentencepiece import SentencePieceProcessor

from mtx.bench.clock import interleaved
from mtx.bench.examples import INPUTS, missing, source_of
from mtx.bench.row import Row, Target, compared, skipped
from mtx.data.cache import CachedMixture
from mtx.tasks.task import Reading

if TYPE_CHECKING:  # it brings TensorFlow
  from mtx.tasks.source import Source

NAME, UNIT, TARGET = "build", "tokens/s", Target(0.8)


def build(*, superni: Path | None, repeats: int = 5) -> Row:
  """Tokens/s of `build_mixture` on an empty cache. Peer: SentencePiece's own `encode` of the same texts, in memory.

  Both run in one process. Opening the source, where files are checked and the vocabulary is trained, is no part of it.
  Every build loads the vocabulary anew and knows no text from the one before.
  """
  if superni is None or missing(superni):
    return skipped(NAME, UNIT, TARGET, missing(superni))
  source = source_of(superni)
  with tempfile.TemporaryDirectory() as folder:
    # Every build gets a folder of its own, and they are removed in the end: file systems avoid, at a cost, the places
    # of files that were removed just now.
    run, built = _builder(source, Path(folder))
    run()
    cached = built[0]
    texts = _texts(source, cached)
    pieces = SentencePieceProcessor(model_file=str(cached.vocabulary.path))

    def alone() -> None:
      for text in texts:
        pieces.encode(text)

    seconds = {name: median(runs) for name, runs in interleaved({"build": run, "alone": alone}, repeats).items()}
    manifests = [split.manifest for task in cached.tasks for split in task.splits.values()]
  tokens = sum(sum(manifest["tokens"].values()) for manifest in manifests)
  examples = sum(manifest["count"] for manifest in manifests)
  micros = {name: 1e6 * each / examples for name, each in seconds.items()}
  return compared(
    NAME,
    UNIT,
    tokens / seconds["build"],
    tokens / seconds["alone"],
    TARGET,
    f"Super-NaturalInstructions, {len(manifests)} splits of {len(cached.tasks)} tasks, {examples} examples of "
    f"{tokens / examples:.0f} tokens, inputs of at most {INPUTS}; peer: SentencePiece alone over the same texts in "
    f"memory; one process each; medians of {repeats} interleaved runs ({micros['build']:.0f} and {micros['alone']:.0f} "
    "us an example)",
  )


def _builder(source: "Source", folder: Path) -> tuple[Callable[[], None], list[CachedMixture]]:
  """(what builds the training mixture into an empty folder, what it has built)."""
  from mtx.data.build import build_mixture

  numbers, built = count(), []

  def run() -> None:
    cache = folder / str(next(numbers))
    built.append(build_mixture(source, source.train, cache, log=lambda line: None, workers=1))

  return run, built


def _texts(source: "Source", cached: CachedMixture) -> list[str]:
  """Inputs and targets of every row that was built, in the order of the build."""
  v = cached.vocabulary
  return [
    row[side]
    for task in cached.tasks
    for split in task.splits
    for row in source.texts[task.name].rows(split, Reading(v.encode, v.size, v.extra_ids))
    for side in ("inputs", "targets")
  ]
