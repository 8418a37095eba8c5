"""Every fault that is put into a cache is counted and named, and a sound cache has none."""

import numpy as np
import pytest

from mtx.data.audit import CHECKS, audit
from mtx.data.cache import CachedMixture, CachedTask, write_split
from mtx.data.vocabulary import Vocabulary
from mtx.errors import UserError

VOCABULARY = Vocabulary("byte")


def example(text: str, target: str, references: list[str] | None = None, id: str = "") -> dict:
  return {
    "inputs": np.array([*VOCABULARY.encode(text), VOCABULARY.eos_id]),
    "targets": np.array([*VOCABULARY.encode(target), VOCABULARY.eos_id]),
    "id": id or f"{text}:{target}",
    "references": [target] if references is None else references,
    "text": text,
  }


@pytest.fixture
def mixture(tmp_path):
  """mixture(name, task={split: examples}, ...)"""

  def make(name: str, **tasks) -> CachedMixture:
    cached = []
    for task, splits in tasks.items():
      written = {
        split: write_split(tmp_path / task / split, examples, fingerprint="f", ingredients={})
        for split, examples in splits.items()
      }
      cached.append(CachedTask(task, "category", ("exact_match",), "f", written))
    return CachedMixture(name, tuple(cached), (1 / len(cached),) * len(cached), VOCABULARY)

  return make


def sound(count: int, word: str = "word") -> list[dict]:
  return [example(f"{word}{i}", f"answer to {word}{i}", id=f"{word}{i}") for i in range(count)]


def one(found):
  (split,) = found.splits
  return split


def test_a_sound_mixture_has_no_problem(mixture):
  train = mixture("train", a={"train": sound(40)}, b={"train": sound(30, "other"), "validation": sound(5, "third")})
  found = audit(train, [train], inputs_length=64, targets_length=32)
  assert [(split.role, split.name, split.examples) for split in found.splits] == [
    ("train", "a (train)", 40),
    ("train", "b (train)", 30),
    ("evaluation", "b (validation)", 5),
  ]
  assert found.problems(CHECKS) == []
  assert found.leaks.compared == 2 and (found.train, found.evaluations) == ("train", ("train",))


def test_copies_and_contradictions_are_told_apart(mixture):
  examples = [
    *sound(20),
    example("2 + 2", "4", id="first"),
    example("2 + 2", "4", id="copy"),
    example("2 + 2", "5", id="wrong"),
    example("say hello", "hi", ["hi", "hello"], id="greeting"),
    example("say hello", "hello", ["hello", "hi"], id="another"),
  ]
  split = one(audit(mixture("train", a={"train": examples})))
  assert (split.duplicates, split.conflicts, split.conflicting) == (1, 1, (("wrong", "first"),))


def test_where_there_are_no_references_targets_contradict(mixture):
  examples = [*sound(9), example("x", "a", [], id="p"), example("x", "a", [], id="q"), example("x", "b", [], id="r")]
  split = one(audit(mixture("train", a={"train": examples})))
  assert (split.duplicates, split.conflicting) == (1, (("r", "p"),))


def test_inputs_and_targets_do_not_run_into_each_other(mixture):
  shifted = [
    {"inputs": np.array([5, 6]), "targets": np.array([7]), "id": "a", "references": ["a"], "text": ""},
    {"inputs": np.array([5]), "targets": np.array([6, 7]), "id": "b", "references": ["b"], "text": ""},
  ]
  assert one(audit(mixture("train", a={"train": shifted}))).duplicates == 0


def test_empty_targets_are_named(mixture):
  examples = [*sound(8), example("nothing", "", id="none"), example("blank", " ", id="space")]
  examples[3] |= {"targets": np.zeros(0, np.int32)}
  found = audit(mixture("train", a={"train": examples}))
  assert (one(found).empty, one(found).empty_ids) == (2, ("word3", "none"))
  (problem,) = found.problems("empty")
  assert problem.share == 0.2 and problem.text == "a (train): 2 of 10 examples have an empty target; word3, none"


def test_what_is_longer_than_the_model_reads_is_counted(mixture):
  train = mixture("train", a={"train": [example("x" * n, "y" * (n // 2), id=str(n)) for n in range(1, 21)]})
  split = one(audit(train, inputs_length=11, targets_length=11))
  assert (split.cut_inputs, split.cut_targets) == (10, 0)  # EOS is a token
  assert one(audit(train, targets_length=9)).cut_targets == 3
  assert one(audit(train)).cut_inputs is None
  texts = [problem.text for problem in audit(train, inputs_length=11, targets_length=9).problems(["cut"])]
  assert texts == [
    "a (train): 10 of 20 examples have inputs that are longer than inputs_length",
    "a (train): 3 of 20 examples have targets that are longer than targets_length",
  ]


def test_labels_are_counted_where_targets_are_few(mixture):
  few = [example(f"q{i}", "yes" if i % 4 else "no") for i in range(40)]
  constant = [example(f"q{i}", "same") for i in range(10)]
  many = [example(f"q{i}", f"label {i % 21}") for i in range(210)]
  rare = [example(f"q{i}", f"label {i % 3}") for i in range(14)]
  train = mixture("t", few={"train": few}, constant={"train": constant}, many={"train": many}, rare={"train": rare})
  labels = {split.task: split.labels for split in audit(train).splits}
  assert labels["many"] is None and labels["rare"] is None
  assert labels["few"].counts == (("yes", 30), ("no", 10)) and labels["few"].majority == 0.75
  assert labels["few"].entropy == pytest.approx(-0.75 * np.log2(0.75) - 0.25 * np.log2(0.25))
  assert (labels["constant"].majority, labels["constant"].entropy) == (1.0, 0.0)
  assert [problem.where for problem in audit(train).problems("imbalance")] == ["constant (train)"]
  _, second = audit(train).problems("imbalance", imbalance=0.7)
  assert second.text == "few (train): 30 of 40 examples have the target 'yes' (2 labels)"


def test_leaks_between_mixtures_are_found_and_named(mixture):
  passage = " ".join(f"word{i}" for i in range(20))
  train = mixture("train", a={"train": [*sound(9), example(f"story: {passage}", "b", id="source")]})
  heldout = mixture("heldout", b={"test": [*sound(9, "other"), example(passage, "c", id="copied")]})
  twice = mixture("again", b={"test": []})  # the same folder: it exists, and is kept
  found = audit(train, [heldout, twice])
  assert [split.name for split in found.splits] == ["a (train)", "b (test)"]
  (problem,) = found.problems("leaks")
  assert problem.text == ("b (test): of 10 examples 1 share a 13-gram with training task a; first copied with source")
  assert found.problems("leaks", leak=0.1) == []


def test_leaks_are_found_in_examples_that_came_as_ids(mixture):
  """Their text is not in the cache."""
  passage = " ".join(f"word{i}" for i in range(20))
  ids = lambda text, target: example(text, target, [], id=text[:4]) | {"text": ""}
  for name, source in (("a", ids(f"read {passage}", "b")), ("c", ids("", f"read {passage}"))):
    train = mixture("train", **{name: {"train": [ids("some other text", "d"), source]}})
    found = audit(train, [mixture("heldout", b={"test": [example(passage, "c")]})])
    assert [(pair.train, pair.overlap.ngrams) for pair in found.leaks.pairs] == [(name, 1)]


def test_problems_come_by_check_and_share_and_only_those_that_are_asked(mixture):
  examples = [*sound(5), *sound(5), example("word1", "other", id="x"), example("no answer", "", id="y")]
  worse = [example("same", f"{i}") for i in range(10)]
  found = audit(mixture("train", a={"train": examples}, b={"train": worse}))
  assert [(each.check, each.where) for each in found.problems()] == [
    ("conflicts", "b (train)"),
    ("conflicts", "a (train)"),
    ("duplicates", "a (train)"),
    ("empty", "a (train)"),
  ]
  assert {each.check for each in found.problems(("duplicates",))} == {"duplicates"}
  assert found.problems("duplicates", duplicates=0.5) == []
  with pytest.raises(UserError, match=r"fail_on names 'leak'\n.*`leaks`"):
    found.problems(["leak"])


def test_the_lengths_of_either_side_are_kept(mixture):
  train = mixture("train", a={"train": sound(4)}, b={"train": sound(3, "longer word")})
  found = audit(train, [mixture("heldout", c={"validation": sound(2)})])
  assert {role: table.shape for role, table in found.lengths.items()} == {"train": (7, 2), "evaluation": (2, 2)}
  assert found.lengths["train"][:, 0].tolist() == [6] * 4 + [13] * 3


def test_progress_is_reported(mixture):
  seen = []
  train = mixture("train", a={"train": sound(2)}, b={"train": sound(2, "other")})
  audit(train, [mixture("heldout", c={"test": sound(2, "third")})], watch=lambda *each: seen.append(each))
  assert seen == [
    ("a train", 0, 5),
    ("b train", 1, 5),
    ("c test", 2, 5),
    ("a train, 13-grams", 3, 5),
    ("b train, 13-grams", 4, 5),
  ]


def test_bad_settings_are_named(mixture):
  train = mixture("train", a={"train": sound(2)})
  with pytest.raises(UserError, match=r"no task of 'train' has examples in split 'trian'\n.*`train`"):
    audit(train, split="trian")
  with pytest.raises(UserError, match="no task of 'train' has examples in split 'test' or 'validation'"):
    audit(train, [train])
  with pytest.raises(UserError, match="targets_length of the audit is 0"):
    audit(train, targets_length=0)
