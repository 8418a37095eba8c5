"""The order of stages: one that names another starts from its model, as if nothing had been trained in between."""

import numpy as np
import pytest

from mtx.pretrained.model import open_model
from mtx.run import main

pytest.importorskip("seqio")
GIN = """
train.source = @procedural
procedural.examples = 16
train.cache_dir = 'cache'
train.inputs_length = 24
train.targets_length = 8
evaluation.mixtures = ()
model.preset = 't5_micro'
model.overrides = {'encoder_layers': 1, 'decoder_layers': 1}
feed.batch = 8
stage.learning_rates = {'.*': 1e-2}
first/stage.steps = 2
one/stage.steps = 2
other/stage.steps = 3
other/stage.after = 'first'
"""


@pytest.fixture
def train(tmp_path, monkeypatch, capsys):
  """train(name, stages, bindings): the exit code and what was said."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "run.gin").write_text(GIN)

  def run(name: str, *stages: str, bindings: tuple[str, ...] = ()) -> tuple[int, str]:
    listed = ", ".join(f"@{stage}/stage()" for stage in stages)
    words = [f"--gin.train.stages=[{listed}]", f"--gin.train.run_dir='{name}'", *bindings]
    code = main(["train", "--gin_file=run.gin", *words])
    out, err = capsys.readouterr()
    return code, out + err

  return run


@pytest.fixture
def parameters(mesh1):
  """parameters(run): of the model that a run ended with."""
  return lambda run: {path: np.asarray(value) for path, value in open_model(f"{run}/model", mesh1).params.items()}


def test_a_stage_starts_from_the_stage_it_names(train, parameters):
  for name, stages in {"apart": ("first", "one", "other"), "alone": ("first", "other")}.items():
    code, said = train(name, *stages)
    assert code == 0, said
  apart, alone = parameters("apart"), parameters("alone")
  assert apart.keys() == alone.keys()
  for path, value in alone.items():
    np.testing.assert_array_equal(apart[path], value, err_msg=path)
  # What was there is there: the same command trains nothing, and ends with the same model.
  assert train("apart", "first", "one", "other")[0] == 0
  np.testing.assert_array_equal(parameters("apart")[path], alone[path])


def test_a_stage_that_is_not_before_is_named(train):
  code, said = train("x", "first", "other", bindings=("--gin.other/stage.after='frist'",))
  assert code == 2 and "`other/stage.after`: 'frist' is no stage before 'other'" in said and "`first`" in said
