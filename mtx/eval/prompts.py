"""Cached tasks asked in other words, and with solved examples before them: a protocol's prompts, made as they are used.

What `mtx.tasks.shots` does to tasks as text before they are cached, this does to what lies in a cache, so that a grid
of shots, selectors and prompts needs no cache for each.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from mtx.data.cache import CachedSplit, CachedTask, Example
from mtx.data.vocabulary import Vocabulary
from mtx.errors import UserError
from mtx.eval.evaluate import judged_split, scored_examples
from mtx.tasks.encode import encoded
from mtx.tasks.shots import check_template, shots
from mtx.tasks.task import Reading, Row, TextTask


@dataclass(frozen=True)
class Prompt:
  """How an instance and a solved example are written, with `{inputs}` and `{targets}`; braces are doubled.

  Raises:
    UserError: a template with other fields, or without these.
  """

  query: str = "{inputs}"
  demonstration: str = "{inputs}\n{targets}"
  separator: str = "\n\n"

  def __post_init__(self):
    check_template("protocol.prompts: query", self.query, {"inputs"})
    check_template("protocol.prompts: demonstration", self.demonstration, {"inputs", "targets"})

  @classmethod
  def of(cls, written: "str | Mapping[str, str]") -> "Prompt":
    """A query, whose solved examples have the targets on the next line; or all fields by name."""
    if isinstance(written, str):
      return cls(written, f"{written}\n{{targets}}")
    try:
      return cls(**written)
    except TypeError:
      hint = "a text with {inputs}, or a mapping of query, demonstration and separator"
      raise UserError(f"binding `protocol.prompts`: {written!r} is no prompt.", hint=hint) from None


class Asked(CachedSplit):
  """Examples that a prompt was made of, in place of a split's own."""

  def __init__(self, examples: list[Example]):
    self._examples = examples

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int) -> Example:
    return self._examples[index]


def asked(
  task: CachedTask,
  prompt: Prompt,
  vocabulary: Vocabulary,
  limit: int,
  *,
  k: int = 0,
  selector: str = "random",
  pool: str = "train",
  pool_examples: int | None = None,
  inputs_length: int | None = None,
  seed: int = 0,
) -> list[Example]:
  """The first `limit` examples of the split that a task is judged on, as a model is asked.

  Without shots and in the task's own words they are the cached ones. Else a prompt's text is made and encoded; ids,
  references and options stay.

  Args:
    k, selector, pool, inputs_length, seed: see `mtx.tasks.shots.shots`; 0 shots use none of them.
    pool_examples: of the pool, the first ones; None: all.

  Raises:
    UserError: see `mtx.tasks.shots.shots`; or the pool is the split that is judged, or a task that is no text.
  """
  judged = judged_split(task)
  if not k and prompt.query == Prompt.query:
    return scored_examples(task, limit)
  limits = {judged: limit} if pool_examples is None else {judged: limit, pool: pool_examples}
  text = as_text(task, vocabulary, limits)
  if k:
    check_pool(task, pool)
    text = shots(
      text,
      k,
      selector,
      pool=pool,
      inputs_length=inputs_length,
      seed=seed,
      demonstration=prompt.demonstration,
      query=prompt.query,
      separator=prompt.separator,
    )
  else:
    text = TextTask(task.name, task.category, partial(_worded, task=text, query=prompt.query), text.splits)
  reading = Reading(vocabulary.encode, vocabulary.size, vocabulary.sentinels)
  return list(encoded(text, judged, reading, vocabulary.eos_id, writing=vocabulary.writing))


def reworded(example: Example, prompt: Prompt, vocabulary: Vocabulary, task: str) -> Example:
  """An example to learn from, its inputs written as `prompt` writes a query."""
  if prompt.query == Prompt.query:
    return example
  row = _row(example, vocabulary, task)
  worded = TextTask(task, "", partial(_one, row={**row, "inputs": prompt.query.format(inputs=row["inputs"])}), {"": 1})
  reading = Reading(vocabulary.encode, vocabulary.size, vocabulary.sentinels)
  (made,) = encoded(worded, "", reading, vocabulary.eos_id, writing=vocabulary.writing)
  return {**made, "targets": example["targets"]}


def check_pool(task: CachedTask, pool: str) -> None:
  """Raises UserError unless a task has a split of shots that it is not judged on."""
  judged = judged_split(task)
  others = [split for split in task.splits if split != judged]
  hint = f"it has {', '.join(others)}" if others else f"it has {judged} alone: give it a split to take shots from"
  if pool == judged or (pool in task.splits and task.splits[pool].folder == task.splits[judged].folder):
    raise UserError(f"binding `protocol.pool` = {pool!r}: task {task.name} is judged on that split.", hint=hint)
  if pool not in task.splits:
    raise UserError(f"binding `protocol.pool`: task {task.name} has no split {pool!r}.", hint=hint)


def as_text(task: CachedTask, vocabulary: Vocabulary, limits: Mapping[str, int]) -> TextTask:
  """A cached task as text again.

  Args:
    limits: of splits of which only the first examples are read.
  """
  splits = {name: min(len(split), limits.get(name, len(split))) for name, split in task.splits.items()}
  rows = partial(_rows, task=task, vocabulary=vocabulary, splits=splits)
  return TextTask(task.name, task.category, rows, splits, task.metrics)


def _rows(
  split: str, reading: Reading, *, task: CachedTask, vocabulary: Vocabulary, splits: Mapping[str, int]
) -> Iterator[Row]:
  examples = task.splits[split]
  yield from (_row(examples[i], vocabulary, task.name) for i in range(splits[split]))


def _row(example: Example, vocabulary: Vocabulary, task: str) -> dict[str, Any]:
  if "weights" in example:
    raise UserError(
      f"task {task}: example {example['id']!r} is a conversation, and prompts are made of texts.",
      hint="leave it out with `protocol.tasks`, or judge it zero-shot in its own words",
    )
  options = {"options": example["options"]} if example.get("options") else {}
  fixed = {"id": example["id"], "inputs": example["text"], "references": example["references"]}
  return {**fixed, "targets": _target(example, vocabulary), **options}


def _target(example: Example, vocabulary: Vocabulary) -> str:
  """The reference that the targets are the tokens of: decoding may lose spaces. Without one, what they decode to."""
  opens = [] if vocabulary.opens_id is None else [vocabulary.opens_id]
  tokens = list(map(int, example["targets"]))
  for reference in example["references"]:
    if [*opens, *vocabulary.encode(reference), vocabulary.eos_id] == tokens:
      return reference
  return vocabulary.decode(tokens)


def _worded(split: str, reading: Reading, *, task: TextTask, query: str) -> Iterator[Row]:
  for row in task.rows(split, reading):
    yield {**row, "inputs": query.format(inputs=row["inputs"])}


def _one(split: str, reading: Reading, *, row: Row) -> Iterator[Row]:
  yield row
