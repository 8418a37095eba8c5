"""The tables of a protocol: averages by level and cell, a line a prompt and one for their median, seeds with spread."""

from mtx.report.protocol import protocol_tables
from mtx.report.table import to_text

LEVELS = {"a": "category", "b": "task", "c": "task"}


def rows(shift=0.0, prompts=("plain",), seeds=(0,)):
  made = []
  for seed in seeds:
    for shots, selector in ((0, "none"), (5, "bm25")):
      for place, prompt in enumerate(prompts):
        for i, (task, level) in enumerate(LEVELS.items()):
          value = shift + 10 * i + shots + place * 20 + seed
          made.append(
            dict(
              stage="protocol",
              task=task,
              dataset=task,
              level=level,
              category="x",
              benchmark="",
              metric="exact_match",
              value=value,
            )
            | dict(stage="protocol", shots=shots, selector=selector, prompt=prompt, seed=seed, count=1 + 3 * i)
          )
  return made


def lines(runs):
  text = to_text(protocol_tables(runs), width=140)
  return [line for line in text.splitlines() if line.strip()]


def test_a_line_a_level_and_cell():
  first, _ = "\n".join(lines({"m": rows()})).split("by category")
  found = [line.split() for line in first.splitlines()]
  assert ["held-out", "categories", "0", "0.0", "0.0"] in found
  assert ["held-out", "tasks", "of", "seen", "categories", "0", "15.0", "16.4"] in found
  assert ["5", "bm25", "20.0", "21.4"] in found
  assert not any("prompt" in line for line in found)


def test_prompts_and_their_median():
  """Values 0, 20, 40 higher: the median is the second prompt's, and stands last."""
  text = lines({"m": rows(prompts=("plain", "question", "order"))})
  at = next(i for i, line in enumerate(text) if "seen categories" in line)
  found = [line.split()[-3:] for line in text[at : at + 4]]
  assert found == [["plain", "15.0", "16.4"], ["question", "35.0", "36.4"], ["order", "55.0", "56.4"],
                   ["median", "35.0", "36.4"]]  # fmt: skip


def test_models_side_by_side_with_spread_between_seeds():
  """The mean over seeds and half their range; a cell that a model lacks is a dash."""
  other = [row for row in rows(shift=50) if not row["shots"]]
  text = lines({"m": rows(seeds=(0, 1)), "other": other})
  zero = next(line for line in text if "seen categories" in line and "15.5" in line)
  assert "15.5 ± 0.5" in zero and "65.0" in zero
  five = next(line for line in text if "20.5" in line)
  assert five.split()[-1] == "-" and any("± is between seeds, where they change the shots" in line for line in text)


def test_no_spread_where_seeds_change_nothing():
  """Zero-shot and the nearest shots are the same with every seed; drawn shots may agree by chance."""
  same = [row | {"seed": seed} for row in rows() for seed in (0, 1)]
  drawn = [row | {"selector": "random"} for row in same if row["shots"]]
  text = "\n".join(lines({"m": [*same, *drawn]}))
  assert "20.0 ± 0.0" in text and "15.0 ±" not in text
  ends = [line.split()[-1] for line in text.splitlines() if " bm25 " in line]
  assert ends == ["5.0", "21.4", "random"]  # the last is a heading


def test_two_protocols_of_one_model():
  """Before and after: each has columns of its own, under its stage's name."""
  after = [row | {"stage": "after"} for row in rows(shift=50)]
  text = lines({"m": [*rows(), *after]})
  assert any("m: protocol" in line and "m: after" in line for line in text)
  assert next(line for line in text if "held-out categories" in line).split()[-4:] == ["0.0", "0.0", "50.0", "50.0"]


def test_rows_of_other_evaluations_are_left_out():
  stray = {"task": "z", "metric": "exact_match", "value": 1.0}
  assert lines({"m": [stray, *rows()]}) == lines({"m": rows()})
