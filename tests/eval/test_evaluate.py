"""Rows of an evaluation are the metrics of its predictions, under the router rows that belong to the tasks."""

import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from mtx.adapters.routes import routing
from mtx.data.cache import CachedTask, write_split
from mtx.eval.evaluate import Evaluation, score_tasks, scored_examples
from mtx.eval.likelihood import Likelihood
from mtx.eval.rank import Ranker, accuracy
from mtx.tasks.metrics import mean_score
from mtx.training.session import rerouted

COMMON = {"stage": "s", "method": "m", "split": "train", "step": 4, "seed": 0}


@pytest.fixture(scope="module")
def half_right(task_of, predict):
  """half_right(name, router row): a task of which every other example's references hold what the model says."""

  def make(name, row):
    said = predict(task_of(name), row)
    return task_of(name, lambda i: ["something else", said[i]] if i % 2 else ["something else"]), said

  return make


def lines(file):
  return [json.loads(line) for line in file.read_text().splitlines()]


def test_rows_are_metrics_of_predictions(generator, carried, half_right, tmp_path):
  """Two tasks in one go: a row a task and metric, its value METRICS of the predictions, which are on file."""
  (one, said_one), (two, said_two) = half_right("sort", 2), half_right("copy", 0)
  file = tmp_path / "folder" / "predictions.jsonl"
  rows = score_tasks(generator, carried.params, [one, two], [2, 0], 6, COMMON, file)
  written = lines(file)
  assert [w["id"] for w in written] == [f"{t}-{i}" for t in ("sort", "copy") for i in range(6)]
  assert [w["inputs"] for w in written] == [e["text"] for task in (one, two) for e in scored_examples(task, 6)]
  assert [w["prediction"] for w in written] == said_one[:6] + said_two[:6]
  assert [(r["task"], r["metric"]) for r in rows] == [(t, m) for t in ("sort", "copy") for m in one.metrics]
  for row in rows:
    mine = [w for w in written if w["task"] == row["task"]]
    wanted = mean_score(row["metric"], [w["references"] for w in mine], [w["prediction"] for w in mine])
    assert row["value"] == pytest.approx(wanted, abs=1e-9)
    assert row["value"] == pytest.approx(np.mean([w[row["metric"]] for w in mine]), abs=1e-9)
    assert row.items() >= {**COMMON, "category": f"{row['task']}s", "count": 6}.items()
  assert [r["value"] for r in rows if r["metric"] == "exact_match"] == [50.0, 50.0]


def test_the_loss_of_what_a_mixture_draws(carried, session_of, task_of, mesh1, vocabulary, tmp_path):
  """A row a task: the mean over the target tokens of all examples; nothing while a stage is under way."""
  task = task_of("sort")
  session = session_of(tmp_path, train=[task], text=[task])
  evaluation = Evaluation(mixtures=(), losses=("text",), examples=8)
  (row,) = evaluation(session, carried, "s", 3, False)
  model = Likelihood(carried.model, session.config, mesh1, vocabulary, inputs_length=session.inputs_length)
  sums = model.targets(carried.params, scored_examples(task, 8), [carried.tasks.index("sort")] * 8, 6)
  assert row["value"] == pytest.approx(-sum(s.log_p for s in sums) / sum(s.tokens for s in sums), rel=1e-5)
  assert (row["task"], row["metric"], row["split"], row["count"]) == ("sort", "loss", "text", 8)
  assert evaluation(session, carried, "s", 3, True) == []


def test_known_tasks_use_their_own_rows(carried, session_of, task_of, predict, tmp_path):
  """Router rows are found by name: the mixture's order is another one than the routers'."""
  tasks = [task_of(name) for name in ("sort", "copy", "upper")]
  session = session_of(tmp_path, train=tasks)
  rows = Evaluation(mixtures=("train",), examples=8)(session, carried, "route", 7, False)
  written = lines(tmp_path / "route" / "predictions-train-7.jsonl")
  for task in tasks:
    row = carried.tasks.index(task.name)
    assert [w["prediction"] for w in written if w["task"] == task.name] == predict(task, row)
  assert {(r["stage"], r["method"], r["split"], r["step"], r["seed"]) for r in rows} == {
    ("route", "trained", "train", 7, 0)
  }


def test_unknown_tasks_mix_all_skills(carried, session_of, task_of, predict, tmp_path):
  """Zero-shot: as with every router at zero, which weighs each skill 1/S. Quick: a sample, no file."""
  tasks = [task_of("reverse"), task_of("sort")]
  session = session_of(tmp_path, train=[task_of("sort")], heldout=tasks)
  evaluation = Evaluation(mixtures=("heldout",), examples=8, sample=3)
  rows = evaluation(session, carried, "route", 7, False)
  written = lines(tmp_path / "route" / "predictions-heldout-7.jsonl")
  uniform = {p: jnp.zeros_like(v) if p.endswith("router") else v for p, v in carried.params.items()}
  assert predict(tasks[0], 0, uniform) != predict(tasks[0], 0)
  for task in tasks:
    assert [w["prediction"] for w in written if w["task"] == task.name] == predict(task, 0, uniform)
  assert {(r["method"], r["split"], r["count"]) for r in rows} == {("zero-shot", "heldout", 8)}
  quick = evaluation(session, carried, "quick", 8, True)
  assert {r["count"] for r in quick} == {3} and not list(tmp_path.glob("quick/predictions-*"))
  evaluation.sample = 0
  assert evaluation(session, carried, "quick", 8, True) == []


def test_evaluations_are_in_tensorboard(carried, session_of, task_of, tmp_path):
  """What routes and samples TensorBoard has is what the router weighs and the predictions file says."""
  tasks = [task_of("sort"), task_of("copy")]
  session = session_of(tmp_path, train=tasks)
  Evaluation(mixtures=("train",), examples=3)(session, carried, "route", 7, False)
  (file,) = (tmp_path / "events" / "route-evaluation").iterdir()
  data, at, values = file.read_bytes(), 0, {}
  while at < len(data):
    (length,) = struct.unpack("<Q", data[at : at + 8])
    event = Event.FromString(data[at + 12 : at + 12 + length])
    values |= {(event.step, value.tag): value for value in event.summary.value}
    at += 16 + length
  weights = routing(carried.params, carried.model.axes)
  assert values.keys() == {(7, f"routes/split_{i}") for i in range(weights.shape[1])} | {
    (7, "samples/train/text_summary")
  }
  for split in range(weights.shape[1]):
    histogram = values[7, f"routes/split_{split}"].histo
    assert histogram.num == weights[:, split].size
    assert histogram.sum == pytest.approx(weights[:, split].sum(), rel=1e-5)
    assert (histogram.min, histogram.max) == pytest.approx((weights[:, split].min(), weights[:, split].max()))
  table = values[7, "samples/train/text_summary"].tensor.string_val[0].decode().splitlines()[2:]
  written = lines(tmp_path / "route" / "predictions-train-7.jsonl")
  assert len(table) == len(written) == 6
  for row, line in zip(table, [written[i] for i in (0, 3, 1, 4, 2, 5)], strict=True):
    assert row.startswith(f"| {line['task']} | {line['inputs']} | ")


def test_options_are_ranked_where_that_is_asked_for(carried, session_of, task_of, vocabulary, mesh1, tmp_path):
  """The likeliest option is the answer, and the task's own metrics judge it; a task without options generates."""
  plain = task_of("copy")
  options = ["a", "something longer", "x"]
  examples = [{**plain.splits["test"][i], "options": options, "references": ["x"]} for i in range(4)]
  folder = write_split(tmp_path / "test", examples, fingerprint="options", ingredients={})
  chosen = CachedTask("sort", "sorts", ("exact_match",), "options", {"test": folder})
  session = session_of(tmp_path, train=[chosen, plain])
  rows = Evaluation(mixtures=("train",), examples=4, rank=True)(session, carried, "ranked", 1, False)
  written = lines(tmp_path / "ranked" / "predictions-train-1.jsonl")
  likelihood = Likelihood(carried.model, session.config, mesh1, vocabulary, inputs_length=session.inputs_length)
  found = Ranker(likelihood).examples(carried.params, examples, [carried.tasks.index("sort")] * 4)
  assert [w["prediction"] for w in written if w["task"] == "sort"] == [options[each.index] for each in found]
  assert [row["value"] for row in rows if row["task"] == "sort"] == [100 * accuracy(examples, found)]
  generated = Evaluation(mixtures=("train",), examples=4)
  generated(session, carried, "generated", 1, False)
  said = lines(tmp_path / "generated" / "predictions-train-1.jsonl")
  of_copy = lambda found: [w["prediction"] for w in found if w["task"] == "copy"]
  assert of_copy(written) == of_copy(said)
  assert all(w["prediction"] not in options for w in said if w["task"] == "sort")


def test_rerouting_replaces_task_axes_alone(carried, session_of):
  """Routers get rows of the new number; every other array is the very same object."""
  target = session_of(None).blueprint(carried.adapter, 5)
  calls = []

  def route(router, tasks, key):
    calls.append(key)
    return jnp.full((*router.shape[:-3], tasks, *router.shape[-2:]), len(calls), router.dtype)

  moved = rerouted(carried.params, carried.model, target, route, session_of(None).key("x"))
  assert {p: v.shape for p, v in moved.items()} == {p: s.shape for p, s in target.shapes.items()}
  routers = [p for p in moved if p.endswith("router")]
  assert len(routers) == len(calls) == 2 and len({int(moved[p].max()) for p in routers}) == 2
  assert all(moved[p] is carried.params[p] for p in moved if p not in routers)
  one, other = (jax.random.key_data(k) for k in calls)
  assert not np.array_equal(one, other)
