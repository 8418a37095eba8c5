"""A grid asks every cell the same items, shows no item that is judged, and goes on cell by cell to the same end."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mtx.data.cache import CachedTask, write_split
from mtx.errors import UserError
from mtx.eval.answer import Answerer
from mtx.eval.evaluate import scored_examples
from mtx.eval.fewshot import FewShot
from mtx.eval.grid import Grid
from mtx.eval.prompts import Prompt, asked
from mtx.eval.protocol import Protocol
from mtx.eval.scoring import write_lines
from mtx.eval.statistics import align
from mtx.report.compare import compare_runs
from mtx.report.log import read_results
from mtx.report.runs import open_runs
from mtx.tasks.encode import encoded
from mtx.tasks.shots import shots
from mtx.tasks.task import Reading, TextTask

TRAIN, TEST = 6, 4
LENGTH = 96
WORDS = {"train": ("one", "two", "three", "four", "five", "six"), "test": ("seven", "eight", "nine", "ten")}
RATES = {r".*/adapter/router": 0.1, r".*/adapter/.*": 1e-2}


def text_rows(split, reading, *, name, options):
  for i, word in enumerate(WORDS[split]):
    row = {"id": f"{name}-{split}-{i}", "inputs": f"{name} {word}", "targets": "odd" if len(word) % 2 else "even"}
    yield {**row, "options": ["odd", "even"]} if options else row


@pytest.fixture(scope="module")
def task_of(tmp_path_factory, vocabulary):
  """task_of(name, options=...): a cached task of words, and the same as text."""

  def make(name, options=False, category="words"):
    from functools import partial

    text = TextTask(name, category, partial(text_rows, name=name, options=options), {"train": TRAIN, "test": TEST})
    folder = tmp_path_factory.mktemp(name)
    splits = {}
    for split in text.splits:
      examples = list(encoded(text, split, Reading(vocabulary.encode), vocabulary.eos_id))
      splits[split] = write_split(folder / f"{split}-{name}", examples, fingerprint=name, ingredients={})
    return CachedTask(name, category, ("exact_match",), name, splits), text

  return make


@pytest.fixture(scope="module")
def mixtures(task_of):
  """A trained task, a held-out one of its category, and one of another category, whose options are ranked."""
  held = [task_of("reverse")[0], task_of("parity", options=True, category="numbers")[0]]
  return {"train": [task_of("sort")[0]], "heldout": held}


@pytest.fixture(scope="module")
def protocol():
  tuned = FewShot(methods=("MHR-z",), steps=2, learning_rates=RATES)
  prompts = {"plain": "{inputs}", "question": "Q: {inputs}?"}
  given = {"selectors": ("random", "bm25"), "prompts": prompts, "tuned": tuned, "inputs_length": LENGTH}
  return Protocol(shots=(0, 2), examples=3, **given)


def sessions_of(session_of, mixtures, folder, seeds=(0, 1)):
  return [replace(session_of(folder / f"m-{seed}", **mixtures), seed=seed) for seed in seeds]


@pytest.fixture(scope="module")
def done(protocol, carried, session_of, mixtures, tmp_path_factory):
  """A grid from end to end, with its rows."""
  folder = tmp_path_factory.mktemp("grid")
  sessions = sessions_of(session_of, mixtures, folder)
  return folder, protocol.grid(sessions, carried)


def predictions(folder):
  return {
    path.relative_to(folder).as_posix(): [json.loads(line) for line in path.read_text().splitlines()]
    for path in sorted(folder.rglob("*.jsonl"))
  }


def test_every_cell_has_the_same_items(done):
  """Seeds x cells x tasks, all paired by item; rows are means of the scores on file."""
  folder, rows = done
  files = predictions(folder)
  cells = ["zero-shot", "zero-shot-question"]
  cells += [f"2-shot-{how}{p}" for how in ("random", "bm25", "MHR-z") for p in ("", "-question")]
  tasks = ("reverse", "parity", "sort")
  assert files.keys() == {f"m-{s}/protocol/{c}/{t}.jsonl" for s in (0, 1) for c in cells for t in tasks}
  for task in tasks:
    ids = {tuple(line["id"] for line in lines) for name, lines in files.items() if name.endswith(f"/{task}.jsonl")}
    assert ids == {tuple(f"{task}-test-{i}" for i in range(3))}
  for row in (row for of_seed in rows for row in of_seed if row["prompt"] != "median"):
    lines = files[f"m-{row['seed']}/protocol/{row['method']}/{row['task']}.jsonl"]
    assert row["value"] == pytest.approx(np.mean([line["exact_match"] for line in lines]))
  levels = {row["task"]: (row["level"], row["split"]) for row in rows[0]}
  assert levels == {"reverse": ("task", "heldout"), "parity": ("category", "heldout"), "sort": ("instance", "train")}
  medians = [row for row in rows[0] if row["prompt"] == "median"]
  assert {row["method"] for row in medians} == {c for c in [*[f"{c}-median" for c in cells if "question" not in c]]}
  assert read_results(folder / "m-1") == rows[1]


def test_options_are_ranked(done):
  """The prediction is the option with the highest score, which is on file with those of all others."""
  for name, lines in predictions(done[0]).items():
    for line in lines:
      assert ("option_scores" in line) == name.endswith("/parity.jsonl")
      if "option_scores" in line:
        assert line["prediction"] == line["options"][int(np.argmax(line["option_scores"]))]
        assert line["exact_match"] == 100.0 * (line["prediction"] in line["references"])


def test_what_seeds_change(done):
  """Shots that are drawn depend on the seed; zero-shot and nearest ones do not."""
  files = predictions(done[0])
  inputs = lambda seed, cell: [line["inputs"] for line in files[f"m-{seed}/protocol/{cell}/reverse.jsonl"]]
  for cell in ("zero-shot", "2-shot-bm25"):
    assert files[f"m-0/protocol/{cell}/reverse.jsonl"] == files[f"m-1/protocol/{cell}/reverse.jsonl"]
  assert inputs(0, "2-shot-random") != inputs(1, "2-shot-random")
  assert inputs(0, "zero-shot-question") == [f"Q: reverse {word}?" for word in WORDS["test"][:3]]


def test_shots_are_from_the_pool_alone(done):
  for name, lines in predictions(done[0]).items():
    for line in lines:
      shown = line["inputs"].split("\n\n")
      assert len(shown) == (3 if "2-shot-random" in name or "2-shot-bm25" in name else 1)
      assert not any(word in text for text in shown[:-1] for word in WORDS["test"])


@pytest.mark.parametrize("selector", ["random", "fixed", "bm25", "balanced"])
def test_prompts_are_those_of_text_tasks(task_of, vocabulary, selector):
  """What is made of a cached task is what a few-shot task would have had in the cache."""
  cached, text = task_of("sort", options=True)
  words = {"query": "Q: {inputs}?", "demonstration": "Q: {inputs}? {targets}"}
  made = asked(cached, Prompt(**words), vocabulary, 4, k=3, selector=selector, seed=5, inputs_length=70)
  wanted = shots(text, 3, selector, seed=5, inputs_length=70, **words)
  reading = Reading(vocabulary.encode)
  for example, same in zip(made, encoded(wanted, "test", reading, vocabulary.eos_id), strict=True):
    assert example.keys() == same.keys()
    for field in example:
      np.testing.assert_array_equal(example[field], same[field])
  plain = asked(cached, Prompt(), vocabulary, 4)
  assert [e["id"] for e in plain] == [e["id"] for e in made]
  assert [e["text"] for e in plain] == [e["text"] for e in scored_examples(cached, 4)]


def test_other_metrics_of_what_was_answered(protocol, carried, session_of, mixtures, tmp_path, monkeypatch):
  """A ranked task gets accuracy and calibration from its options' scores, without being answered again."""
  small = replace(protocol, shots=(0,), prompts=None, tuned=None, levels=("category",))
  grid = lambda **more: replace(small, **more).grid([session_of(tmp_path, **mixtures)], carried)[0]
  (first,) = grid()
  monkeypatch.setattr(Answerer, "__call__", None)
  found = {row["metric"]: row["value"] for row in grid(metrics=("accuracy", "ece"))}
  assert found.keys() == {"accuracy", "ece"} and found["accuracy"] == pytest.approx(first["value"])


class Stop(Exception):
  pass


def test_goes_on_cell_by_cell(done, protocol, carried, session_of, mixtures, tmp_path, monkeypatch):
  """Killed at any answer, the same command answers only what is not on file, and ends with the same files and rows."""
  folder, rows = done
  real, calls = Answerer.__call__, []

  def counted(self, *given):
    calls.append(1)
    if len(calls) == stop:
      raise Stop
    return real(self, *given)

  monkeypatch.setattr(Answerer, "__call__", counted)
  total = 0
  for stop in (2, 3, 4, 6, 10**6):  # noqa: B007
    calls.clear()
    sessions = sessions_of(session_of, mixtures, tmp_path)
    try:
      found = protocol.grid(sessions, carried)
    except Stop:
      total -= 1
    total += len(calls)
  assert found == rows and predictions(tmp_path) == predictions(folder)
  calls.clear()
  assert protocol.grid(sessions_of(session_of, mixtures, tmp_path), carried) == rows
  assert not calls
  # Scores are made again of what was answered.
  (tmp_path / "m-0" / "results.json").unlink()
  again = protocol.grid(sessions_of(session_of, mixtures, tmp_path), carried)
  assert not calls and sorted(map(str, again[0])) == sorted(map(str, rows[0]))
  # Tasks with router rows and without are answered apart; what is drawn, for each seed; what is tuned, for each task.
  once = 2 * 4 + 2 * 2 * 2 + 3 * 2 * 2
  assert once <= total <= once + 4  # each kill may lose the one answer that was waiting for another


def test_a_grid_can_grow(done, protocol, carried, session_of, mixtures, tmp_path):
  small = replace(protocol, shots=(0,), prompts=None, tuned=None)
  sessions = sessions_of(session_of, mixtures, tmp_path, seeds=(0,))
  (first,) = small.grid(sessions, carried)
  (more,) = replace(small, shots=(0, 1)).grid(sessions, carried)
  assert [row for row in more if not row["shots"]] == first and {row["shots"] for row in more} == {0, 1}


def test_other_settings_are_refused(done, protocol, carried, session_of, mixtures):
  folder, _ = done
  sessions = sessions_of(session_of, mixtures, folder)
  with pytest.raises(UserError, match="other settings: examples was 3 and is 2"):
    replace(protocol, examples=2).grid(sessions, carried)
  other = replace(carried, params={path: value * 1.01 for path, value in carried.params.items()})
  with pytest.raises(UserError, match="has results of another model"):
    protocol.grid(sessions, other)


def test_a_stage_judges_a_model_anew_that_was_trained_on(protocol, carried, session_of, mixtures, tmp_path):
  """In a run the earlier model is gone; what it answered is never taken for answers of the one that is there."""
  small = replace(protocol, shots=(0,), prompts=None, tuned=None, tasks=("reverse",))
  session = session_of(tmp_path, **mixtures)
  assert small.run(session, carried) is carried
  (row,) = session.reporter.saved_rows("protocol")
  file = tmp_path / "protocol" / "zero-shot" / "reverse.jsonl"
  lines = [json.loads(line) for line in file.read_text().splitlines()]
  write_lines(file, [line | {"prediction": "an answer it never gave"} for line in lines])
  small.run(session, carried)
  assert session.reporter.saved_rows("protocol") == [row] and "never gave" in file.read_text()
  small.run(session, replace(carried, params={path: value * 1.01 for path, value in carried.params.items()}))
  assert "judged anew" in session.reporter.console.file.getvalue()
  assert "never gave" not in file.read_text()


def test_a_corrupt_line_is_named(protocol, carried, session_of, mixtures, tmp_path):
  small = replace(protocol, shots=(0,), prompts=None, tuned=None)
  run = lambda: small.grid(sessions_of(session_of, mixtures, tmp_path, (0,)), carried)
  run()
  file = tmp_path / "m-0" / "protocol" / "zero-shot" / "reverse.jsonl"
  whole = file.read_text()
  file.write_text(whole[:-20])
  with pytest.raises(UserError, match=r"reverse\.jsonl:3 is not JSON"):
    run()
  file.write_text("".join(whole.splitlines(keepends=True)[:2]))
  with pytest.raises(UserError, match="has 2 items; task reverse is judged on 3"):
    run()


def test_runs_of_unequal_items_are_not_compared(protocol, carried, session_of, mixtures, tmp_path):
  small = replace(protocol, shots=(0,), prompts=None, tuned=None)
  for name, examples in (("a", 3), ("b", 2)):
    session = session_of(tmp_path / name, **mixtures)
    (rows,) = replace(small, examples=examples).grid([session], carried)
    assert {row["count"] for row in rows} == {examples}
  with pytest.raises(UserError, match=r"reverse.*reverse-test-2"):
    compare_runs(open_runs([tmp_path / "a", tmp_path / "b"]))


@pytest.mark.parametrize(
  "changes, said, hint",
  [
    ({"pool": "test"}, "`protocol.pool` = 'test': task reverse is judged on that split", "it has train"),
    ({"pool": "trian"}, "task reverse has no split 'trian'", "it has train"),
    ({"shots": (0, 7)}, "task reverse has 6 examples in 'train', and 7 are asked for", "at most 6"),
    ({"metrics": ("exact_mach",)}, "task reverse has no metric 'exact_mach'", "exact_match"),
    ({"metrics": ("accuracy",)}, "'accuracy' can not score task 'reverse', example 'reverse-test-0'", "options"),
  ],
)
def test_mistakes_are_told_before_anything_is_answered(
  protocol, session_of, mixtures, tmp_path, changes, said, hint, monkeypatch
):
  monkeypatch.setattr(Grid, "__call__", None)
  with pytest.raises(UserError) as error:
    replace(protocol, **changes).grid(sessions_of(session_of, mixtures, tmp_path), None)
  assert said in error.value.message and hint in error.value.hint


def test_shots_of_a_prompt_itself_are_told(protocol, carried, session_of, mixtures, task_of, tmp_path):
  """What is called zero-shot is not, where the source has put shots before the inputs."""
  small = replace(protocol, shots=(0,), prompts=None, tuned=None)
  session = session_of(tmp_path, **{**mixtures, "heldout": [task_of("reverse_2shot_bm25")[0]]})
  small.grid([session], carried)
  said = session.reporter.console.file.getvalue()
  assert "the prompts of 1 tasks begin with shots of their own, to which cells add: reverse_2shot_bm25" in said


def test_a_shot_that_is_judged_is_named(protocol, session_of, mixtures, task_of, tmp_path):
  """A pool that holds a judged item, whatever its split is called."""
  cached, _ = task_of("sort")
  leaky = replace(cached, name="leaky", splits={"test": cached.splits["test"], "train": _Both(cached)})
  with pytest.raises(UserError, match="item 'sort-test-0' of task leaky is judged"):
    protocol.grid([session_of(tmp_path, **{**mixtures, "heldout": [leaky]})], None)


class _Both:
  """A split that begins with what another one has."""

  def __init__(self, task):
    self.folder, self._parts = task.splits["train"].folder, [task.splits["test"], task.splits["train"]]

  def __len__(self):
    return sum(map(len, self._parts))

  def __getitem__(self, i):
    return self._parts[0][i] if i < len(self._parts[0]) else self._parts[1][i - len(self._parts[0])]


@pytest.mark.parametrize(
  "given, said",
  [
    ({"shots": ()}, "protocol.shots"),
    ({"shots": (-1,)}, "protocol.shots"),
    ({"selectors": ("bm52",)}, "no 'bm52'"),
    ({"prompts": {"median": "{inputs}"}}, "can not be called 'median'"),
    ({"prompts": {"a": "{input}"}}, "field {input}"),
    ({"prompts": {"a": {"ask": "x"}}}, "is no prompt"),
  ],
)
def test_grids_that_are_none(given, said):
  with pytest.raises(UserError) as error:
    Protocol(**given).cells()
  assert said in error.value.message


def test_paired_by_align(done):
  """Cells of one model are arms on the same items and seeds."""
  files = predictions(done[0])
  arms = {
    cell: {
      seed: {(line["task"], line["id"]): line["exact_match"] for t in ("reverse", "sort")
             for line in files[f"m-{seed}/protocol/{cell}/{t}.jsonl"]}
      for seed in (0, 1)
    }
    for cell in ("zero-shot", "2-shot-random", "2-shot-MHR-z")
  }  # fmt: skip
  assert align(arms).arms["zero-shot"].shape == (2, 6)
