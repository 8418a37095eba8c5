"""A procedural family of text-to-text tasks over lists, strings, numbers and lookups, with an exact oracle.

It ships as code, so a first run needs no data. `mtx.tasks.procedural_skills` holds what is computed; here it
becomes prompts (`reverse list : 3 1 4`), SeqIO Tasks and two Mixtures.
"""

import json
from collections.abc import Callable, Iterator

import gin

from mtx.errors import UserError, did_you_mean
from mtx.tasks.procedural_skills import (
  DIGITS,
  DOMAINS,
  LETTERS,
  NOTHING,
  SKILLS,
  TASKS,
  Procedure,
  TooFewInputs,
  draw,
)
from mtx.tasks.source import Source, seqio, tf
from mtx.tasks.vocabularies import trained

Draw = Callable[[str, dict[str, int], int], Iterator[tuple[str, list[str], list[str]]]]
TRAIN = "procedural_train"
HELDOUT = "procedural_heldout"
NEW = "new"  # names every held-out task in the opaque style; in no training prompt

CODES = {name: f"t{i}" for i, name in enumerate(n for n, task in TASKS.items() if task.split == "train")}

# What an instruction says of its task, before the name of its domain.
STYLES: dict[str, Callable[[str, Procedure], str]] = {
  "named": lambda name, task: " then ".join(task.skills),
  "opaque": lambda name, task: CODES.get(name, NEW),
}

WORDS = tuple(
  sorted({*DIGITS, *LETTERS, *LETTERS.upper(), *DOMAINS, *SKILLS, *CODES.values()}
         | {",", ":", "?", NOTHING, NEW, "then", "odd", "even"})
)  # fmt: skip


def examples_of(
  name: str, counts: dict[str, int], *, seed: int = 0, instruction: str = "named", generate: Draw = draw
) -> dict[str, list[dict[str, str]]]:
  """Split -> examples with `inputs`, `targets`, `id` and `references` (a JSON list of the one right answer).

  Args:
    name: of a task in `procedural_skills.TASKS`.
    counts: split -> examples; no input occurs twice, in one split or two.
    seed: another seed draws other inputs.
    instruction: of `STYLES`.
    generate: yields (split, input tokens, target tokens) from (name, counts, seed).

  Raises:
    UserError: the task's domain has fewer distinct inputs than asked for.
  """
  task = TASKS[name]
  prompt = f"{STYLES[instruction](name, task)} {task.domain} :"
  splits: dict[str, list[dict[str, str]]] = {split: [] for split in counts}
  try:
    for split, tokens, target in generate(name, counts, seed):
      answer = " ".join(target)
      splits[split].append({
        "inputs": " ".join([prompt, *tokens]),
        "targets": answer,
        "id": f"{name}/{split}/{len(splits[split])}",
        "references": json.dumps([answer]),
      })  # fmt: skip
  except TooFewInputs as error:
    raise UserError(
      f"procedural: task {name} has some {error.args[0]} inputs, {sum(counts.values())} were asked for",
      hint="lower `procedural.examples`",
    ) from None
  return splits


@gin.configurable
def procedural(
  *,
  examples: int = 2000,
  validation: int = 64,
  test: int = 64,
  shots: int = 64,
  heldout_test: int = 100,
  seed: int = 0,
  instruction: str = "named",
  heldout_instruction: str = "opaque",
) -> Source:
  """Registers the family's Tasks and the Mixtures `procedural_train` and `procedural_heldout`.

  Calling it again replaces them, so other arguments take effect. Test examples depend on `seed` and their own
  number only: more training examples leave them as they were.

  Args:
    examples: training examples a training task.
    validation: validation examples a task.
    test: test examples a training task.
    shots: examples a held-out task to adapt from, its split `train`.
    heldout_test: test examples a held-out task.
    seed: of the inputs drawn.
    instruction: "named" writes a training task's skills into its prompt, "opaque" a code word of its own.
    heldout_instruction: likewise for held-out tasks; "opaque" is one word for all, never seen in training.

  Raises:
    UserError: an unknown style, a count below 1, or more examples than a task has inputs.
  """
  sizes = {
    "examples": examples, "validation": validation, "test": test, "shots": shots, "heldout_test": heldout_test
  }  # fmt: skip
  for argument, size in sizes.items():
    if size < 1:
      raise UserError(f"procedural.{argument} = {size}", hint="it is a number of examples, at least 1")
  styles = {"train": instruction, "heldout": heldout_instruction}
  for argument, style in zip(("instruction", "heldout_instruction"), styles.values(), strict=True):
    if style not in STYLES:
      raise UserError(f"procedural.{argument} = {style!r}", hint=did_you_mean(style, STYLES))

  vocabulary = trained(WORDS, size=len(WORDS) + 3, model_type="word")  # pad, eos, unk
  features = {
    name: seqio.Feature(vocabulary=vocabulary, add_eos=True, dtype=tf.int32) for name in ("inputs", "targets")
  }
  counts = {
    "train": {"test": test, "validation": validation, "train": examples},
    "heldout": {"test": heldout_test, "validation": validation, "train": shots},
  }
  for name, task in TASKS.items():
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add(
      name,
      source=_source(name, counts[task.split], seed, styles[task.split]),
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


def _source(name: str, counts: dict[str, int], seed: int, instruction: str) -> seqio.FunctionDataSource:
  generate = draw  # bound here, so that the cache's fingerprint covers the code of the skills

  def dataset(split: str, shuffle_files: bool = False) -> tf.data.Dataset:
    rows = examples_of(name, counts, seed=seed, instruction=instruction, generate=generate)[split]
    return tf.data.Dataset.from_tensor_slices({key: [row[key] for row in rows] for key in rows[0]})

  return seqio.FunctionDataSource(dataset, splits=tuple(counts), num_input_examples=counts)
