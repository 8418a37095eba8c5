"""Super-NaturalInstructions (Wang et al. 2022, arXiv 2204.07705), encoded as Tk-Instruct does.

Any checkout of the release will do: `tasks/*.json` and `splits/default/{train,test}_tasks.txt` are read. An
input is the task's definition, as many of its first positive examples as fit, and the instance (facts of
Tk-Instruct's src/ni_collator.py). Where Tk-Instruct draws at random, a hash of the instance's id decides: the
reference that is the training target, and which instances stay under a cap. Test tasks use their first 100
instances, as in the official protocol.
"""

import functools
import hashlib
import json
import logging
import re
import string
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gin

from mtx.errors import UserError, did_you_mean
from mtx.tasks.files import located, sought
from mtx.tasks.task import Collection, Reading, Row, TextTask, text_hash

METRICS = ("rouge_l", "exact_match_normalized", "exact_match")
TEST_INSTANCES = 100  # max_num_instances_per_eval_task of the official scripts
VALIDATION_INSTANCES = 10  # of a train task, for its loss curve; never trained on
CHECKOUT_HINT = "give the folder of a Super-NaturalInstructions checkout, with tasks/ and splits/default/"
SKIP_HINT = 'skip bad files and instances with superni.on_bad = "skip"'
TASK_FIELDS = ("Definition", "Positive Examples", "Categories", "Instances")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskFile:
  """A task file that was read and found good. Its instances are read again when they are needed.

  Attributes:
    instances: how many are good.
    bad: positions of those that are left out.
    content: hash of the file.
  """

  path: Path
  category: str
  instances: int
  bad: tuple[int, ...]
  content: str

  @property
  def name(self) -> str:
    """A name that SeqIO accepts."""
    return re.sub(r"[^\w.]", "_", self.path.stem)

  def fingerprint(self) -> str:
    """What the cache's fingerprint must know of the file (see `mtx.data.build`)."""
    return f"{self.content}{list(self.bad) or ''}"


@gin.configurable
def superni(
  path: str = gin.REQUIRED,
  *,
  inputs_length: int = 1024,
  examples: int = 100,
  definition: bool = True,
  positives: int = 2,
  on_bad: str = "error",
) -> Collection:
  """Every task of a checkout: train tasks with splits "train" and "validation", test tasks with "test".

  Args:
    path: folder of the checkout.
    inputs_length: tokens of an input, EOS included, up to which positive examples are added. An input that is
      longer without any is left whole here; `feed.overlong` rules it.
    examples: most training instances of a task (the paper: 100).
    definition, positives: whether to give the definition, and how many positive examples.
    on_bad: "error" stops at the first bad file or instance, "skip" leaves it out and says how many.

  Raises:
    UserError: a folder that is missing or no checkout, a task file that is missing, is not JSON or lacks a
      field.
  """
  if on_bad not in ("error", "skip"):
    raise UserError(f"superni.on_bad is {on_bad!r}", hint='it is "error" or "skip"')
  root = located(path)
  train, test = (
    [file for file in (_file(each, on_bad) for each in _listed(root, split, on_bad)) if file]
    for split in ("train", "test")
  )
  if not train or not test:
    raise UserError(f"{root} has {len(train)} good train and {len(test)} good test tasks", hint="one of each is needed")

  def task(file: TaskFile, splits: Mapping[str, int]) -> TextTask:
    rows = functools.partial(
      _rows, file=file, inputs_length=inputs_length, examples=examples, definition=definition, positives=positives
    )
    return TextTask(file.name, file.category, rows, splits, METRICS)

  return Collection(
    "superni",
    tuple(
      task(file, dict(zip(("train", "validation"), _counts(file.instances, examples), strict=True))) for file in train
    ),
    tuple(task(file, {"test": _tests(file)}) for file in test),
    "Wang et al. 2022, arXiv 2204.07705; Apache-2.0, instances under their sources' licences",
    texts=functools.partial(_texts, train),
  )


def prompt(
  task: Mapping[str, Any],
  instance: str,
  *,
  count: Callable[[str], int],
  inputs_length: int,
  definition: bool = True,
  positives: int = 2,
) -> str:
  """The input text of one instance: definition, positive examples that fit, instance.

  Args:
    task: a task file's content.
    instance: its input.
    count: tokens of a text, without EOS.
    inputs_length: tokens up to which positive examples are added, EOS included.
  """
  head, shots = _task_parts(task, definition, positives)
  return _assembled(head, shots, instance, count, count, inputs_length)


def _task_parts(task: Mapping[str, Any], definition: bool, positives: int) -> tuple[str, list[str]]:
  """What all prompts of a task share: the definition, and each positive example."""
  head = ""
  if definition:
    given = task["Definition"]
    head = _closed("Definition: " + (given if isinstance(given, str) else given[0]).strip()) + "\n\n"
  shots = []
  for number, example in enumerate(task["Positive Examples"][:positives], 1):
    shot = f" Positive Example {number} -\n" + _closed(f"Input: {example['input'].strip()}") + "\n"
    shots.append(shot + _closed(f" Output: {example['output'].strip()}") + "\n\n")
  return head, shots


def _assembled(
  head: str,
  shots: Sequence[str],
  instance: str,
  count: Callable[[str], int],
  count_part: Callable[[str], int],
  inputs_length: int,
) -> str:
  """`count_part` may remember what it counted: parts come again, whole prompts do not."""
  ask = "Now complete the following example -\n" + _closed("Input: " + instance.strip()) + "\nOutput: "
  whole = "".join((head, *shots, ask))
  if count(whole) <= inputs_length - 1 - SLACK:
    return whole  # nearly always, and then its tokens are known already
  kept: list[str] = []
  for shot in shots:
    # Tk-Instruct measures the examples so far with a space between them, and then writes them without.
    if not _fits([head, " ".join(kept), shot, ask], count_part, inputs_length - 1):
      break
    kept.append(shot)
  return head + "".join(kept) + ask


def _closed(text: str) -> str:
  """Ends with punctuation."""
  return text if text[-1] in string.punctuation else text + "."


SLACK = 16  # tokens by which the sum over parts may differ from the count of the whole


def _fits(parts: Sequence[str], count: Callable[[str], int], limit: int) -> bool:
  """Whether the parts together have at most `limit` tokens.

  Parts meet at white space, where tokenisers split: their counts add up, nearly always exactly. So the whole,
  which is new for every instance, is counted only when the sum is near the limit.
  """
  total = sum(map(count, parts))
  if abs(total - limit) > SLACK:
    return total <= limit
  return count("".join(parts)) <= limit


def _counts(instances: int, examples: int) -> tuple[int, int]:
  """Training and validation instances of a train task; a small task keeps at least half for training."""
  validation = min(VALIDATION_INSTANCES, instances // 2)
  return min(examples, instances - validation), validation


def _tests(file: TaskFile) -> int:
  return sum(position not in file.bad for position in range(min(TEST_INSTANCES, file.instances + len(file.bad))))


def _rows(
  split: str,
  reading: Reading,
  *,
  file: TaskFile,
  inputs_length: int,
  examples: int,
  definition: bool,
  positives: int,
) -> Iterator[Row]:
  """One split of one task."""
  task, instances = _read(file, split == "test", examples)
  head, shots = _task_parts(task, definition, positives)
  count = functools.lru_cache(maxsize=64)(reading.count)
  for identity, instance in instances[split]:
    output = instance["output"]
    references = [output] if isinstance(output, str) else output
    text = _assembled(head, shots, instance["input"], reading.count, count, inputs_length)
    target = references[text_hash(identity) % len(references)] if len(references) > 1 else references[0]
    yield {"inputs": text, "targets": target, "id": identity, "references": references}


Instances = list[tuple[str, Mapping[str, Any]]]  # with their ids


@functools.lru_cache(maxsize=1)  # one split of a task is read after the other; most of the time goes into parsing
def _read(file: TaskFile, test: bool, examples: int) -> tuple[Mapping[str, Any], Mapping[str, Instances]]:
  """(a task file's content without its instances, the instances of every split)."""
  task = json.loads(file.path.read_bytes())
  instances = _instances(file, task, test, examples)
  del task["Instances"]  # most of them are of no split
  return task, instances


def _instances(file: TaskFile, task: Mapping[str, Any], test: bool, examples: int) -> Mapping[str, Instances]:
  """(id, instance) by split. Ids are the release's; one that is missing or taken is made up."""
  good: dict[str, Mapping[str, Any]] = {}
  bad = set(file.bad)
  for position, instance in enumerate(task["Instances"][:TEST_INSTANCES] if test else task["Instances"]):
    if position not in bad:
      identity = str(instance.get("id", ""))
      good[identity if identity and identity not in good else f"{file.name}-{position}"] = instance
  if test:
    return {"test": list(good.items())}
  # In the order of their hashes: which instances stay does not depend on how the file is sorted.
  ordered = sorted((text_hash("order" + identity), identity) for identity in good)
  train, validation = _counts(len(ordered), examples)
  chosen = [(identity, good[identity]) for _, identity in ordered[: validation + train]]
  return {"train": chosen[validation:], "validation": chosen[:validation]}


def _texts(files: Sequence[TaskFile], most: int = 20_000) -> Iterator[str]:
  """Text for a vocabulary: a prompt of every task, and as many of its instances as make `most` in all."""
  share = max(10, most // len(files))
  for file in files:
    task = json.loads(file.path.read_bytes())
    instances = _instances(file, task, False, share)["train"]
    yield prompt(task, instances[0][1]["input"], count=len, inputs_length=sys.maxsize)
    for _, instance in instances:
      yield instance["input"]
      yield from [instance["output"]] if isinstance(instance["output"], str) else instance["output"][:1]


def _listed(root: Path, split: str, on_bad: str) -> list[Path]:
  """Files of the tasks that a split names, in its order."""
  if not root.is_dir():
    hint = "\n  ".join(filter(None, (sought(root), CHECKOUT_HINT)))
    raise UserError(f"superni.path is {str(root)!r}: there is no such folder", hint=hint)
  if not next((root / "tasks").glob("*.json"), None):
    raise UserError(f"superni.path is {str(root)!r}: it holds no tasks/*.json", hint=CHECKOUT_HINT)
  listing = root / "splits" / "default" / f"{split}_tasks.txt"
  if not listing.is_file():
    raise UserError(f"superni.path is {str(root)!r}: it has no {listing.relative_to(root)}", hint=CHECKOUT_HINT)
  names = dict.fromkeys(line.strip() for line in listing.read_text(encoding="utf-8").splitlines() if line.strip())
  files = [root / "tasks" / f"{name}.json" for name in names]
  missing = [file for file in files if not file.is_file()]
  if missing and on_bad == "error":
    present = [file.stem for file in (root / "tasks").glob("*.json")]
    near = did_you_mean(missing[0].stem, present) if len(missing) == 1 else SKIP_HINT
    raise UserError(
      f"{listing}: task {missing[0].stem!r} has no file tasks/{missing[0].name}"
      + (f" (nor have {len(missing) - 1} others)" if len(missing) > 1 else ""),
      hint=near,
    )
  if missing:
    logger.warning("superni: %d tasks of %s have no file and are left out", len(missing), listing.name)
  return [file for file in files if file not in set(missing)]


def _file(path: Path, on_bad: str) -> TaskFile | None:
  """Reads and checks a task file; None when it is unusable and `on_bad` is "skip"."""
  content = path.read_bytes()
  shown = f"tasks/{path.name}"
  try:
    task = _parsed(content, shown)
    bad = tuple(position for position, instance in enumerate(task["Instances"]) if _missing(instance))
    if bad and on_bad == "error":
      field, instance = _missing(task["Instances"][bad[0]]), task["Instances"][bad[0]]
      fields = f"fields: {', '.join(instance)}" if isinstance(instance, dict) else f"it is {instance!r:.40}"
      raise UserError(f"{shown}: instance {bad[0]} has no field {field!r} ({fields})", hint=SKIP_HINT)
    if len(bad) == len(task["Instances"]):
      raise UserError(f"{shown}: none of its {len(bad)} instances is usable", hint=SKIP_HINT)
  except UserError as error:
    if on_bad == "error":
      raise
    logger.warning("superni: left out: %s", error.message)
    return None
  if bad:
    logger.warning("superni: %s: %d of %d instances left out", shown, len(bad), len(task["Instances"]))
  category = task["Categories"] if isinstance(task["Categories"], str) else task["Categories"][0]
  digest = hashlib.blake2b(content, digest_size=10).hexdigest()
  return TaskFile(path, category, len(task["Instances"]) - len(bad), bad, digest)


def _parsed(content: bytes, shown: str) -> dict[str, Any]:
  try:
    task = json.loads(content)
  except json.JSONDecodeError as error:
    raise UserError(
      f"{shown} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}", hint=SKIP_HINT
    ) from error
  except UnicodeDecodeError as error:
    raise UserError(f"{shown} is not UTF-8: byte {error.start}", hint=SKIP_HINT) from error
  if not isinstance(task, dict):
    raise UserError(f"{shown} holds a {type(task).__name__}, not an object", hint=SKIP_HINT)
  for field in TASK_FIELDS:
    if not task.get(field) and not (field == "Positive Examples" and field in task):
      state = "is empty" if field in task else f"is missing (fields: {', '.join(task)})"
      raise UserError(f"{shown}: field {field!r} {state}", hint=SKIP_HINT)
  for position, example in enumerate(task["Positive Examples"]):
    if lacks := _missing(example):
      raise UserError(f"{shown}: positive example {position} has no field {lacks!r}", hint=SKIP_HINT)
  return task


def _missing(instance: Any) -> str | None:
  """The first field that an instance lacks: text `input`, text or a list of texts `output`."""
  if not isinstance(instance, dict) or not isinstance(instance.get("input"), str):
    return "input"
  output = instance.get("output")
  usable = isinstance(output, str) or (
    isinstance(output, list) and output and all(isinstance(reference, str) for reference in output)
  )
  return None if usable else "output"
