"""What a user gets wrong: one message that names it and what would work, exit code 2, and nothing saved is touched."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from mtx.run import main

pytest.importorskip("seqio")
REPOSITORY = Path(__file__).parents[1]
TRAIN, TEST = "task001_shout", "task002_whisper"


def task(category: str) -> dict:
  example = lambda i: {"input": f"word {i}", "output": f"WORD {i}"}
  return {
    "Definition": ["Write the words in capital letters."],
    "Positive Examples": [example(i) | {"explanation": ""} for i in range(2)],
    "Negative Examples": [],
    "Categories": [category],
    "Instances": [{"id": f"{category}-{i}", "input": f"word {i}", "output": [f"WORD {i}"]} for i in range(40)],
  }


@pytest.fixture
def checkout(tmp_path) -> Path:
  """A small, good checkout of Super-NaturalInstructions."""
  root = tmp_path / "superni"
  (root / "tasks").mkdir(parents=True)
  (root / "splits" / "default").mkdir(parents=True)
  for name, category in ((TRAIN, "Shouting"), (TEST, "Whispering")):
    (root / "tasks" / f"{name}.json").write_text(json.dumps(task(category)))
  for split, name in (("train", TRAIN), ("test", TEST), ("excluded", "")):
    (root / "splits" / "default" / f"{split}_tasks.txt").write_text(name + "\n")
  return root


@pytest.fixture
def mtx(tmp_path, checkout, capsys, monkeypatch):
  """Runs the command line in this process; returns (exit code, what it said on standard error)."""
  monkeypatch.chdir(REPOSITORY)

  def run(*bindings: str) -> tuple[int, str]:
    defaults = [
      f"SUPERNI_DIR={checkout}",
      f"train.run_dir={tmp_path / 'run'}",
      f"train.cache_dir={tmp_path / 'cache'}",
      "train.evaluate_every=0",
      "mixture.vocabulary_size=60",
      "train.inputs_length=128",
      "train.targets_length=16",
      "model.preset=t5_micro",
      "feed.batch=8",
      "finetune/stage.steps=2",
      "evaluation.examples=2",
    ]
    code = main(["train", "--gin_file=configs/run/superni.gin", *(f"--gin.{b}" for b in [*defaults, *bindings])])
    return code, capsys.readouterr().err

  return run


def fingerprint(folder: Path) -> dict[str, str]:
  return {
    str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
    for p in sorted(folder.rglob("*"))
    if p.is_file()
  }


def says(result: tuple[int, str], *patterns: str) -> None:
  """Exit code 2, one message of mtx, no traceback, and every pattern in it."""
  code, text = result
  assert code == 2, text
  assert text.startswith("mtx: ") and text.count("mtx: ") == 1 and "Traceback" not in text, text
  for pattern in patterns:
    assert re.search(pattern, text), f"{pattern!r} is not in:\n{text}"


def test_missing_data_folder(mtx, tmp_path):
  says(mtx(f"SUPERNI_DIR={tmp_path / 'nowhere'}"), "nowhere", "Super-NaturalInstructions checkout")


def test_empty_data_folder(mtx, tmp_path):
  (tmp_path / "empty").mkdir()
  says(mtx(f"SUPERNI_DIR={tmp_path / 'empty'}"), "empty", "tasks/ and splits/default/")


def test_task_file_that_is_not_json(mtx, checkout):
  (checkout / "tasks" / f"{TRAIN}.json").write_text('{\n "Definition": ["a"],\n "Instances": [}\n')
  says(mtx(), rf"{TRAIN}\.json", "line 3", 'superni.on_bad = "skip"')


def test_instance_without_a_field(mtx, checkout):
  broken = task("Shouting")
  del broken["Instances"][7]["output"]
  (checkout / "tasks" / f"{TRAIN}.json").write_text(json.dumps(broken))
  says(mtx(), rf"{TRAIN}\.json", "instance 7", "output", "id, input", 'superni.on_bad = "skip"')


def test_bad_instances_can_be_skipped(mtx, checkout, tmp_path):
  broken = task("Shouting")
  del broken["Instances"][7]["output"]
  (checkout / "tasks" / f"{TRAIN}.json").write_text(json.dumps(broken))
  code, text = mtx("superni.on_bad=skip")
  assert code == 0, text
  assert (tmp_path / "run" / "report.html").exists()


def test_over_long_example(mtx, capsys):
  says(mtx("train.inputs_length=16", "INPUTS_LENGTH=16", "feed.overlong=error"), TRAIN, "over 16", "feed.overlong")


def test_over_long_examples_are_counted(tmp_path, checkout, capsys, mtx, monkeypatch):
  printed = []
  monkeypatch.setattr("mtx.report.reporter.Reporter.note", lambda self, text: printed.append(text))
  code, text = mtx("train.inputs_length=16", "INPUTS_LENGTH=16")
  assert code == 0, text
  assert any(re.search(rf"\d+ examples of 1 tasks are longer than 16 input .*{TRAIN}", line) for line in printed), (
    printed
  )


def test_mesh_that_does_not_fit(mtx):
  devices = len(jax.devices())
  says(mtx("mesh.fsdp=3", "mesh.data=1"), rf"fsdp=3.*needs 3 devices, and there are {devices}", "data=-1")


def test_batch_not_divisible(mtx):
  devices = len(jax.devices())
  if devices == 1:
    pytest.skip("one device divides every batch; `make test` has eight")
  says(mtx(f"feed.batch={devices + 1}"), rf"`feed.batch` = {devices + 1} is not divisible", "nearest valid batch")


def test_checkpoint_of_another_model(mtx, tmp_path):
  code, text = mtx()
  assert code == 0, text
  before = fingerprint(tmp_path / "run")
  result = mtx("finetune/stage.steps=4", "model.overrides={'d_ff': 64}")
  says(result, "another model", r"mlp\.wi_0\.kernel: checkpoint \(2, 64, 128\), model \(2, 64, 64\)", "train.run_dir")
  assert fingerprint(tmp_path / "run") == before


def test_a_kernel_that_does_not_do_what_the_model_needs(mtx):
  says(mtx("attention.impl=splash"), "`attention.impl`: .*'splash' can not do this: .*bias:Buckets", "These can: .*xla")


@pytest.mark.parametrize(
  ("binding", "pattern"),
  [
    ("finetune/stage.mixture=superni_trian", "superni_train"),
    ("model.presett=t5_tiny", "model.preset"),
    ("model.preset=t5_tinny", "t5_tiny"),
    ("finetune/stage.learning_rates={'.*kernle': 0.1}", "matches no parameter"),
    ("train.cache_dir=%CACHE_DIR", "CACHE_DIR"),
    ("finetune/stage.adapter=@adaptor", "adapter"),
    ("attention.impl=mosaic_tp", "mosaic_tpu"),
    ("cross_entropy.impl=xla_chunk", "xla_chunked"),
  ],
)
def test_misspelt_bindings_name_the_nearest(mtx, binding, pattern):
  says(mtx(binding), re.escape(binding.partition("=")[0]) if "learning" not in binding else "kernle", pattern)


def test_a_process_ends_with_status_2_and_no_traceback(tmp_path):
  command = [sys.executable, "-m", "mtx.run", "train", "--gin_file=configs/run/quickstrat.gin"]
  done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
  assert done.returncode == 2
  assert "quickstrat.gin" in done.stderr and "quickstart.gin" in done.stderr and "Traceback" not in done.stderr
