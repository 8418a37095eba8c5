"""Single-task baselines: each is what a stage makes of its task alone, and none sees another."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtx.errors import UserError
from mtx.eval.evaluate import Evaluation
from mtx.eval.single_task import SingleTask
from mtx.training.session import Carried
from mtx.training.stage import Stage

SETTINGS = {"steps": 3, "learning_rates": {".*": 1e-2}}


@pytest.fixture(scope="module")
def start(session_of):
  """Parameters that a stage before has left."""
  session = session_of(None)
  model = session.blueprint(None, 1)
  return Carried(model, model.initialise(jax.random.key(3), session.mesh), None, ("any",), True)


def test_a_task_is_trained_as_by_a_stage_that_has_it_alone(session_of, task_of, start, tmp_path):
  """Bit for bit, in whatever order tasks come; what all start from is left as it is, and handed on."""
  tasks = [task_of("sort"), task_of("reverse")]
  session = replace(session_of(tmp_path, train=tasks), evaluate=lambda *_: [])
  before = {p: np.array(v) for p, v in start.params.items()}
  train = SingleTask(**SETTINGS, name="alone").trainer(session, start)
  for task in tasks[::-1]:
    params, loss = train(task)
    alone = replace(session_of(tmp_path / task.name, train=[task]), evaluate=lambda *_: [])
    copy = replace(start, params={p: jnp.array(v) for p, v in before.items()})  # a stage uses up what it is given
    expected = Stage(**SETTINGS, name="learn").run(alone, copy).params
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert np.isfinite(loss) and any(not np.array_equal(params[p], before[p]) for p in params)
  jax.tree.map(np.testing.assert_array_equal, start.params, before)


def test_results_are_those_of_a_stage_and_a_stopped_run_goes_on(session_of, task_of, start, tmp_path):
  tasks = [task_of("sort"), task_of("reverse"), task_of("copy")]
  session = replace(session_of(tmp_path, train=tasks), evaluate=Evaluation(examples=4))
  stage = SingleTask(**SETTINGS, name="alone")
  handed = stage.run(session, start)
  jax.tree.map(np.testing.assert_array_equal, handed.params, start.params)
  rows = session.reporter.saved_rows("alone")
  assert {(r["task"], r["metric"]) for r in rows} == {(t.name, m) for t in tasks for m in t.metrics}
  assert {(r["method"], r["split"], r["step"], r["count"]) for r in rows} == {("trained", "train", 3, 4)}
  files = {task.name: tmp_path / "alone" / "trained" / f"{task.name}.jsonl" for task in tasks}
  written = {name: file.stat().st_mtime_ns for name, file in files.items()}
  stage.run(session, start)
  assert {name: file.stat().st_mtime_ns for name, file in files.items()} == written
  assert session.reporter.saved_rows("alone") == rows


def test_there_is_nothing_to_mix():
  with pytest.raises(UserError, match=r"alone/single_task\.rates"):
    SingleTask(**SETTINGS, rates=lambda *_: None, name="alone")
