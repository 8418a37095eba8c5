"""String programs: run them, trace them, undo them, and find them from examples, with an exact interpreter.

A program is a chain of operations, `reverse | take 3 | upper`, over a list of tokens (letters or words). It is text in
a language of its own that `parse` reads and `run` executes: nothing is evaluated as Python, and every program ends, as
an operation is applied once and lengthens a text at most twofold.

For synthesis a target is one shortest program, and the references are all programs of that length that map the given
inputs to the given outputs, and last what a right program must fit: the space of programs up to the searched length is
searched whole, and a longer program counts by being run (metric `program_fits`).
"""

import functools
import hashlib
import itertools
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

import gin

from mtx.errors import UserError, did_you_mean
from mtx.tasks import family
from mtx.tasks.task import Collection, Reading, Row, TextTask

LETTERS = string.ascii_lowercase
WORDS = tuple(
  "ant bee cat dog elk fox gnu hen ibis jay koi lark mole newt owl pig quail rat seal toad urchin vole wolf yak".split()
)
KINDS = ("run", "trace", "invert", "synthesise")
DOMAINS = ("letters", "words")
LONGEST_SEARCH = 3  # operations of a program that is searched for: beyond, the space is too large to search whole
LONGEST_VALUE = 48  # characters
LONGEST_RUN = 4096  # tokens and characters of a value, beyond which a program that a model wrote is not run on
EMPTY = "nothing"  # how a value without tokens is written
FITS = "fits : "  # what a reference opens with that is no program but pairs of inputs and outputs

PROMPT = {
  "run": "run this program : ",
  "trace": "trace this program : ",
  "invert": "undo this program : ",
  "synthesise": "write a program : ",
}

Value = tuple[str, ...]
Call = tuple[str, tuple[str, ...]]
Program = tuple[Call, ...]


class ProgramError(ValueError):
  """A text that is no program. Says which operation, counted from 1, is wrong and why."""


@dataclass(frozen=True)
class Operation:
  """One operation on a list of tokens.

  Attributes:
    arguments: one tuple of choices for each argument.
    apply: (tokens, arguments) -> tokens.
    inverse: arguments -> the call that undoes it; None where nothing does.
  """

  arguments: tuple[tuple[str, ...], ...]
  apply: Callable[..., Value]
  inverse: Callable[..., Call] | None = None


def _case(name: str) -> Callable[[Value], Value]:
  return lambda value: tuple(getattr(token, name)() for token in value)


def _shift(value: Value, by: str) -> Value:
  """Caesar's cipher: every letter goes `by` places on, after z comes a; case stays."""
  return tuple(token.translate(_cipher(int(by))) for token in value)


@functools.cache
def _cipher(by: int) -> dict[int, str]:
  return {
    ord(letter): letters[(i + by) % len(letters)]
    for letters in (string.ascii_lowercase, string.ascii_uppercase)
    for i, letter in enumerate(letters)
  }


def _rotated(value: Value, by: str) -> Value:
  start = int(by) % len(value) if value else 0
  return value[start:] + value[:start]


_NUMBERS = tuple("123")

# Order matters: it is that of the search, so of which shortest program is the target.
OPERATIONS: dict[str, Operation] = {
  "reverse": Operation((), lambda v: v[::-1], lambda: ("reverse", ())),
  "sort": Operation((), lambda v: tuple(sorted(v))),
  "dedupe": Operation((), lambda v: tuple(dict.fromkeys(v))),
  "upper": Operation((), _case("upper")),
  "lower": Operation((), _case("lower")),
  "swapcase": Operation((), _case("swapcase"), lambda: ("swapcase", ())),
  "double": Operation((), lambda v: tuple(token for token in v for _ in range(2)), lambda: ("evens", ())),
  "mirror": Operation((), lambda v: v + v[::-1]),
  "repeat": Operation((), lambda v: v + v),
  "evens": Operation((), lambda v: v[::2]),
  "odds": Operation((), lambda v: v[1::2]),
  "swap": Operation((), lambda v: (v[-1], *v[1:-1], v[0]) if len(v) > 1 else v, lambda: ("swap", ())),
  "join": Operation((), lambda v: ("".join(v),) if v else v),
  "split": Operation((), lambda v: tuple(letter for token in v for letter in token)),
  "initials": Operation((), lambda v: tuple(token[0] for token in v)),
  "flip": Operation((), lambda v: tuple(token[::-1] for token in v), lambda: ("flip", ())),
  "take": Operation((_NUMBERS,), lambda v, n: v[: int(n)]),
  "drop": Operation((_NUMBERS,), lambda v, n: v[int(n) :]),
  "rotate": Operation((_NUMBERS,), _rotated, lambda n: ("unrotate", (n,))),
  "unrotate": Operation((_NUMBERS,), lambda v, n: _rotated(v, f"-{n}"), lambda n: ("rotate", (n,))),
  "shift": Operation((_NUMBERS,), _shift, lambda n: ("unshift", (n,))),
  "unshift": Operation((_NUMBERS,), lambda v, n: _shift(v, f"-{n}"), lambda n: ("shift", (n,))),
  "replace": Operation((tuple("abc"), tuple("xyz")), lambda v, old, new: tuple(token.replace(old, new) for token in v)),
}


def parse(text: str) -> Program:
  """The program that a text is: operations with their arguments, `|` between them.

  Raises:
    ProgramError: an operation is not known, or has too many, too few or wrong arguments.
  """
  calls: list[Call] = []
  for number, part in enumerate(text.split("|"), 1):
    name, *arguments = part.split() or [""]
    if not name:
      raise ProgramError(f"operation {number} is empty")
    if name not in OPERATIONS:
      raise ProgramError(f"operation {number}: {name!r} is not known; {did_you_mean(name, OPERATIONS)}")
    choices = OPERATIONS[name].arguments
    if len(arguments) != len(choices):
      raise ProgramError(f"operation {number}: `{name}` has {len(arguments)} arguments, {len(choices)} are wanted")
    for argument, valid in zip(arguments, choices, strict=True):
      if argument not in valid:
        raise ProgramError(f"operation {number}: `{name}` takes one of {' '.join(valid)}, not {argument!r}")
    calls.append((name, tuple(arguments)))
  return tuple(calls)


def shown(program: Program) -> str:
  """A program as text: `parse` reads it back."""
  return " | ".join(" ".join((name, *arguments)) for name, arguments in program)


def run(program: Program, value: Value) -> Value:
  """What a program makes of a list of tokens."""
  return steps(program, value)[-1]


def steps(program: Program, value: Value) -> list[Value]:
  """What it makes of it after no, one, two, ... operations."""
  found = [value]
  for name, arguments in program:
    found.append(OPERATIONS[name].apply(found[-1], *arguments))
  return found


def inverse(program: Program) -> Program | None:
  """The program that undoes another on every input; None where an operation has no inverse."""
  undone: list[Call] = []
  for name, arguments in reversed(program):
    undo = OPERATIONS[name].inverse
    if undo is None:
      return None
    undone.append(undo(*arguments))
  return tuple(undone)


def fits(text: str, pairs: Sequence[tuple[Value, Value]]) -> bool:
  """Whether a text is a program that maps every first of the pairs to its second, by values that are not too long."""
  try:
    program = parse(text)
  except ProgramError:
    return False
  return all(_run_within(program, before) == after for before, after in pairs)


def _run_within(program: Program, value: Value) -> Value | None:
  """What a program makes of a value; None if one on the way is longer than LONGEST_RUN: thirty doublings are."""
  for name, arguments in program:
    value = OPERATIONS[name].apply(value, *arguments)
    if len(value) + sum(map(len, value)) > LONGEST_RUN:
      return None
  return value


def program_fits(reference: str, prediction: str) -> float:
  """1 when the prediction is a program that does what is asked, found by running it.

  Args:
    reference: FITS and the pairs as a prompt has them; anything else counts when the prediction is the same.
  """
  if reference.startswith(FITS):
    return float(fits(prediction, pairs_of(reference.removeprefix(FITS))))
  return float(reference.split() == prediction.split())


@functools.cache
def calls() -> tuple[Call, ...]:
  """Every operation with every choice of arguments, in the order of OPERATIONS."""
  return tuple(
    (name, arguments) for name, operation in OPERATIONS.items() for arguments in itertools.product(*operation.arguments)
  )


def shortest(pairs: Sequence[tuple[Value, Value]], most: int) -> list[Program]:
  """All programs of the least length, up to `most` operations, that map every first of the pairs to its second.

  Breadth first over what the inputs become, taken together: programs that make the same of them go on as one. What a
  shorter program reaches is not reached again, as no shortest program takes a detour. So the search is whole. Where
  nothing changes, the shortest is the empty program.
  """
  wanted = tuple(after for _, after in pairs)
  start = tuple(before for before, _ in pairs)
  level: dict[tuple[Value, ...], list[Program]] = {start: [()]}
  if wanted == start:
    return [()]
  reached = {start}
  for length in range(1, most + 1):
    following: dict[tuple[Value, ...], list[Program]] = {}
    for values, programs in level.items():
      for call in calls():
        apply, arguments = OPERATIONS[call[0]].apply, call[1]
        if length == most and apply(values[0], *arguments) != wanted[0]:
          continue
        new = tuple(apply(value, *arguments) for value in values)
        if new not in reached:
          following.setdefault(new, []).extend((*program, call) for program in programs)
    if wanted in following:
      return following[wanted]
    level = following
    reached.update(following)
  return []


def written(value: Value) -> str:
  return " ".join(value) or EMPTY


def read(text: str) -> Value:
  """What `written` wrote."""
  return () if text.strip() == EMPTY else tuple(text.split())


def pairs_of(inputs: str) -> list[tuple[Value, Value]]:
  """The pairs that a prompt of `synthesise` shows, to judge by execution: `fits(prediction, pairs_of(inputs))`."""
  shown_pairs = inputs.removeprefix(PROMPT["synthesise"]).split(" ; ")
  return [(read(before), read(after)) for before, after in (pair.split(" -> ") for pair in shown_pairs)]


def unseen(program: Program) -> bool:
  """Whether a program of two or more operations is kept for split `test`: a hash of its text decides."""
  return hashlib.blake2b(shown(program).encode(), digest_size=1).digest()[0] < 64


@gin.configurable
def programs(
  *,
  kinds: Sequence[str] = KINDS,
  domains: Sequence[str] = DOMAINS,
  lengths: Sequence[int] = (1, 2, 3, 4),
  heldout_kinds: Sequence[str] = (),
  heldout_lengths: Sequence[int] = (4,),
  pairs: int = 3,
  kept: bool = True,
  examples: int = 500,
  validation: int = 16,
  test: int = 64,
  shots: int = 0,
  seed: int = 0,
) -> Collection:
  """Tasks `programs_<kind>_<domain>_<length>`.

  Args:
    kinds: "run" (program and input, the output is asked), "trace" (the value after every operation), "invert"
      (program and output, the input is asked; of operations that can be undone), "synthesise" (inputs and outputs,
      the program is asked: `program_fits` is the share of those that do what is asked, exact match of those that are
      also among the shortest).
    domains: "letters" or "words": what the tokens are.
    lengths: operations of a program, one task each; for "synthesise" those up to LONGEST_SEARCH.
    heldout_kinds, heldout_lengths: of which tasks are held out.
    pairs: that a synthesis shows.
    kept: whether a quarter of the programs of two or more operations is in split `test` alone, of all tasks.
    examples, validation, test: of a task. Held-out tasks have `test` and `shots` in split `train`.
    seed: another seed draws other examples.

  Raises:
    UserError: a kind or domain that there is not, a length or number of pairs below 1.
  """
  for argument, chosen, choices in (
    ("kinds", kinds, KINDS),
    ("heldout_kinds", heldout_kinds, KINDS),
    ("domains", domains, DOMAINS),
  ):
    for each in chosen:
      if each not in choices:
        raise UserError(f"programs.{argument}: {each!r} is not known", hint=did_you_mean(each, choices))
  for argument, numbers in (("lengths", lengths), ("heldout_lengths", heldout_lengths), ("pairs", (pairs,))):
    if wrong := [number for number in numbers if number < 1]:
      raise UserError(f"programs.{argument}: {wrong[0]}", hint="it is at least 1")

  train: list[TextTask] = []
  heldout: list[TextTask] = []
  for kind in kinds:
    for domain in domains:
      for length in lengths:
        if kind == "synthesise" and length > LONGEST_SEARCH:
          continue
        is_heldout = kind in heldout_kinds or length in heldout_lengths
        counts = {"test": test, "validation": validation, "train": examples}
        if is_heldout:
          counts = {"test": test, "train": shots} if shots else {"test": test}
        bound = functools.partial(draw, kind=kind, domain=domain, length=length, pairs=pairs)
        splits = {
          split: [family.Part(functools.partial(bound, test=split == "test" if kept else None), count)]
          for split, count in counts.items()
        }
        metrics = ("program_fits", "exact_match") if kind == "synthesise" else ("exact_match",)
        task = family.task(f"programs_{kind}_{domain}_{length}", kind, splits, seed=seed, metrics=metrics)
        (heldout if is_heldout else train).append(task)
  return Collection(
    name="programs",
    train=tuple(train),
    heldout=tuple(heldout),
    citation="generated by mtx: Apache-2.0",
    texts=functools.partial(vocabulary_texts, tuple(train + heldout)),
  )


def draw(random: Random, *, kind: str, domain: str, length: int, pairs: int, test: bool | None) -> Row | None:
  """One example. Every operation of its program changes something.

  Args:
    kind, domain, length, pairs: as of `programs`.
    test: whether the program is one that is kept for split `test`, or one that is not; None: either.
  """
  choices = [call for call in calls() if kind != "invert" or OPERATIONS[call[0]].inverse]
  program = tuple(random.choice(choices) for _ in range(length))
  if test is not None and length > 1 and unseen(program) != test:
    return None
  inputs = [_value(random, domain) for _ in range(pairs if kind == "synthesise" else 1)]
  traces = [steps(program, value) for value in inputs]
  if not all(_good(trace) for trace in traces):
    return None
  trace, prompt = traces[0], PROMPT[kind]
  if kind == "run":
    return {"inputs": f"{prompt}{shown(program)} : {written(trace[0])}", "targets": written(trace[-1])}
  if kind == "trace":
    target = " ; ".join(written(value) for value in trace[1:])
    return {"inputs": f"{prompt}{shown(program)} : {written(trace[0])}", "targets": target}
  if kind == "invert":
    return {"inputs": f"{prompt}{shown(program)} : {written(trace[-1])}", "targets": written(trace[0])}
  examples = [(trace[0], trace[-1]) for trace in traces]
  if len(set(inputs)) < pairs:
    return None
  found = shortest(examples, length)
  if len(found[0]) < length:
    return None
  asked = " ; ".join(f"{written(before)} -> {written(after)}" for before, after in examples)
  references = [*map(shown, found), FITS + asked]
  return {"inputs": prompt + asked, "targets": references[0], "references": references}


def vocabulary_texts(tasks: Sequence[TextTask]) -> Iterator[str]:
  """Every operation and token, and the training texts of all tasks but synthesis, which has no other tokens."""
  yield " ".join(
    [
      *"".join(PROMPT.values()).split(),
      ";",
      "->",
      "|",
      *LETTERS,
      *LETTERS.upper(),
      *WORDS,
      EMPTY,
      *map(shown, ((call,) for call in calls())),
    ]
  )
  for task in tasks:
    if task.category != "synthesise" and "train" in task.splits:
      for row in task.rows("train", Reading()):
        yield row["inputs"]
        yield row["targets"]


def _value(random: Random, domain: str) -> Value:
  if domain == "words":
    return tuple(random.choices(WORDS, k=random.randint(2, 4)))
  return tuple(random.choices(LETTERS[:8], k=random.randint(4, 6)))


def _good(trace: Sequence[Value]) -> bool:
  """Whether every operation changes something, and the values are neither empty nor long."""
  changes = all(before != after for before, after in itertools.pairwise(trace))
  return changes and all(value and len(" ".join(value)) <= LONGEST_VALUE for value in trace)
