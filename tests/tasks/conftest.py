"""A Super-NaturalInstructions checkout small enough to read."""

from pathlib import Path

import pytest
from tiny_checkout import task, write


@pytest.fixture
def checkout(tmp_path) -> Path:
  root = tmp_path / "natural-instructions"
  (root / "tasks").mkdir(parents=True)
  (root / "splits" / "default").mkdir(parents=True)
  for name, instances in (("task1_reverse", 60), ("task2_plural-forms", 30), ("task3_rhyme", 130)):
    write(root, name, task(name, instances))
  for split, names in (
    ("train", ["task1_reverse", "task2_plural-forms"]),
    ("test", ["task3_rhyme"]),
    ("excluded", []),
  ):
    (root / "splits" / "default" / f"{split}_tasks.txt").write_text("\n".join(names) + "\n")
  return root


@pytest.fixture(autouse=True)
def models(tmp_path_factory, monkeypatch):
  """Trained vocabularies go to a folder of the test run."""
  monkeypatch.setenv("MTX_CACHE", str(tmp_path_factory.getbasetemp() / "mtx"))
