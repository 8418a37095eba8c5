"""The skills and tasks of the procedural family, in plain Python: what a task computes, what its inputs are.

A skill is a pure function from tokens to tokens. A task is a domain and one or two skills applied in order,
so the exact answer to every input is known. Held-out tasks recombine skills that all occur in training tasks,
as the compositional splits of Lake & Baroni 2018 (arXiv 1711.00350) do.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

Tokens = list[str]

DIGITS = "0123456789"
LETTERS = "abcdefghijklmnop"
VOWELS = "aeio"
NOTHING = "none"  # the target when a skill leaves no token, so that no target is empty
TARGET_LIMIT = 8  # tokens; inputs with a longer answer are not drawn


def reverse(tokens: Tokens) -> Tokens:
  return tokens[::-1]


def sort(tokens: Tokens) -> Tokens:
  return sorted(tokens)


def first(tokens: Tokens) -> Tokens:
  return tokens[:1]


def last(tokens: Tokens) -> Tokens:
  return tokens[-1:]


def rest(tokens: Tokens) -> Tokens:
  """All but the first."""
  return tokens[1:]


def swap(tokens: Tokens) -> Tokens:
  """The two ends exchanged."""
  return tokens if len(tokens) < 2 else [tokens[-1], *tokens[1:-1], tokens[0]]


def rotate(tokens: Tokens) -> Tokens:
  """The first goes to the end."""
  return tokens[1:] + tokens[:1]


def double(tokens: Tokens) -> Tokens:
  """Each token twice."""
  return [token for token in tokens for _ in range(2)]


def unique(tokens: Tokens) -> Tokens:
  """The first of each, in order."""
  return list(dict.fromkeys(tokens))


def largest(tokens: Tokens) -> Tokens:
  return sorted(tokens)[-1:]


def smallest(tokens: Tokens) -> Tokens:
  return sorted(tokens)[:1]


def count(tokens: Tokens) -> Tokens:
  return [str(len(tokens))]


def successor(tokens: Tokens) -> Tokens:
  """The next digit or letter of each, after the last comes the first."""
  after = {token: kind[(i + 1) % len(kind)] for kind in (DIGITS, LETTERS) for i, token in enumerate(kind)}
  return [after[token] for token in tokens]


def evens(tokens: Tokens) -> Tokens:
  return [token for token in tokens if token in "02468"]


def upper(tokens: Tokens) -> Tokens:
  return [token.upper() for token in tokens]


def vowels(tokens: Tokens) -> Tokens:
  return [token for token in tokens if token in VOWELS]


def increment(tokens: Tokens) -> Tokens:
  """The digits of the number plus one."""
  return list(str(int("".join(tokens)) + 1))


def parity(tokens: Tokens) -> Tokens:
  return ["odd" if int(tokens[-1]) % 2 else "even"]


def complement(tokens: Tokens) -> Tokens:
  """Nines' complement: 9 minus each digit."""
  return [str(9 - int(token)) for token in tokens]


def larger(tokens: Tokens) -> Tokens:
  """The larger of two numbers of equal length, written `4 7 , 3 9`."""
  comma = tokens.index(",")
  return max(tokens[:comma], tokens[comma + 1 :])


def smaller(tokens: Tokens) -> Tokens:
  comma = tokens.index(",")
  return min(tokens[:comma], tokens[comma + 1 :])


def keys(tokens: Tokens) -> Tokens:
  return tokens[0::2]


def values(tokens: Tokens) -> Tokens:
  return tokens[1::2]


def find(tokens: Tokens) -> Tokens:
  """The value of the key that follows `?`, in `a 3 b 7 ? b`."""
  *table, _, key = tokens
  return [table[table.index(key) + 1]]


SKILLS: dict[str, Callable[[Tokens], Tokens]] = {
  skill.__name__: skill
  for skill in (
    reverse, sort, first, last, rest, swap, rotate, double, unique, largest, smallest, count, successor,
    evens, upper, vowels, increment, parity, complement, larger, smaller, keys, values, find,
  )
}  # fmt: skip


def _digits(random: Random) -> Tokens:
  return random.choices(DIGITS, k=random.randint(3, 4))


def _letters(random: Random) -> Tokens:
  return random.choices(LETTERS, k=random.randint(3, 4))


def _number(random: Random) -> Tokens:
  return list(str(random.randrange(100, 10_000)))


def _two_numbers(random: Random) -> Tokens:
  left, right = random.randrange(10, 100), random.randrange(10, 100)
  return [*str(left), ",", *str(right)]


def _table(random: Random) -> Tokens:
  names = random.sample(LETTERS, random.randint(2, 3))
  return [token for name in names for token in (name, random.choice(DIGITS))]


def _query(random: Random) -> Tokens:
  table = _table(random)
  return [*table, "?", random.choice(keys(table))]


DOMAINS: dict[str, Callable[[Random], Tokens]] = {
  "list": _digits,
  "word": _letters,
  "number": _number,
  "numbers": _two_numbers,
  "table": _table,
  "lookup": _query,
}


@dataclass(frozen=True)
class Procedure:
  """One task: `skills` applied in order to an input drawn from `domain`."""

  category: str
  domain: str
  skills: tuple[str, ...]
  split: str  # train | heldout

  def __call__(self, tokens: Tokens) -> Tokens:
    """The one right answer."""
    for skill in self.skills:
      tokens = SKILLS[skill](tokens)
    return tokens or [NOTHING]


def _tasks(category: str, split: str, rows: str) -> dict[str, Procedure]:
  """From lines `domain: skill, skill>skill, ...`; a task is named `<domain>_<skill>[_<skill>]`."""
  tasks = {}
  for row in rows.strip().splitlines():
    domain, compositions = row.strip().split(": ")
    for composition in compositions.split(", "):
      skills = tuple(composition.split(">"))
      tasks["_".join((domain, *skills))] = Procedure(category, domain, skills, split)
  return tasks


TASKS: dict[str, Procedure] = {
  **_tasks("list", "train", """
    list: reverse, sort, first, last, rest, swap, rotate, double, unique, largest, smallest, count
    list: successor, evens
    list: sort>reverse, reverse>successor, rest>reverse, largest>successor, unique>count"""),
  **_tasks("string", "train", """
    word: reverse, upper, vowels, swap, rotate, successor
    word: first>upper, reverse>upper, sort>upper, vowels>count"""),
  **_tasks("number", "train", """
    number: increment, parity, complement
    numbers: larger, smaller, larger>reverse"""),
  **_tasks("lookup", "train", """
    lookup: find, find>successor
    table: keys, values, keys>reverse, keys>upper, values>largest"""),
  **_tasks("list", "heldout", "list: rotate>successor, swap>successor, smallest>successor, unique>reverse"),
  **_tasks("string", "heldout", "word: last>upper, swap>upper, rotate>upper"),
  **_tasks("number", "heldout", "number: complement>reverse\nnumbers: smaller>reverse"),
  **_tasks("lookup", "heldout", "table: values>reverse, values>smallest"),
}  # fmt: skip


class TooFewInputs(Exception):
  """A domain has fewer distinct inputs than were asked for."""


def draw(name: str, counts: dict[str, int], seed: int) -> Iterator[tuple[str, Tokens, Tokens]]:
  """Yields (split, input, target), no input twice.

  Splits are drawn in the order of `counts`: put the ones that must not move when a later count changes first.
  The stream depends on `name` and `seed` only, and is the same in every process.

  Raises:
    TooFewInputs: its argument is how many there were.
  """
  task = TASKS[name]
  random = Random(int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()))
  seen: set[tuple[str, ...]] = set()
  for split, size in counts.items():
    tries, wanted = 0, len(seen) + size
    while len(seen) < wanted:
      tokens = DOMAINS[task.domain](random)
      target = task(tokens)
      tries += 1
      if len(target) <= TARGET_LIMIT and tuple(tokens) not in seen:
        seen.add(tuple(tokens))
        yield split, tokens, target
      elif tries > 1000 + 50 * size:
        raise TooFewInputs(len(seen))
