"""Run folders as training leaves them, made without training."""

import json
from pathlib import Path

import numpy as np

from mtx.report.log import RunLog, write_results
from mtx.report.record import write_record

CATEGORIES = {f"{category}_{i}": category for category in ("lists", "strings") for i in range(3)}
METHODS = ("zero-shot", "MHR-z", "MHR")


def answers(category_of, items, skill, rng):
  """Lines of a predictions file: an item is right with probability `skill`."""
  lines = []
  for task in category_of:
    for i in range(items):
      right = bool(rng.random() < skill)
      said = f"answer {i}" if right else f"mistake {i}"
      line = {"task": task, "id": f"{task}/test/{i}", "inputs": f"Question {i} of {task}?", "prediction": said}
      lines.append(line | {"references": [f"answer {i}"], "exact_match": 100.0 * right})
  return lines


def write_lines(path: Path, lines) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def rows_of(lines, category_of, **common):
  rows = []
  for task, category in category_of.items():
    values = [line["exact_match"] for line in lines if line["task"] == task]
    row = {"task": task, "category": category, "metric": "exact_match", "value": float(np.mean(values))}
    rows.append(common | row | {"count": len(values)})
  return rows


def make_run(
  folder: Path,
  *,
  seed: int = 0,
  skill=(0.2, 0.5, 0.7),
  items: int = 20,
  categories=CATEGORIES,
  finished: bool = True,
  routed: bool = True,
  gin: str = "feed.batch = 32\nadapter.pattern = '<.*>/(q|v)'\n",
) -> Path:
  """A run of two stages that is evaluated zero-shot and after two ways of adapting.

  Args:
    skill: probability of a right answer of each method.
    finished: if not, the last stage stands at step 40 and nothing was evaluated.
  """
  rng = np.random.default_rng([seed, 17])
  tasks = {
    name: {"category": category, "fingerprint": f"f0{i}"} for i, (name, category) in enumerate(categories.items())
  }
  stages = [{"name": "pretrain", "steps": 100}, {"name": "route", "steps": 100}, {"name": "fewshot", "steps": None}]
  write_record(
    folder,
    seed=seed,
    stages=stages,
    versions={"jax": "0.10.2"},
    devices="8 x cpu",
    mesh={"data": 8, "fsdp": 1},
    code={"commit": "0123abcd", "changed_files": 2},
    data={"some_train": {"fingerprint": "feedbeef", "tasks": tasks}},
    trainable={"route": {"groups": [["adapter/.*", 12_345, 1e-3]], "frozen": 678_901}},
    memory={"host": 3_000_000_000},
    finished=finished,
  )
  (folder / "operative.gin").write_text(gin)
  for stage, steps in (("pretrain", 100), ("route", 100 if finished else 40)):
    with RunLog(folder, stage) as log:
      for step in range(1, steps + 1):
        log.scalars(step, {"loss": 3 / step + seed / 100, "tokens_per_second": 18_400.0, "mfu": 0.3})
        if step % 20 == 0:
          log.scalars(step, {"eval/loss": 4 / step, "eval/heldout/exact_match": step / 2})
      if routed and stage == "route":
        log.routes(steps, list(categories), rng.dirichlet(np.ones(4), size=(len(categories), 2)))
  if finished:
    common = {"split": "heldout", "step": 100, "seed": seed}
    lines = answers(categories, items, skill[0], rng)
    write_lines(folder / "route" / "predictions-heldout-100.jsonl", lines)
    write_results(folder, rows_of(lines, categories, stage="route", method="zero-shot", **common))
    for method, chance in zip(METHODS[1:], skill[1:], strict=True):
      lines = answers(categories, items, chance, rng)
      for task in categories:
        write_lines(folder / "fewshot" / method / f"{task}.jsonl", [x for x in lines if x["task"] == task])
      write_results(folder, rows_of(lines, categories, stage="fewshot", method=method, **common))
  return folder
