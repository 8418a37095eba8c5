"""What the shipped recipes promise, on seeds that they were not tuned on. Slow: `make test-slow`."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

from mtx.ginfile import count_bindings

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[1]


def results(folder: Path, *arguments: str) -> list[dict]:
  """Runs `mtx train` in a process of its own and returns its result rows."""
  command = [sys.executable, "-m", "mtx.run", "train", *arguments, f"--gin.train.run_dir={folder}"]
  subprocess.run(command, check=True, cwd=REPOSITORY)
  return json.loads((folder / "results.json").read_text())


def score(rows: list[dict], metric: str, **fields: str) -> float:
  """Mean over tasks of the rows with these fields."""
  return mean(r["value"] for r in rows if r["metric"] == metric and all(r[k] == v for k, v in fields.items()))


@pytest.mark.parametrize("seed", [1, 2, 3])  # the recipe was tuned on seed 0
def test_quickstart_learns_its_tasks_and_adapts_to_new_ones(tmp_path, seed):
  rows = results(tmp_path / "run", "--gin_file=configs/run/quickstart.gin", f"--gin.SEED={seed}")
  trained = score(rows, "exact_match", stage="route", split="train")
  zero_shot = score(rows, "exact_match", stage="route", split="heldout")
  adapted = {m: score(rows, "exact_match", stage="fewshot", method=m) for m in ("MHR-z", "MHR", "MHR-mu")}
  assert trained >= 80, trained
  assert adapted["MHR"] >= zero_shot + 20, (zero_shot, adapted)
  assert trained >= score(rows, "exact_match", stage="pretrain", split="train") + 20  # what routing adds
  assert count_bindings((tmp_path / "run" / "operative.gin").read_text()) < 60


@pytest.mark.parametrize("architecture", ["encdec", "causal", "prefix"])
def test_super_naturalinstructions_held_out_scores_rise(tmp_path, shared, architecture):
  rows = results(
    tmp_path / "run",
    "--gin_file=configs/run/superni.gin",
    f"--gin.SUPERNI_DIR={shared / 'superni'}",
    f"--gin.model.architecture={architecture}",
  )
  untrained, trained = (score(rows, "rouge_l", method=m, split="heldout") for m in ("untrained", "zero-shot"))
  assert len({r["task"] for r in rows if r["split"] == "heldout"}) == 43
  assert trained > untrained, (untrained, trained)
