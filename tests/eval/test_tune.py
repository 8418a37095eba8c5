"""Tuning on fractions: nested data, copies that leave the model as it was, and a stage that goes on."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from mtx.errors import UserError
from mtx.eval.evaluate import Evaluation
from mtx.eval.tune import Tune, _Tuner
from mtx.training.session import Carried

RATES = {".*": 1e-2}


@pytest.fixture(scope="module")
def plain(session_of, weights):
  model = session_of(None).blueprint(None, 1)
  return Carried(model, weights(model), None, ("any",), True)


def drawn(tune: Tune, session, plain, examples: int) -> list[list[int]]:
  tuner = _Tuner(session, plain, tune, [session.mixture("heldout").tasks[0].splits["train"][0]])
  batches = tuner._drawn(examples, "x")
  return [next(batches) for _ in range(tuner.steps(examples))]


def test_fractions_are_judged_and_the_model_is_left_as_it_was(plain, session_of, task_of, tmp_path):
  tasks = [task_of("reverse"), task_of("first")]
  session = replace(session_of(tmp_path, train=tasks, heldout=tasks), evaluate=Evaluation(examples=4))
  before = {path: np.array(value) for path, value in plain.params.items()}
  tune = Tune(RATES, fractions=(0.0, 0.25, 1.0), epochs=2, batch=4)
  assert tune.run(session, plain) is plain
  jax.tree.map(np.testing.assert_array_equal, dict(plain.params), before)
  rows = session.reporter.saved_rows("tune")
  methods = ["zero-shot", "single 25%", "single 100%", "multi 25%", "multi 100%"]
  assert list(dict.fromkeys(row["method"] for row in rows)) == methods and len(rows) == 5 * 2 * 2
  steps = {(row["method"], row["step"]) for row in rows}
  assert steps == {("zero-shot", 0), ("single 25%", 1), ("single 100%", 4), ("multi 25%", 2), ("multi 100%", 8)}
  for row in rows:
    lines = [json.loads(line) for line in (tmp_path / "tune" / row["method"] / f"{row['task']}.jsonl").open()]
    assert row["value"] == pytest.approx(np.mean([line[row["metric"]] for line in lines])) and len(lines) == 4
  # What is done is not done again.
  tune.run(session, plain)
  assert len(session.reporter.saved_rows("tune")) == len(rows)


def test_an_epoch_has_each_example_once(plain, session_of, task_of, tmp_path):
  session = session_of(tmp_path, train=[task_of("sort")], heldout=[task_of("sort")])
  batches = drawn(Tune(RATES, epochs=3, batch=4), session, plain, 8)
  rows = [row for batch in batches for row in batch]
  assert [sorted(rows[i : i + 8]) for i in range(0, 24, 8)] == [list(range(8))] * 3
  assert rows[:8] != rows[8:16]
  assert len(drawn(Tune(RATES, steps=5, batch=4), session, plain, 2)) == 5
  assert drawn(Tune(RATES, steps=5, batch=4), session, plain, 0) == []


def test_more_updates_on_the_data_fit_it_better(plain, session_of, task_of, tmp_path):
  task = task_of("copy")
  session = session_of(tmp_path, train=[task], heldout=[task])
  examples = [task.splits["train"][i] for i in range(8)]
  losses = [_Tuner(session, plain, Tune(RATES, steps=n, batch=8), examples)(examples, "x")[1] for n in (1, 12)]
  assert losses[1] < losses[0]


def test_routed_adapters_are_for_few_shots(carried, session_of, task_of, tmp_path):
  session = session_of(tmp_path, train=[task_of("sort")], heldout=[task_of("sort")])
  with pytest.raises(UserError, match="which has no routers"):
    Tune(RATES).run(session, carried)


@pytest.mark.parametrize(
  ("settings", "says"),
  [({"settings": ("singel",)}, "(?s)no setting 'singel'.*`single`"), ({"fractions": (25,)}, "25 is no share")],
)
def test_what_is_no_setting_is_named(settings, says):
  with pytest.raises(UserError, match=says):
    Tune(RATES, **settings)
