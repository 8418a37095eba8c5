"""What metrics read is on file: scores of a predictions file are those of the evaluation that wrote it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mtx.errors import UserError
from mtx.eval.evaluate import Evaluation, score_tasks
from mtx.eval.rank import Ranker, accuracy
from mtx.eval.scoring import score_lines, with_scores
from mtx.tasks.metrics import METRICS

COMMON = {"stage": "s", "method": "m", "split": "train", "step": 4, "seed": 0}
OPTIONS = ["yes", "no", "maybe"]


def choosing(task, metrics, options=OPTIONS):
  """The same task, of which each example has options; the answer is each of them in turn."""
  examples = [
    dict(e, options=options, references=[options[i % len(options)]]) for i, e in enumerate(task.splits["test"])
  ]
  return replace(task, metrics=metrics, splits={"test": examples})


def read(file):
  return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_options_are_ranked_where_a_metric_asks(generator, carried, task_of, tmp_path):
  """By the model that generates, with the task's router row; texts and scores of all other tasks are as without."""
  plain, ranked = task_of("copy"), choosing(task_of("sort"), ("accuracy", "exact_match", "auroc", "ece", "macro_f1"))
  file = tmp_path / "predictions.jsonl"
  rows = score_tasks(generator, carried.params, [plain, ranked], [1, 2], 6, COMMON, file)
  expected = Ranker(generator.likelihood).examples(carried.params, ranked.splits["test"][:6], [2] * 6)
  lines = [line for line in read(file) if line["task"] == "sort"]
  for line, each in zip(lines, expected, strict=True):
    assert line["options"] == OPTIONS and line["option_scores"] == each.scores.tolist()
    assert line["accuracy"] == 100.0 * (OPTIONS[each.index] in line["references"])
    assert {"exact_match", "prediction"} <= line.keys() and not {"auroc", "ece", "macro_f1"} & line.keys()
  values = {row["metric"]: row["value"] for row in rows if row["task"] == "sort"}
  assert tuple(values) == ranked.metrics
  assert values["accuracy"] == pytest.approx(100 * accuracy(ranked.splits["test"][:6], expected))
  alone = tmp_path / "alone.jsonl"
  assert rows[:2] == score_tasks(generator, carried.params, [plain], [1], 6, COMMON, alone)
  assert read(alone) == read(file)[:6] and not {"options", "option_scores"} & read(alone)[0].keys()


def test_a_file_gives_the_same_scores_again(generator, carried, task_of, tmp_path):
  """Exactly, by every metric: nothing that one reads is lost in writing."""
  names = tuple(name for name, metric in METRICS.items() if metric.needs != "number")
  task, file = choosing(task_of("sort"), names), tmp_path / "predictions.jsonl"
  rows = score_tasks(generator, carried.params, [task], [0], 8, COMMON, file)
  lines = read(file)
  found = score_lines(lines, names)
  assert {row["metric"]: row["value"] for row in rows} == {name: score.value for name, score in found.items()}
  assert with_scores(lines, found) == lines
  for name, score in found.items():
    if score.items is not None:
      assert score.value == pytest.approx(np.mean(score.items))
      assert [line[name] for line in lines] == score.items


def test_more_metrics_are_of_tasks_that_have_what_they_need(carried, session_of, task_of, tmp_path):
  tasks = [task_of("sort"), choosing(task_of("copy"), ("exact_match",))]
  session = session_of(tmp_path, train=tasks)
  rows = Evaluation(("train",), examples=4, metrics=("ece", "chrf", "exact_match"))(session, carried, "route", 7, False)
  found = {task.name: [row["metric"] for row in rows if row["task"] == task.name] for task in tasks}
  assert found == {"sort": ["exact_match", "rouge_l", "chrf"], "copy": ["exact_match", "ece", "chrf"]}
  with pytest.raises(UserError, match="metric 'eec' is not known\n  did you mean `ece`"):
    Evaluation(metrics=("eec",))


@pytest.mark.parametrize(
  ("metrics", "options", "said"),
  [
    (("exact_match", "accuracy"), None, "'accuracy' can not score task 'sort', example 'sort-0': it has no options"),
    (("spearman",), OPTIONS, "'spearman' can not score task 'sort', example 'sort-0': its reference 'yes' has no"),
  ],
)
def test_what_can_not_be_scored_is_not_begun(carried, task_of, metrics, options, said):
  def generate(params, examples, task_ids):
    raise AssertionError("generated")

  task = task_of("sort")
  task = replace(task, metrics=metrics) if options is None else choosing(task, metrics)
  with pytest.raises(UserError, match=f"metric {said}"):
    score_tasks(generate, carried.params, [task], [0], 4, COMMON, None)


def test_what_is_undefined_has_no_row(generator, carried, task_of):
  task = choosing(task_of("sort"), ("accuracy", "auroc"))
  rows = score_tasks(generator, carried.params, [task], [0], 1, COMMON, None)
  assert [row["metric"] for row in rows] == ["accuracy"]


def test_another_prompt_can_be_ranked(generator, carried, task_of):
  """Whoever generates in another way ranks in another way too."""
  task, asked = choosing(task_of("sort"), ("accuracy",)), []

  def rank(params, examples, task_ids):
    asked.append((list(examples), list(task_ids)))
    return Ranker(generator.likelihood).examples(params, examples, task_ids)

  (row,) = score_tasks(generator, carried.params, [task], [1], 3, COMMON, None, rank=rank)
  assert asked == [(task.splits["test"][:3], [1] * 3)] and row["count"] == 3


def test_what_has_options_is_chosen_and_the_rest_generated(generator, carried, task_of, tmp_path):
  """In the examples' order; neither way is asked about what the other answers, nor is anything ranked twice."""
  asked, said = [], []

  def rank(params, examples, task_ids):
    asked.append([e["id"] for e in examples])
    return Ranker(generator.likelihood).examples(params, examples, task_ids)

  def generate(params, examples, task_ids):
    said.append([(e["id"], i) for e, i in zip(examples, task_ids, strict=True)])
    return [f"said of {e['id']}" for e in examples]

  mixed, ranked = choosing(task_of("copy"), ("exact_match",)), choosing(task_of("sort"), ("accuracy", "exact_match"))
  for example in mixed.splits["test"][1:3]:
    del example["options"]
  file = tmp_path / "chosen.jsonl"
  score_tasks(generate, carried.params, [mixed, ranked], [1, 2], 4, COMMON, file, choose=True, rank=rank)
  assert asked == [["copy-0", "copy-3", *(f"sort-{i}" for i in range(4))]] and said == [[("copy-1", 1), ("copy-2", 1)]]
  for line in read(file):
    if "options" in line:
      assert line["prediction"] == line["options"][int(np.argmax(line["option_scores"]))]
    else:
      assert line["prediction"] == f"said of {line['id']}" and "option_scores" not in line
  asked.clear()
  score_tasks(generate, carried.params, [ranked], [2], 4, COMMON, None, choose=True, rank=rank)
  assert len(asked) == len(said) == 1
