"""Few-shot adaptation: which examples, what it trains, and that the inventory it starts from is left as it is."""

import json
from dataclasses import replace

import gin
import jax
import numpy as np
import pytest

from mtx.adapters.poly import ADAPTATIONS, mixture
from mtx.errors import UserError
from mtx.eval.evaluate import Evaluation
from mtx.eval.fewshot import Adapter, FewShot, shots
from mtx.training.parameters import partition

RATES = {r".*/adapter/router": 0.1, r".*/adapter/.*": 1e-2}


def ids(examples) -> list[str]:
  return [e["id"] for e in examples]


def test_shots_are_nested(task_of):
  """A smaller number is the beginning of a larger one; all are distinct examples of the train split."""
  task = task_of("sort")
  everything = ids(shots(task, 8, 3))
  for number in range(1, 8):
    assert ids(shots(task, number, 3)) == everything[:number]
  assert sorted(everything) == [f"sort-{i}" for i in range(8)]


def test_shots_follow_seed_and_task(task_of):
  """Another seed or another task draws in another order; the same ones draw the same."""
  task, other = task_of("sort"), task_of("copy")
  order = lambda task, seed: [i.split("-")[1] for i in ids(shots(task, 8, seed))]
  assert order(task, 0) == order(task_of("sort"), 0)
  assert len({tuple(order(task, seed)) for seed in range(4)}) == 4
  assert order(task, 0) != order(other, 0)


def test_more_shots_than_examples(task_of):
  with pytest.raises(UserError, match=r"fewshot.shots` = 9: task sort has 8") as error:
    shots(task_of("sort"), 9, 0)
  assert error.value.hint == "valid choices: 1 to 8."


@pytest.mark.parametrize("name", ["MHR-z", "MHR-mu"])
def test_adapting_one_task(carried, session_of, task_of, tmp_path, name):
  """Only what the method names moves, from a router that is no copy; the loss falls, and a second task starts anew."""
  task, adaptation = task_of("reverse"), ADAPTATIONS[name]
  session = session_of(tmp_path, train=[task])
  model = session.blueprint(carried.adapter, 1)
  shapes, _ = partition(model.shapes, {adaptation.trainable: 1.0})
  rates = {p: r for p, r in RATES.items() if any(partition(shapes, {p: r})[0])}
  once, often = (Adapter(session, carried, model, shapes, rates, n, adaptation, (32, 8)) for n in (1, 12))
  drawn, before = shots(task, 8, 0), {p: np.array(v) for p, v in carried.params.items()}
  key = jax.random.key(0)
  params, loss = often(drawn, key)
  for path, value in params.items():
    if path.endswith("router"):
      moved = np.abs(mixture(value) - mixture(np.zeros_like(value))).max()
      assert value.shape[1] == 1 and (moved == 0 if name == "MHR-mu" else moved > 0.01), path
    else:
      assert np.array_equal(value, before[path]) == (path not in shapes), path
  assert loss < once(drawn, key)[1]
  again, loss_again = often(drawn, key)
  assert loss_again == loss
  jax.tree.map(np.testing.assert_array_equal, again, params)
  jax.tree.map(np.testing.assert_array_equal, carried.params, before)


@pytest.fixture
def stage(session_of, task_of, tmp_path):
  """(a stage of two updates a task, its session): results and predictions of two tasks."""
  tasks = [task_of("reverse"), task_of("first")]
  session = session_of(tmp_path, train=tasks, heldout=tasks)
  session = replace(session, evaluate=Evaluation(examples=4, metrics=("chrf",)))
  return FewShot(methods=("MHR-z",), shots=4, steps=2, learning_rates=RATES), session


def test_results_have_the_metrics_of_the_run(stage, carried, tmp_path):
  few, session = stage
  few.run(session, carried)
  rows = session.reporter.saved_rows("fewshot")
  assert {(row["task"], row["metric"]) for row in rows} == {
    (task, metric) for task in ("reverse", "first") for metric in ("exact_match", "rouge_l", "chrf")
  }
  line = json.loads((tmp_path / "fewshot" / "MHR-z" / "first.jsonl").read_text().splitlines()[0])
  assert {"exact_match", "rouge_l", "chrf"} <= line.keys()


def test_what_is_done_holds_as_long_as_the_model_does(stage, carried, tmp_path):
  """A second start adapts nothing; after the stages before have trained on, what there was is judged anew."""
  few, session = stage
  few.run(session, carried)
  files = sorted((tmp_path / "fewshot").rglob("*.jsonl"))
  stamps = [file.stat().st_mtime_ns for file in files]
  few.run(session, carried)
  assert [file.stat().st_mtime_ns for file in files] == stamps
  other = replace(carried, params={path: value * 1.01 for path, value in carried.params.items()})
  stray = files[0].with_name("gone.jsonl")
  stray.write_text("of a task that is not there any more")
  few.run(session, other)
  said = session.reporter.console.file.getvalue()
  assert said.count("fewshot: the model is not the one that was judged before; it is judged anew") == 1
  assert all(file.stat().st_mtime_ns > stamp for file, stamp in zip(files, stamps, strict=True)) and not stray.exists()
  assert len(session.reporter.saved_rows("fewshot")) == 2 * 3


def test_a_scope_names_the_stage():
  with gin.config_scope("first"):
    assert FewShot(learning_rates=RATES).name == "first"
  assert FewShot(learning_rates=RATES).name == "fewshot"
