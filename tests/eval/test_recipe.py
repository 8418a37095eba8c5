"""Recipes: what criteria mean, what is refused, and that a verdict is of the items that runs share."""

import json
from functools import partial

import jax
import numpy as np
import pytest

from mtx.adapters.lora import LoRA
from mtx.adapters.poly import MHR
from mtx.errors import UserError
from mtx.eval.criteria import Name, criteria
from mtx.eval.modular_teacher import modular_teacher, updates
from mtx.eval.recipe import Recipe, Run, judge, predicted, select

ARMS, MEASURES = ("lora", "poly", "mhr", "mhr_z"), ("heldout", "cosine")


def read(text: str):
  (found,) = criteria(text, ARMS, MEASURES)
  return found


@pytest.mark.parametrize(
  ("text", "left", "right", "sign"),
  [
    ("mhr >= poly", 3.0, 2.0, ">="),
    ("mhr <= 0.5 * poly", 3.0, 1.0, "<="),
    ("mhr.cosine - lora.cosine > 2", 20.0, 2.0, ">"),
    ("(mhr + poly) / 2 < mhr.heldout * 4 - -1", 2.5, 13.0, "<"),
    ("2 * (mhr - mhr) >= lora - 1", 0.0, 0.0, ">="),
  ],
)
def test_criteria_are_arithmetic(text, left, right, sign):
  values = {Name(arm, "heldout"): i + 1.0 for i, arm in enumerate(("lora", "poly", "mhr"))}
  values |= {Name(arm, "cosine"): 10.0 * (i + 1) for i, arm in enumerate(("lora", "poly", "mhr"))}
  found = read(text)
  assert (found.left(values), found.right(values), found.sign) == (left, right, sign)


def test_a_chain_is_several_criteria():
  found = criteria("mhr >= poly >= lora in every seed", ARMS, MEASURES)
  assert list(map(str, found)) == ["mhr >= poly in every seed", "poly >= lora in every seed"]
  assert {each.asks for each in found} == {"seeds"} and read("mhr > 0 surely").asks == "interval"


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("mhr >= ploy", "'ploy' is no arm.*did you mean `poly`"),
    ("mhr.heldot >= 1", "'heldot' is no measure.*did you mean `heldout`"),
    ("mhr / poly <= 0.5", "`mhr / poly` is not linear.*write `a <= 0.5"),
    ("mhr * mhr >= 0", "is not linear"),
    ("mhr >=", "can not be read"),
    ("mhr", "compares nothing"),
    ("mhr == poly", "compares otherwise.*>= <= > <"),
    ("1 >= 0", "is about no arm"),
    ("mhr / 0 >= 1", "divides by 0"),
    ("mhr >= __import__('os').system('true')", "is no arm, number, sum or product"),
    ("mhr.heldout.real >= 1", "is no arm, number"),
    ("mhr >= True", "is no arm, number"),
    ("mhr >= 1 in any seed", "compares otherwise|can not be read"),
  ],
)
def test_what_is_no_criterion_is_refused(text, says):
  with pytest.raises(UserError, match=rf"(?s)criterion `.*{says}"):
    criteria(text, ARMS, MEASURES)


def recipe(**changes) -> Recipe:
  settings = {
    "title": "b is better",
    "arms": {"a": [], "b": []},
    "measures": {"score": {"stage": "tune", "metric": "exact_match"}, "size": {"metric": "parameters"}},
    "accept": ["b - a >= 2"],
    "seeds": (0, 1, 2),
  }
  return Recipe(**(settings | changes))


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"accept": ["c >= a"]}, "'c' is no arm"),
    ({"measures": {"score": {"metrik": "f1"}}}, "'metrik'.*did you mean `metric`"),
    ({"arms": {}}, "recipe.arms` is empty"),
    ({"arms": {"a-b": []}}, "'a-b' is no name"),
    ({"seeds": (1, 1)}, "a seed twice"),
  ],
)
def test_a_recipe_that_is_none_is_refused(changes, says):
  with pytest.raises(UserError, match=f"(?s){says}"):
    recipe(**changes)


class Scored:
  """Runs on disk: rows, and a file of predictions a task."""

  def __init__(self, folder, counts=(8, 40)):
    self.folder, self.counts, self.runs = folder, counts, {}

  def add(self, arm: str, seed: int, scores: list[np.ndarray], *, ids: str = "x", rows_say=None) -> None:
    folder = self.folder / f"{arm}-{seed}"
    (folder / "tune" / "trained").mkdir(parents=True)
    rows = []
    for i, values in enumerate(scores):
      answer = {"task": f"t{i}", "prediction": "", "references": []}
      lines = [{**answer, "id": f"{ids}{k}", "exact_match": float(v)} for k, v in enumerate(values)]
      (folder / "tune" / "trained" / f"t{i}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
      common = {
        "stage": "tune",
        "method": "trained",
        "split": "heldout",
        "task": f"t{i}",
        "category": "c",
        "seed": seed,
      }
      value = float(np.mean(values)) if rows_say is None else rows_say[i]
      rows.append({**common, "metric": "exact_match", "value": value, "count": len(values), "step": 4})
    self.runs.setdefault(arm, {})[seed] = Run(rows, folder)


@pytest.fixture
def scored(tmp_path):
  """b is 10 better than a on every item; tasks have 8 and 40 of them."""
  made, rng = Scored(tmp_path), np.random.default_rng(0)
  for seed in (0, 1, 2):
    scores = [rng.integers(0, 60, n).astype(float) for n in made.counts]
    made.add("a", seed, scores)
    made.add("b", seed, [s + 10 for s in scores])
  return made


def test_what_is_derived_of_a_seeds_arms_is_measured(scored):
  """A measure that compares arms with each other: here how far an arm is above the worst one."""

  def above(runs):
    means = {arm: np.mean([row["value"] for row in rows]) for arm, rows in runs.items()}
    common = {"stage": "tune", "method": "m", "task": "t", "metric": "above", "step": 0}
    return {arm: [{**common, "value": mean - min(means.values())}] for arm, mean in means.items()}

  measures = {"score": {"metric": "exact_match"}, "above": {"metric": "above"}}
  verdict = judge(
    recipe(measures=measures, accept=["b.above >= 9.9", "a.above > 0"], derive=above), scored.runs, (0, 2)
  )
  assert [finding.met for finding in verdict.findings] == [True, False]
  assert verdict.measured["b"]["above"] == pytest.approx({0: 10.0, 2: 10.0}) and verdict.findings[0].agree == (0, 2)


def test_a_verdict_is_of_differences_between_items(scored):
  verdict = judge(recipe(accept=["b - a >= 2", "b >= a surely", "a > b", "b <= 0.5 * a"]), scored.runs, (0, 1, 2))
  clear, surely, wrong, half = verdict.findings
  assert clear.met and surely.met and not wrong.met and not half.met and not verdict.met
  # The difference is 10 on all items, so its interval has no width, whatever the items are like.
  assert surely.difference == pytest.approx(10) and surely.low == pytest.approx(10) and surely.high == pytest.approx(10)
  assert clear.difference == pytest.approx(8) and clear.agree == (0, 1, 2) and wrong.agree == ()
  assert half.low < half.difference < half.high and half.p <= half.adjusted < 0.05


def test_every_task_counts_the_same_however_many_items_it_has(scored):
  verdict = judge(recipe(), scored.runs, (0, 1, 2))
  rows = [row for run in scored.runs["a"].values() for row in run.rows]
  of_tasks = np.mean([row["value"] for row in rows])
  assert verdict.measured["a"]["score"][0] == pytest.approx(np.mean([r["value"] for r in rows if r["seed"] == 0]))
  alone = judge(recipe(accept=["a >= 0"]), scored.runs, (0, 1, 2)).findings[0]
  assert alone.left == pytest.approx(of_tasks)


def test_in_every_seed_is_more_than_on_the_mean(tmp_path):
  made = Scored(tmp_path)
  for seed, gain in enumerate((9.0, 9.0, -1.0)):
    made.add("a", seed, [np.arange(8.0)])
    made.add("b", seed, [np.arange(8.0) + gain])
  mean, each, surely = judge(
    recipe(accept=["b > a", "b > a in every seed", "b > a surely"]), made.runs, (0, 1, 2)
  ).findings
  assert mean.met and not each.met and not surely.met and each.agree == (0, 1)


def test_a_metric_that_is_no_mean_of_items_is_one_number_a_task(scored, tmp_path):
  made = Scored(tmp_path / "corpus")
  for seed in (0, 1, 2):
    for arm, value in (("a", 30.0), ("b", 33.0 + seed)):
      made.add(arm, seed, [np.arange(8.0), np.arange(8.0)], rows_say=[value, value])
  (finding,) = judge(recipe(), made.runs, (0, 1, 2)).findings
  assert finding.left == pytest.approx(4.0) and finding.met


def test_seeds_may_have_items_of_their_own(tmp_path):
  """The same verdict as if they were called alike, paired within a seed; arms that differ there are not compared."""
  alike, own, rng = Scored(tmp_path / "alike"), Scored(tmp_path / "own"), np.random.default_rng(1)
  for seed in (0, 1, 2):
    scores = [rng.integers(0, 60, n).astype(float) for n in (8, 40)]
    for arm, gain in (("a", 0.0), ("b", 10.0)):
      alike.add(arm, seed, [s + gain for s in scores])
      own.add(arm, seed, [s + gain for s in scores], ids=f"world {seed} ")
  one, other = (judge(recipe(accept=["b - a >= 9 surely"]), made.runs, (0, 1, 2)).findings[0] for made in (alike, own))
  for found in (one, other):
    # Every pair differs by 10, so the interval has no width where arms are paired.
    assert found.met and found.agree == (0, 1, 2) and (found.low, found.high) == (pytest.approx(1), pytest.approx(1))
  assert (one.left, one.right) == (pytest.approx(other.left), pytest.approx(other.right))
  own.add("c", 0, scores, ids="world 0 ")
  for seed in (1, 2):
    own.add("c", seed, scores, ids="another ")
  with pytest.raises(UserError, match="evaluate both on the same items"):
    judge(recipe(arms={"a": [], "c": []}, accept=["c >= a"]), own.runs, (0, 1, 2))


def test_runs_on_other_items_are_not_compared(tmp_path):
  made = Scored(tmp_path)
  made.add("a", 0, [np.arange(8.0)])
  made.add("b", 0, [np.arange(8.0)], ids="y")
  with pytest.raises(UserError, match=r"lacks 8 items.*t0/y0"):
    judge(recipe(), made.runs, (0,))


def test_a_measure_without_results_names_the_nearest(scored):
  wrong = {"score": {"stage": "tune", "metric": "exact_mach"}}
  with pytest.raises(UserError, match=r"(?s)'score' finds no result of arm 'b'.*did you mean `exact_match`"):
    judge(recipe(measures=wrong), scored.runs, (0,))
  two = {"score": {"stage": "tune"}}
  rows = scored.runs["b"][0].rows
  scored.runs["b"][0] = Run([*rows, {**rows[0], "metric": "f1"}], scored.runs["b"][0].folder)
  with pytest.raises(UserError, match="two results of task 't0'"):
    judge(recipe(measures=two), scored.runs, (0,))


def test_a_corrupt_prediction_is_named_by_line(scored):
  run = scored.runs["a"][0]
  file = run.folder / "tune" / "trained" / "t0.jsonl"
  lines = file.read_text().splitlines()
  file.write_text("\n".join([*lines[:2], lines[2][:9], *lines[3:]]))
  with pytest.raises(UserError, match=r"t0\.jsonl:3 is not JSON"):
    predicted(run.folder, run.rows[0])


def test_a_measure_asks_for_patterns_and_lists():
  rows = [{"task": f"{kind}_{i}", "metric": "f1"} for kind in ("list", "label") for i in range(2)]
  assert len(select(rows, {"task": "list_*"})) == 2
  assert len(select(rows, {"task": ["list_0", "label_?"]})) == 3
  assert not select(rows, {"metric": "f"})


def test_the_teacher_is_made_of_blocks_and_an_adapter_of_its_kind_learns_it():
  """Tasks that chose the same option share that block; MHR's router alone then fits a new combination."""
  made = np.asarray(updates(jax.random.key(0), 40, 16, 2, 2, 1))
  assert len({tuple(np.round(each, 5).ravel()) for each in made}) == 4  # 2 options in each of 2 blocks
  assert np.linalg.matrix_rank(made[0], tol=1e-5) == 1

  small = {"dim": 16, "blocks": 2, "options": 2, "rank": 1, "train_tasks": 8, "new_tasks": 2, "steps": 200,
           "fewshot_steps": 100,
           "fewshot_learning_rates": {".*/adapter/router": 0.1, ".*/adapter/.*": 1e-3}}  # fmt: skip
  arms = {
    "lora": {"method": partial(LoRA, rank=2)},
    "mhr": {"method": partial(MHR, skills=2, splits=2, rank=1), "adaptation": "MHR-z"},
  }
  rows = {arm: modular_teacher(arm, 0, None, **settings, **small) for arm, settings in arms.items()}
  error = {arm: np.mean([r["value"] for r in found if r["metric"] == "mse"]) for arm, found in rows.items()}
  size = {arm: [r["value"] for r in found if r["metric"] == "parameters"] for arm, found in rows.items()}
  assert size["lora"] == size["mhr"] == [2 * 2 * 16]
  assert error["mhr"] < 0.2 * error["lora"]
  with pytest.raises(UserError, match="did you mean `MHR-z`"):
    modular_teacher("mhr", 0, None, method=LoRA, adaptation="MHR_z")
  with pytest.raises(UserError, match="trains nothing of this adapter"):
    modular_teacher("lora", 0, None, method=LoRA, adaptation="MHR-z", steps=1)


def test_lines_of_predictions_end_with_a_line_feed_alone(tmp_path):
  """An answer may hold what other tools take for the end of a line; a file that was written again is read again."""
  row = {"stage": "s", "method": "m", "task": "t", "metric": "exact_match", "step": 3}
  file = tmp_path / "s" / "predictions-train-3.jsonl"
  file.parent.mkdir()
  line = lambda i, score: {
    "task": "t",
    "id": str(i),
    "prediction": "a\u2028b\x85",
    "references": [],
    "exact_match": score,
  }

  def write(*scores):
    lines = [json.dumps(line(i, score), ensure_ascii=False) for i, score in enumerate(scores)]
    file.write_text("".join(f"{each}\n" for each in lines), encoding="utf-8")

  write(0.0, 100.0)
  assert predicted(tmp_path, row) == {("t", "0"): 0.0, ("t", "1"): 100.0}
  write(100.0)
  assert predicted(tmp_path, row) == {("t", "0"): 100.0}
