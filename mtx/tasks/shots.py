"""Few-shot prompts: a task whose inputs begin with solved examples of the same task.

    mixture.sources = [@fewshot_prompts]
    fewshot_prompts.collection = @superni
    fewshot_prompts.k = 5
    fewshot_prompts.selector = 'bm25'

The examples come from one split of the task, its pool, and never from the split that is judged. One whose input is that
of the instance is never shown. How they are chosen (regimes of Yuan et al. 2023, arXiv 2308.01240):

- `random`: for every instance others, by a hash of its id;
- `fixed`: the same for all;
- `balanced`: by a hash, as many of every class as of any other, within one. Classes are the targets; where rows have
  options of their own, the positions of the targets among them;
- `bm25`: those whose inputs are nearest the instance's, the nearest of them last, next to the instance.
"""

import bisect
import functools
import itertools
import logging
import random
import string
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import gin
import numpy as np
import regex

from mtx.errors import UserError, did_you_mean
from mtx.tasks.task import Collection, Reading, Row, TextTask

SELECTORS = ("random", "fixed", "bm25", "balanced")
PARTS = ("heldout", "train")
K1, B = 1.5, 0.75  # Okapi BM25's

# An order of the pool for an instance: the first are shown. Given are its id and its input.
Order = Callable[[str, str], Iterator[int]]

logger = logging.getLogger(__name__)


@gin.configurable
def fewshot_prompts(
  collection: Collection | Callable[[], Collection] = gin.REQUIRED,
  *,
  k: int = 5,
  selector: str = "random",
  pool: str = "train",
  parts: Sequence[str] = ("heldout",),
  inputs_length: int | None = None,
  seed: int = 0,
  demonstration: str = "{inputs}\n{targets}",
  query: str = "{inputs}",
  separator: str = "\n\n",
) -> Collection:
  """The collection with few-shot prompts in its held-out tasks.

  Args:
    collection: a provider, or what it returns.
    parts: of "heldout" and "train". Training tasks need a pool other than "train", which they would lose.
    k, selector, pool, inputs_length, seed, demonstration, query, separator: see `shots`.

  Raises:
    UserError: see `shots`; or an unknown part, or one without tasks.
  """
  given = collection() if callable(collection) else collection
  parts = [parts] if isinstance(parts, str) else parts
  for part in parts:
    if part not in PARTS:
      raise UserError(f"fewshot_prompts.parts: {part!r} is not known", hint=did_you_mean(part, PARTS))
    if not getattr(given, part):
      raise UserError(
        f"fewshot_prompts.parts: {given.name} has no {part} tasks",
        hint=f"it has some of {next((other for other in PARTS if getattr(given, other)), 'neither kind')}",
      )
  if "train" in parts and pool == "train":
    raise UserError(
      "fewshot_prompts.pool is 'train': training tasks would have nothing left to train on",
      hint="give them another pool, for example 'validation', or leave 'train' out of fewshot_prompts.parts",
    )
  wrap = functools.partial(
    shots,
    k=k,
    selector=selector,
    pool=pool,
    inputs_length=inputs_length,
    seed=seed,
    demonstration=demonstration,
    query=query,
    separator=separator,
  )
  wrapped: dict[str, Any] = {part: tuple(map(wrap, getattr(given, part))) for part in parts}
  return replace(given, **wrapped)


def shots(
  task: TextTask,
  k: int,
  selector: str = "random",
  *,
  pool: str = "train",
  inputs_length: int | None = None,
  seed: int = 0,
  demonstration: str = "{inputs}\n{targets}",
  query: str = "{inputs}",
  separator: str = "\n\n",
) -> TextTask:
  """The task with `k` examples before every input, called `<task>_<k>shot_<selector>`; it has all splits but the pool.

  Args:
    task: its inputs and targets are text.
    k: examples in a prompt.
    selector: one of SELECTORS.
    pool: the split that examples are from.
    inputs_length: tokens of a prompt, EOS included, that it is kept to: examples are left out from its beginning, and a
      warning says in how many prompts of a split. An instance that is longer by itself stays whole here;
      `feed.overlong` rules it. None: no bound.
    seed: of what is chosen by hash.
    demonstration, query: how an example and the instance are written, with `{inputs}` and `{targets}` (the latter in
      examples only); braces are doubled.
    separator: between them.

  Raises:
    UserError: k below 1, an unknown selector, a task without the pool or without another split, a template with other
      fields or without `{inputs}`. From `rows`: fewer than k rows in the pool, rows that are not text, or a call
      for the pool itself.
  """
  if k < 1:
    raise UserError(f"shots.k is {k}", hint="it is a number of examples, at least 1")
  if selector not in SELECTORS:
    raise UserError(f"shots.selector {selector!r} is not known", hint=did_you_mean(selector, SELECTORS))
  if pool not in task.splits:
    raise UserError(
      f"task {task.name!r} has no split {pool!r} to take examples from", hint=f"it has {', '.join(task.splits)}"
    )
  splits = {split: count for split, count in task.splits.items() if split != pool}
  if not splits:
    raise UserError(
      f"task {task.name!r} has no split but {pool!r}, which its examples are from",
      hint="a prompt never shows examples of the split that is judged",
    )
  for name, template, fields in (
    ("demonstration", demonstration, {"inputs", "targets"}),
    ("query", query, {"inputs"}),
  ):
    check_template(f"shots.{name}", template, fields)
  rows = functools.partial(
    _rows,
    task=task,
    k=k,
    selector=selector,
    pool=pool,
    inputs_length=inputs_length,
    seed=seed,
    demonstration=demonstration,
    query=query,
    separator=separator,
  )
  return replace(task, name=f"{task.name}_{k}shot_{selector}", rows=rows, splits=splits)


def shows_examples(name: str) -> bool:
  """Whether a task of this name is one that `shots` has made."""
  return regex.search(rf"_\d+shot_({'|'.join(SELECTORS)})$", name) is not None


def tokens(text: str) -> list[str]:
  """Words, numbers and punctuation marks in lower case, for BM25.

  Identifiers are split where case or kind changes and at underscores: `readHTTPLine_2` is read, http, line, 2. In
  scripts that are written without spaces every character counts.
  """
  return [token.lower() for token in _TOKEN.findall(_CASE.sub(" ", text))]


_CASE = regex.compile(r"(?<=\p{Ll})(?=\p{Lu})|(?<=\p{Lu})(?=\p{Lu}\p{Ll})")
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_TOKEN = regex.compile(rf"(?V1){_UNSPACED}\p{{M}}*|(?:[\p{{L}}--{_UNSPACED}]\p{{M}}*)+|\p{{N}}+|[^\s\p{{L}}\p{{N}}_]")


def bm25(documents: Sequence[str]) -> Callable[[str], np.ndarray]:
  """query -> score of every document, float64, up to a constant factor.

  Okapi BM25 with k1 = 1.5 and b = 0.75; every token of the query counts, as often as it occurs there. The weight of a
  token in more than half of the documents, ln((N - n + 0.5) / (n + 0.5)) < 0, is 0.
  """
  corpus = [tokens(document) for document in documents]
  if not any(corpus):
    return lambda query: np.zeros(len(corpus))
  # "robertson" is the weight above with that floor. The other common library floors it at a share of the mean weight,
  # which is itself negative where most tokens are frequent: what matches then ranks last.
  index = _bm25s().BM25(k1=K1, b=B, method="robertson", dtype="float64")
  index.index(corpus, create_empty_token=False, show_progress=False)
  return lambda query: index.get_scores_from_ids(index.get_tokens_ids(tokens(query)))


def _bm25s():
  """The library, without the JAX that it would start, accelerators and all, in each process that reads rows."""
  if "bm25s" not in sys.modules:
    jax = sys.modules.get("jax")
    sys.modules["jax"] = None  # type: ignore[assignment]  # `import jax` fails, and bm25s uses numpy
    try:
      import bm25s  # noqa: F401
    finally:
      del sys.modules["jax"]
      if jax is not None:
        sys.modules["jax"] = jax
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets its own to DEBUG
  return sys.modules["bm25s"]


def check_template(name: str, template: str, fields: set[str]) -> None:
  """Raises UserError unless a template has these fields and no other.

  Args:
    name: of the template, for messages.
  """
  try:
    found = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
  except ValueError as error:
    raise UserError(f"{name} is {template!r}: {error}", hint="double braces that are meant as such") from error
  if found - fields:
    wrong = min(found - fields)
    raise UserError(f"{name} has a field {{{wrong}}}", hint=did_you_mean(wrong, fields))
  if fields - found:
    raise UserError(f"{name} is {template!r}: it has no {{{min(fields - found)}}}")


def _rows(
  split: str,
  reading: Reading,
  *,
  task: TextTask,
  k: int,
  selector: str,
  pool: str,
  inputs_length: int | None,
  seed: int,
  demonstration: str,
  query: str,
  separator: str,
) -> Iterator[Row]:
  """Rows of a split with prompts as inputs; see `shots`."""
  if split == pool:
    raise UserError(f"task {task.name!r}: split {split!r} is the pool of examples, it has no prompts")
  candidates = [_text(task, pool, row) for row in task.rows(pool, reading)]
  if len(candidates) < k:
    raise UserError(
      f"task {task.name!r}: split {pool!r} has {len(candidates)} rows, {k} examples are asked for", hint="lower `k`"
    )
  order = _order(selector, candidates, f"{seed} {task.name}")
  # Templates are filled by `format`, which leaves braces in what it fills in alone.
  solved = [demonstration.format(inputs=row["inputs"], targets=row["targets"]) for row in candidates]
  fewer = count = 0
  for position, row in enumerate(task.rows(split, reading)):
    asked = _text(task, split, row)["inputs"]
    identity = str(row.get("id", f"{split}-{position}"))
    others = (i for i in order(identity, asked) if candidates[i]["inputs"].strip() != asked.strip())
    chosen = [solved[i] for i in itertools.islice(others, k)][::-1]
    ask = query.format(inputs=asked)
    prompts = [separator.join([*chosen[start:], ask]) for start in range(len(chosen) + 1)]
    kept = 0
    if inputs_length is not None:
      kept = bisect.bisect_left(prompts[:-1], True, key=lambda prompt: reading.count(prompt) < inputs_length)
    count += 1
    fewer += len(chosen) - kept < k
    yield {**row, "inputs": prompts[kept]}
  if fewer:
    logger.warning(
      "%s_%dshot_%s %s: %d of %d prompts have fewer than %d examples%s",
      task.name,
      k,
      selector,
      split,
      fewer,
      count,
      k,
      f", to keep to {inputs_length} tokens" if inputs_length is not None else "",
    )


def _text(task: TextTask, split: str, row: Row) -> Row:
  if not isinstance(row.get("inputs"), str) or not isinstance(row.get("targets"), str):
    what = "turns" if "turns" in row else "token ids"
    raise UserError(
      f"task {task.name!r}: rows of split {split!r} are {what}", hint="few-shot prompts are made of texts"
    )
  return row


def _order(selector: str, candidates: Sequence[Row], seed: str) -> Order:
  """The selector's order of the pool; the first is nearest the instance."""
  if selector == "bm25":
    scores = bm25([row["inputs"] for row in candidates])
    return lambda identity, asked: iter(np.argsort(-scores(asked), kind="stable").tolist())
  if selector == "fixed":
    always = random.Random(f"{seed} fixed").sample(range(len(candidates)), len(candidates))
    return lambda identity, asked: iter(always)
  classes = _classes(candidates) if selector == "balanced" else [list(range(len(candidates)))]
  return lambda identity, asked: _dealt(classes, random.Random(f"{seed} {selector} {identity}"))


def _classes(candidates: Sequence[Row]) -> list[list[int]]:
  """Positions of the rows of each class."""
  own = len({tuple(row.get("options", ())) for row in candidates}) > 1
  classes: dict[Any, list[int]] = {}
  for position, row in enumerate(candidates):
    key = row["options"].index(row["targets"]) if own and row["targets"] in row.get("options", ()) else row["targets"]
    classes.setdefault(key, []).append(position)
  return list(classes.values())


def _dealt(classes: Sequence[Sequence[int]], rng: random.Random) -> Iterator[int]:
  """Positions in random order, one of each class in turn; the order of the classes changes with every turn."""
  left = [_shuffled(members, rng) for members in classes]
  while left:
    rng.shuffle(left)
    remaining = []
    for members in left:
      for position in members:
        yield position
        remaining.append(members)
        break
    left = remaining


def _shuffled(members: Sequence[int], rng: random.Random) -> Iterator[int]:
  """The members in random order, at a cost for those that are taken only (Fisher and Yates)."""
  moved: dict[int, int] = {}
  for last in range(len(members) - 1, -1, -1):
    taken = rng.randint(0, last)
    yield members[moved.get(taken, taken)]
    moved[taken] = moved.get(last, last)
