"""A procedural family of text-to-text tasks over lists, strings, numbers and lookups, with an exact oracle.

It ships as code, so a first run needs no data. `mtx.tasks.procedural_skills` holds what is computed; here it
becomes prompts (`reverse list : 3 1 4`), SeqIO Tasks and two Mixtures.
"""

import json
from collections.abc import Callable, Iterator

import gin

from mtx.errors import UserError
from mtx.tasks.procedural_skills import (
  DIGITS,
  DOMAINS,
  LETTERS,
  NOTHING,
  SKILLS,
  TASKS,
  TooFewInputs,
  draw,
)
from mtx.tasks.source import Source, seqio, tf
from mtx.tasks.vocabularies import trained

Draw = Callable[[str, dict[str, int], int], Iterator[tuple[str, list[str], list[str]]]]
TRAIN = "procedural_train"
HELDOUT = "procedural_heldout"
NEW = "new"  # instead of the skills, where a prompt hides what is asked: all held-out prompts do

WORDS = tuple(
  sorted({*DIGITS, *LETTERS, *LETTERS.upper(), *DOMAINS, *SKILLS}
         | {",", ":", "?", NOTHING, NEW, "then", "odd", "even"})
)  # fmt: skip


def examples_of(
  name: str, counts: dict[str, int], *, seed: int = 0, hidden: float = 0.0, generate: Draw = draw
) -> dict[str, list[dict[str, str]]]:
  """Split -> examples with `inputs`, `targets`, `id` and `references` (a JSON list of the one right answer).

  Args:
    name: of a task in `procedural_skills.TASKS`.
    counts: split -> examples; no input occurs twice, in one split or two.
    seed: another seed draws other inputs.
    hidden: share of prompts, evenly spread, that say `new list :` instead of `sort then reverse list :`.
    generate: yields (split, input tokens, target tokens) from (name, counts, seed).

  Raises:
    UserError: the task's domain has fewer distinct inputs than asked for.
  """
  task = TASKS[name]
  named = " then ".join(task.skills)
  splits: dict[str, list[dict[str, str]]] = {split: [] for split in counts}
  try:
    for split, tokens, target in generate(name, counts, seed):
      answer, i = " ".join(target), len(splits[split])
      instruction = NEW if int((i + 1) * hidden) > int(i * hidden) else named
      splits[split].append({
        "inputs": " ".join([instruction, task.domain, ":", *tokens]),
        "targets": answer,
        "id": f"{name}/{split}/{i}",
        "references": json.dumps([answer]),
      })  # fmt: skip
  except TooFewInputs as error:
    raise UserError(
      f"procedural: task {name} has some {error.args[0]} inputs, {sum(counts.values())} were asked for",
      hint="lower `procedural.examples`",
    ) from None
  return splits


@gin.configurable(allowlist=["examples", "hidden", "seed"])
def procedural(
  *,
  examples: int = 2000,
  hidden: float = 0.5,
  seed: int = 0,
  validation: int = 16,
  test: int = 64,
  shots: int = 64,
  heldout_test: int = 100,
) -> Source:
  """Registers the family's Tasks and the Mixtures `procedural_train` and `procedural_heldout`.

  Calling it again replaces them, so other arguments take effect. Test examples depend on `seed` and their own
  number only: more training examples leave them as they were.

  Args:
    examples: training examples a training task.
    hidden: share of a training task's prompts, in every split, that do not say what is asked. Those only a model
      that is told the task otherwise, by its router, can answer. Held-out prompts never say it.
    seed: of the inputs drawn.
    validation, test: examples a training task.
    shots: examples a held-out task to adapt from, its split `train`.
    heldout_test: test examples a held-out task.

  Raises:
    UserError: a share outside [0, 1], a count below 1, or more examples than a task has inputs.
  """
  sizes = {
    "examples": examples, "validation": validation, "test": test, "shots": shots, "heldout_test": heldout_test
  }  # fmt: skip
  for argument, size in sizes.items():
    if size < 1:
      raise UserError(f"procedural.{argument} = {size}", hint="it is a number of examples, at least 1")
  if not 0 <= hidden <= 1:
    raise UserError(f"procedural.hidden = {hidden}", hint="it is a share, from 0 to 1")
  shares = {"train": hidden, "heldout": 1.0}

  vocabulary = trained(WORDS, size=len(WORDS) + 3, model_type="word")  # pad, eos, unk
  features = {
    name: seqio.Feature(vocabulary=vocabulary, add_eos=True, dtype=tf.int32) for name in ("inputs", "targets")
  }
  counts = {
    "train": {"test": test, "validation": validation, "train": examples},
    "heldout": {"test": heldout_test, "train": shots},
  }
  for name, task in TASKS.items():
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
      name,
      source=_source(name, counts[task.split], seed, shares[task.split]),
      preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
      output_features=features,
    )
  for mixture, split in ((TRAIN, "train"), (HELDOUT, "heldout")):
    seqio.MixtureRegistry.remove(mixture)
    members = [name for name, task in TASKS.items() if task.split == split]
    seqio.MixtureRegistry.add(mixture, members, default_rate=1.0)
  return Source(
    name="procedural",
    vocabulary=vocabulary,
    train=TRAIN,
    heldout=HELDOUT,
    categories={name: task.category for name, task in TASKS.items()},
    metrics={name: ("exact_match",) for name in TASKS},
  )


def _source(name: str, counts: dict[str, int], seed: int, hidden: float) -> seqio.FunctionDataSource:
  generate = draw  # bound here, so that the cache's fingerprint covers the code of the skills

  def dataset(split: str, shuffle_files: bool = False) -> tf.data.Dataset:
    rows = examples_of(name, counts, seed=seed, hidden=hidden, generate=generate)[split]
    return tf.data.Dataset.from_tensor_slices({key: [row[key] for row in rows] for key in rows[0]})

  return seqio.FunctionDataSource(dataset, splits=tuple(counts), num_input_examples=counts)
