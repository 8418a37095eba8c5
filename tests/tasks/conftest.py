"""A Super-NaturalInstructions checkout small enough to read."""

import json
from pathlib import Path

import pytest

DEFINITIONS = {
  "task1_reverse": ["Turn the word round", "Text Manipulation"],
  "task2_plural-forms": ["Give the plural of the noun.", "Grammar"],
  "task3_rhyme": ["Find a word that rhymes!", "Poetry"],
}


def task(name: str, instances: int) -> dict:
  definition, category = DEFINITIONS[name]
  return {
    "Categories": [category],
    "Definition": [definition],
    "Positive Examples": [
      {"input": "moon", "output": "noom", "explanation": "letters"},
      {"input": "is it far?", "output": "far it is", "explanation": ""},
      {"input": "third", "output": "never shown"},
    ],
    "Negative Examples": [],
    "Instances": [
      {"id": f"{name}-{index:03}", "input": f"word{index} ", "output": [f"first{index}", f"second{index}"]}
      for index in range(instances)
    ],
  }


def write(root: Path, name: str, content: dict | str) -> None:
  text = content if isinstance(content, str) else json.dumps(content)
  (root / "tasks" / f"{name}.json").write_text(text, encoding="utf-8")


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
