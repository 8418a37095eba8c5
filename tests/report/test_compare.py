"""Differences between runs and methods are those of their predictions."""

import numpy as np
import pytest

from mtx.errors import UserError
from mtx.report.compare import compare_methods, compare_runs
from mtx.report.record import write_record
from mtx.report.runs import arms, open_runs


def test_differences_are_of_the_files(make_run, tmp_path):
  runs = open_runs([make_run(tmp_path / "a"), make_run(tmp_path / "b", skill=(0.9, 0.5, 0.7))])
  compared, notes = compare_runs(runs)
  assert notes == [] and [each.method for each in compared] == ["zero-shot", "MHR-z", "MHR"]
  first = compared[0]
  values = [np.array(list(run.evaluated[0].scores("exact_match").values())) for run in runs]
  found = first.by_item.intervals["b", "a"]
  assert found.estimate == pytest.approx((values[1] - values[0]).mean())
  assert found.low < found.estimate < found.high and first.by_item.adjusted["b", "a"] < 0.05
  assert first.by_item.letters == {"b": "a", "a": "b"}
  assert first.by_task.intervals["b", "a"].estimate == pytest.approx(found.estimate)  # tasks are of equal size
  for line in first.tasks:
    mine = [v.reshape(6, 20)[sorted(t.task for t in first.tasks).index(line.task)].mean() for v in values]
    assert line.means == pytest.approx(tuple(mine)) and line.count == 20
    assert line.differences[0].estimate == pytest.approx(mine[1] - mine[0])
  # Equal predictions: no difference, and none is found.
  assert compared[2].by_item.letters["a"] == compared[2].by_item.letters["b"] == "a"


def test_methods_of_a_run_are_compared_where_items_are_equal(make_run, tmp_path):
  (run,) = open_runs([make_run(tmp_path / "run", skill=(0.1, 0.5, 0.9))])
  (found,) = compare_methods(run)
  assert found.arms == ("zero-shot", "MHR-z", "MHR") and found.method is None and found.items == 120
  assert list(found.by_item.means) == ["MHR", "MHR-z", "zero-shot"]
  assert found.by_item.letters == {"MHR": "a", "MHR-z": "b", "zero-shot": "c"}


def test_folders_that_end_with_their_seed_are_one_arm(make_run, tmp_path):
  folders = [make_run(tmp_path / f"{arm}-{seed}", seed=seed, items=4) for arm in "ab" for seed in (0, 1)]
  runs = open_runs(folders)
  assert {arm: list(of) for arm, of in arms(runs).items()} == {"a": [0, 1], "b": [0, 1]}
  compared, _ = compare_runs(runs)
  assert compared[0].arms == ("a", "b") and compared[0].seeds == 2
  assert list(arms(runs[:2])) == ["a-0", "a-1"]  # seeds of one arm only: each for itself
  assert list(arms(runs[:3])) == ["a-0", "a-1", "b-0"]  # unequal seeds
  assert list(arms(runs[::2])) == ["a-0", "b-0"]  # one seed


def test_runs_that_read_other_data_under_the_same_ids_are_told(make_run, tmp_path):
  a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
  file = b / "route" / "predictions-heldout-100.jsonl"
  file.write_text(file.read_text().replace("Question", "Another question"))
  _, notes = compare_runs(open_runs([a, b]))
  assert len(notes) == 1 and "zero-shot" in notes[0] and "120 of 120 items" in notes[0]


def test_seeds_may_show_other_examples_in_their_prompts(make_run, tmp_path):
  """Items are those of the same seed in the other arm."""
  folders = [make_run(tmp_path / f"{arm}-{seed}", seed=seed, items=4) for arm in "ab" for seed in (0, 1)]
  files = [folder / "route" / "predictions-heldout-100.jsonl" for folder in folders]
  for file in files[1::2]:
    file.write_text(file.read_text().replace("Question", "An example, and a question"))
  assert compare_runs(open_runs(folders))[1] == []
  files[1].write_text(files[0].read_text())
  (note,) = compare_runs(open_runs(folders))[1]
  assert "another input" in note


def test_what_a_run_has_not_come_to_yet_is_left_out(make_run, tmp_path):
  a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b", skill=(0.2, 0.9, 0.7))
  for name in ("strings_1", "strings_2"):
    (b / "fewshot" / "MHR-z" / f"{name}.jsonl").unlink()
  with pytest.raises(UserError, match="strings_1/strings_1/test/0"):
    compare_runs(open_runs([a, b]))
  write_record(b, finished=False)
  compared, notes = compare_runs(open_runs([a, b]))
  assert [each.items for each in compared] == [120, 80, 120]
  assert notes == ["held-out tasks, MHR-z: without strings_1, strings_2, which not all runs have done"]


def test_no_interval_is_a_point_where_answers_differ(make_run, tmp_path):
  """Two seeds that differ in the mean by the same single item: what scatters can not be told apart from chance."""
  for arm in "ab":
    for seed in (0, 1):
      folder = make_run(tmp_path / f"{arm}-{seed}", seed=seed, skill=(0.0, 0.0, 0.0))
      if arm == "b":
        file = folder / "route" / "predictions-heldout-100.jsonl"
        lines = file.read_text().splitlines()
        lines[5 * seed] = lines[5 * seed].replace('"exact_match": 0.0', '"exact_match": 100.0')
        file.write_text("\n".join(lines) + "\n")
  compared, _ = compare_runs(open_runs([tmp_path / f"{arm}-{seed}" for arm in "ab" for seed in (0, 1)]))
  for over, comparison in compared[0].shown:
    assert all(interval.high > interval.low for interval in comparison.intervals.values()), over
