"""String programs: the interpreter against a second one, the search against brute force, every answer executed."""

import itertools
import pickle
import time
from collections import Counter

import pytest

from mtx.errors import UserError
from mtx.tasks.metrics import mean_score, scores
from mtx.tasks.programs import (
  DOMAINS,
  FITS,
  KINDS,
  LONGEST_SEARCH,
  OPERATIONS,
  PROMPT,
  ProgramError,
  calls,
  fits,
  inverse,
  pairs_of,
  parse,
  programs,
  read,
  run,
  shortest,
  shown,
  steps,
  unseen,
  written,
)
from mtx.tasks.task import Reading

SMALL = {"examples": 30, "validation": 4, "test": 20}


def rows(task, split="test"):
  return list(task.rows(split, Reading()))


def executed(text, tokens):
  """A second interpreter, on lists and character codes."""
  value = list(tokens)
  for part in text.split(" | "):
    name, *arguments = part.split()
    n = int(arguments[0]) if arguments and arguments[0].isdigit() else 0
    if name in ("shift", "unshift"):
      by = n if name == "shift" else -n
      base = lambda c: ord("a") if c.islower() else ord("A")
      value = ["".join(chr((ord(c) - base(c) + by) % 26 + base(c)) for c in token) for token in value]
    elif name in ("rotate", "unrotate"):
      for _ in range(n):
        value = value[1:] + value[:1] if name == "rotate" else value[-1:] + value[:-1]
    elif name == "replace":
      value = [token.translate({ord(arguments[0]): arguments[1]}) for token in value]
    elif name == "dedupe":
      value = [token for i, token in enumerate(value) if token not in value[:i]]
    elif name == "swap" and value:
      value[0], value[-1] = value[-1], value[0]
    elif name == "take":
      del value[n:]
    elif name == "drop":
      del value[:n]
    elif name in ("evens", "odds"):
      value = [token for i, token in enumerate(value) if i % 2 == (name == "odds")]
    elif name in ("upper", "lower", "swapcase"):
      value = " ".join(value).__getattribute__(name)().split()
    else:
      value = {
        "reverse": lambda: list(reversed(value)),
        "sort": lambda: sorted(value),
        "double": lambda: [t for token in value for t in (token, token)],
        "mirror": lambda: value + list(reversed(value)),
        "repeat": lambda: value * 2,
        "join": lambda: ["".join(value)],
        "swap": lambda: value,
        "split": lambda: list("".join(value)),
        "initials": lambda: [token[:1] for token in value],
        "flip": lambda: ["".join(reversed(token)) for token in value],
      }[name]()
  return value


def test_every_operation_on_an_example():
  expected = {
    "reverse": "Bb ab ca ab", "sort": "Bb ab ab ca", "dedupe": "ab ca Bb", "upper": "AB CA AB BB",
    "lower": "ab ca ab bb", "swapcase": "AB CA AB bB", "double": "ab ab ca ca ab ab Bb Bb",
    "mirror": "ab ca ab Bb Bb ab ca ab", "repeat": "ab ca ab Bb ab ca ab Bb", "evens": "ab ab", "odds": "ca Bb",
    "swap": "Bb ca ab ab", "join": "abcaabBb", "split": "a b c a a b B b", "initials": "a c a B",
    "flip": "ba ac ba bB", "take 2": "ab ca", "drop 3": "Bb", "rotate 1": "ca ab Bb ab", "unrotate 1": "Bb ab ca ab",
    "shift 2": "cd ec cd Dd", "unshift 3": "xy zx xy Yy", "replace b y": "ay ca ay By",
  }  # fmt: skip
  assert {text.split()[0] for text in expected} == set(OPERATIONS)
  for text, result in expected.items():
    assert written(run(parse(text), read("ab ca ab Bb"))) == result
  for text in expected:
    assert run(parse(text), ()) == ()


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("domain", DOMAINS)
def test_answers_are_what_a_second_interpreter_finds(domain, length):
  tasks = programs(domains=[domain], lengths=[length], heldout_lengths=(), kinds=("run", "trace", "invert"), **SMALL)
  for task in tasks.train:
    found = rows(task)
    assert len(found) == 20
    for row in found:
      _, program, value = row["inputs"].split(" : ")
      assert len(parse(program)) == length
      if task.category == "run":
        assert executed(program, value.split()) == row["targets"].split()
      elif task.category == "trace":
        for part, (before, after) in zip(
          program.split(" | "), itertools.pairwise([value, *row["targets"].split(" ; ")]), strict=True
        ):
          assert executed(part, before.split()) == after.split() != before.split()
      else:
        assert executed(program, row["targets"].split()) == value.split()


@pytest.mark.parametrize("name", [name for name, operation in OPERATIONS.items() if operation.inverse])
def test_inverses_undo(name):
  for call in [call for call in calls() if call[0] == name]:
    for value in ("a b c d", "dog ant", "b", "Ab zY q q a"):
      assert run(inverse((call,)), run((call,), read(value))) == read(value)
  assert inverse(parse("reverse | sort")) is None


@pytest.mark.parametrize("domain", DOMAINS)
def test_synthesis_has_all_shortest_programs(domain):
  """All programs of one and two operations are run by the second interpreter."""
  tasks = programs(kinds=["synthesise"], domains=[domain], lengths=[1, 2], heldout_lengths=(), **{**SMALL, "test": 3})
  singles = [shown((call,)) for call in calls()]
  assert len(singles) == 43
  for task in tasks.train:
    length = int(task.name[-1])
    for row in rows(task):
      pairs = pairs_of(row["inputs"])
      assert len(pairs) == 3
      right = lambda chain: all(executed(" | ".join(chain), before) == list(after) for before, after in pairs)
      for shorter in range(1, length):
        assert not any(right(chain) for chain in itertools.product(singles, repeat=shorter))
      brute = {" | ".join(chain) for chain in itertools.product(singles, repeat=length) if right(chain)}
      *references, asked = row["references"]
      assert set(references) == brute and row["targets"] == references[0]
      assert len(references) == len(brute) and pairs_of(asked.removeprefix(FITS)) == pairs


def test_the_search_is_whole_at_three_operations():
  """Against 43 ** 3 programs, run in a plain loop."""
  pairs = [(before, run(parse("drop 1 | upper | mirror"), before)) for before in (read("c a b d"), read("b b a e f"))]
  found = shortest(pairs, LONGEST_SEARCH)
  brute = [
    program
    for program in itertools.product(calls(), repeat=3)
    if run(program, pairs[0][0]) == pairs[0][1] and run(program, pairs[1][0]) == pairs[1][1]
  ]
  assert sorted(found) == sorted(brute) and len(found) >= 3
  assert shortest(pairs, 2) == []
  assert shortest([(read("a b"), read("a b"))], 2) == [()]


def test_synthesised_references_execute_and_longer_programs_are_judged_by_execution():
  tasks = programs(kinds=["synthesise"], lengths=[3], heldout_lengths=(), **{**SMALL, "test": 4})
  for task in tasks.train:
    for row in rows(task):
      pairs = pairs_of(row["inputs"])
      *references, asked = row["references"]
      assert asked == FITS + row["inputs"].removeprefix(PROMPT["synthesise"])
      assert all(fits(reference, pairs) and len(parse(reference)) == 3 for reference in references)
      assert fits(f"{row['targets']} | swapcase | swapcase", pairs)
      assert not fits(f"{row['targets']} | double", pairs)
      assert not fits("reverse | nonsense", pairs)


def test_any_program_that_does_what_is_asked_counts():
  """Longer than the shortest, written otherwise: judged by a second interpreter, on all programs of two operations."""
  tasks = programs(kinds=["synthesise"], lengths=[2], heldout_lengths=(), **{**SMALL, "test": 2})
  singles = [shown((call,)) for call in calls()]
  assert tasks.train[0].metrics[0] == "program_fits"
  for task in tasks.train:
    for row in rows(task):
      pairs = pairs_of(row["inputs"])
      tried = [" | ".join(chain) for chain in itertools.product(singles, repeat=2)]
      tried += [f"{text} | flip | flip" for text in row["references"][:-1]]
      right = [all(executed(text, before) == list(after) for before, after in pairs) for text in tried]
      assert scores("program_fits", [row["references"]] * len(tried), tried) == [100.0 * r for r in right]
      assert sum(right) > len(row["references"]) - 1


def test_the_metric_runs_programs():
  asked = [f"{FITS}a b c -> c b a ; d e -> e d"]
  for text, score in {
    "reverse": 100, " reverse ": 100, "reverse|flip|flip": 100, "flip | reverse": 100, "rotate 1": 0, "revers": 0,
    "": 0, asked[0]: 0, "a b c -> c b a": 0, "reverse | upper": 0, "nothing": 0,
  }.items():  # fmt: skip
    assert scores("program_fits", [asked], [text]) == [score], text
  assert mean_score("program_fits", [["reverse", *asked], asked], ["unrotate 1", "reverse"]) == 50
  assert scores("program_fits", [["take 2"]] * 3, ["take  2", "take 1", ")"]) == [100, 0, 0]
  assert scores("program_fits", [[f"{FITS}a b -> nothing"]] * 2, ["drop 2", "drop 1"]) == [100, 0]


def test_a_program_that_grows_without_end_is_not_run_to_it():
  start = time.perf_counter()
  explosive = " | ".join(["repeat"] * 400 + ["take 1"])
  assert scores("program_fits", [[f"{FITS}a b -> a"]] * 2, [explosive, "split | take 1"]) == [0, 100]
  assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
  ("text", "message"),
  [
    ("", "operation 1 is empty"),
    ("reverse | ", "operation 2 is empty"),
    ("revers", "operation 1: 'revers' is not known; did you mean `reverse`"),
    ("reverse | take", "operation 2: `take` has 0 arguments, 1 are wanted"),
    ("reverse 2", "operation 1: `reverse` has 1 arguments, 0 are wanted"),
    ("take 9", "operation 1: `take` takes one of 1 2 3, not '9'"),
    ("replace a b", "operation 1: `replace` takes one of x y z, not 'b'"),
    ("__import__('os')", "operation 1: \"__import__\\('os'\\)\" is not known"),
  ],
)
def test_what_is_no_program_is_said(text, message):
  with pytest.raises(ProgramError, match=message):
    parse(text)


def test_programs_are_read_back():
  for chain in itertools.product(calls()[::5], repeat=2):
    assert parse(shown(chain)) == chain
  assert read(written(())) == () and read(written(("a", "b"))) == ("a", "b")
  assert steps(parse("take 1 | drop 1"), ("a",)) == [("a",), ("a",), ()]


def test_test_programs_are_kept():
  met: dict[str, set] = {"test": set(), "train": set(), "validation": set()}
  lengths = Counter()
  for task in programs(kinds=("run", "trace", "invert"), heldout_lengths=(), lengths=(2, 3), **SMALL).train:
    for split, seen in met.items():
      for row in rows(task, split):
        program = row["inputs"].split(" : ")[1]
        seen.add(program)
        lengths[split] += 1
        assert unseen(parse(program)) == (split == "test")
  assert not met["test"] & (met["train"] | met["validation"])
  [task] = programs(kinds=["run"], domains=["letters"], lengths=[2], kept=False, heldout_lengths=(), **SMALL).train
  assert {unseen(parse(row["inputs"].split(" : ")[1])) for row in rows(task)} == {True, False}


def test_tasks_and_what_is_held_out():
  tasks = programs()
  expected = {
    f"programs_{kind}_{domain}_{n}"
    for kind in KINDS
    for domain in DOMAINS
    for n in (1, 2, 3, 4)
    if (kind, n) != ("synthesise", 4)
  }
  assert {task.name for task in (*tasks.train, *tasks.heldout)} == expected
  assert {task.name[-1] for task in tasks.heldout} == {"4"}
  assert {task.category for task in programs(heldout_kinds=["invert"]).train} == set(KINDS) - {"invert"}
  assert programs(shots=3).heldout[0].splits == {"test": 64, "train": 3}
  assert tasks.train[0].splits == {"test": 64, "validation": 16, "train": 500}


def test_rows_are_the_same_in_every_order_and_process():
  tasks = programs(lengths=(1, 2), heldout_lengths=(), **SMALL)
  for task in tasks.train:
    again = pickle.loads(pickle.dumps(task))
    inputs = []
    for split, size in task.splits.items():
      found = rows(task, split)
      assert found == rows(again, split) and len(found) == size
      inputs += [row["inputs"] for row in found]
    assert len(inputs) == len(set(inputs))
  first, second = (programs(seed=seed, lengths=[2], **SMALL).train[0] for seed in (0, 1))
  assert rows(first) != rows(second)


def test_the_vocabulary_sees_every_token():
  tasks = programs(lengths=(1, 2), heldout_lengths=(), **SMALL)
  known = {word for text in tasks.texts() for word in text.split()}
  for task in tasks.train:
    if task.category == "synthesise":
      needed = {
        w for row in rows(task) for text in (row["inputs"], row["targets"]) for w in text.split() if len(w) == 1
      }
      assert needed <= known
      assert {w for row in rows(task) for w in row["targets"].split()} <= known


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"kinds": ["runs"]}, r"programs\.kinds: 'runs' is not known\n  did you mean `run`"),
    ({"heldout_kinds": ["synthesize"]}, r"programs\.heldout_kinds: .*\n  did you mean `synthesise`"),
    ({"domains": ["letter"]}, r"programs\.domains: 'letter' is not known\n  did you mean `letters`"),
    ({"lengths": [0]}, r"programs\.lengths: 0\n  it is at least 1"),
    ({"heldout_lengths": [-1]}, r"programs\.heldout_lengths: -1"),
    ({"pairs": 0}, r"programs\.pairs: 0"),
    ({"examples": -3}, r"-3 examples of split 'train'"),
  ],
)
def test_bad_arguments_are_named(arguments, message):
  with pytest.raises(UserError, match=message):
    programs(**arguments)
