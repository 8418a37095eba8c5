"""Task files small enough to read."""

import json
from pathlib import Path

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
