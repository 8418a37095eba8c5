"""The parts that the building of a cache falls into, for any process: no TensorFlow, no SeqIO."""

import math
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtx.data.cache import Example, digest, write_shard, write_split
from mtx.data.vocabulary import Vocabulary
from mtx.tasks.encode import encoded
from mtx.tasks.task import Reading, TextTask

# Encoded here in 5 s at some 100 us each. A worker starts for 3 s, since it imports what the command did; two cores are
# even at 66,000, sixteen at 35,000.
FEW_EXAMPLES = 50_000


@dataclass(frozen=True)
class Job:
  """One shard of one split of a task that is text, to be encoded and written in any process.

  Attributes:
    ingredients: of the split's fingerprint; a split of one shard is whole when its job is done, with them in it.
  """

  task: TextTask
  split: str
  shard: int
  shards: int
  vocabulary: Vocabulary
  folder: Path
  bad_rows: int
  ingredients: Any = None

  def __call__(self) -> "Job":
    v = self.vocabulary
    reading = Reading(v.encode_array, v.size, v.sentinels, self.bad_rows)
    rows = encoded(self.task, self.split, reading, v.eos_id, self.shard, self.shards, writing=v.writing)
    # Training never reads the text of what came as ids, and to decode takes as long as to encode.
    examples = rows if self.split == "train" else with_text(rows, v)
    if self.shards > 1:
      write_shard(self.folder, self.shard, self.shards, examples, reading.bad)
    else:
      of = {"fingerprint": digest(self.ingredients), "ingredients": self.ingredients}
      write_split(self.folder, examples, **of, left_out=reading.bad)
    return self


def run_here(jobs: list[Job], workers: int | None) -> Iterator[Job]:
  """Does the jobs, each job when a process is free; jobs that are done stay done when another fails."""
  groups = _groups(jobs)
  few = sum(map(_examples, groups)) < FEW_EXAMPLES
  count = min(len(groups), workers if workers is not None else 1 if few else os.cpu_count() or 1)
  if count <= 1:
    for job in jobs:
      yield job()
    return
  # Not forked: TensorFlow's and JAX's threads would not survive it.
  with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
    running = {pool.submit(_do, group): group for group in sorted(groups, key=_examples, reverse=True)}
    try:
      for future in as_completed(running):
        future.result()
        yield from running[future]
    except BaseException:
      pool.shutdown(wait=True, cancel_futures=True)
      raise


def _groups(jobs: Iterable[Job]) -> list[list[Job]]:
  """Jobs that one process does one after the other: the splits of a task often come out of one file, read once."""
  groups: dict[Any, list[Job]] = {}
  for job in jobs:
    key = job.task.name if job.shards == 1 else (job.task.name, job.split, job.shard)
    groups.setdefault(key, []).append(job)
  return list(groups.values())


def _examples(group: list[Job]) -> float:
  """How many are to be encoded; infinitely many where only reading can tell."""
  counts = ((job.task.splits[job.split], job.shards) for job in group)
  return sum(math.inf if count is None else count / shards for count, shards in counts)


def _do(group: list[Job]) -> None:
  for job in group:
    job()


def with_text(examples: Iterable[Example], vocabulary: Vocabulary) -> Iterator[Example]:
  """Examples that came as ids get their text too."""
  for example in examples:
    if not example["text"] and len(example["inputs"]):
      example["text"] = vocabulary.decode(example["inputs"])
    if not example["references"]:
      example["references"] = [vocabulary.decode(example["targets"])]
    yield example
