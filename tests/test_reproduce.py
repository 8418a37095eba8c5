"""`mtx reproduce`: arms are run once, a changed recipe is noticed, and the verdict is of what was measured."""

import json
import re
import sys
from pathlib import Path

import gin
import numpy as np
import pytest

from mtx import ginfile
from mtx.launch import Job, execute, read
from mtx.reproduce import Reproduction, declared, recipe_files
from mtx.run import main, register

REPOSITORY = Path(__file__).parents[1]
CALLS: list[tuple[str, int, float]] = []


@gin.configurable(allowlist=["level", "broken"])
def measured_level(arm: str, seed: int, folder: Path, *, level: float = 0.0, broken: bool = False) -> list[dict]:
  """Four tasks whose scores are a level and a little of their own, the same for all arms."""
  CALLS.append((arm, seed, level))
  if broken:
    raise RuntimeError("broken on purpose")
  common = {"stage": "s", "method": arm, "split": "heldout", "category": "c", "metric": "score", "step": 1, "count": 9}
  return [{**common, "task": f"t{i}", "value": level + i + seed % 3} for i in range(4)]


LEVELS = """
recipe.title = 'high is above low'
recipe.source = 'sheet 0'
recipe.run = @measured_level
recipe.arms = {'low': ['measured_level.level = 1'], 'high': ['measured_level.level = 5']}
recipe.seeds = (3, 4)
recipe.measures = {'score': {'metric': 'score'}}
recipe.accept = ['high - low >= 3 in every seed', 'low >= high']
"""


@pytest.fixture
def mtx(tmp_path, monkeypatch, capsys):
  """A working directory with a recipe of one's own; runs the command line in this process."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "configs" / "recipe").mkdir(parents=True)
  (tmp_path / "configs" / "recipe" / "levels.gin").write_text(LEVELS)
  monkeypatch.setenv("COLUMNS", "120")
  CALLS.clear()

  def run(*words: str) -> tuple[int, str]:
    code = main(["reproduce", *words])
    out, err = capsys.readouterr()
    return code, out + err

  return run


def verdict() -> dict:
  return json.loads(Path("runs/recipes/levels/verdict.json").read_text())


def change(before: str, after: str) -> None:
  file = Path("configs/recipe/levels.gin")
  assert before in file.read_text()
  file.write_text(file.read_text().replace(before, after))


def test_arms_are_run_once_and_judged(mtx):
  code, said = mtx("levels")
  assert code == 1 and CALLS == [(a, s, v) for a, v in (("low", 1), ("high", 5)) for s in (3, 4)]
  assert "1 of 2 criteria met" in said and "high - low >= 3 in every seed" in said
  kept = verdict()
  first, second = kept["findings"]
  assert first["met"] and first["difference"] == pytest.approx(1.0) and first["agree"] == [3, 4]
  assert not second["met"] and second["left"] == pytest.approx(3.0) and second["right"] == pytest.approx(7.0)
  assert kept["measured"]["low"]["score"] == {"3": 2.5, "4": 3.5} and kept["seeds"] == [3, 4]
  assert mtx("levels")[0] == 1 and len(CALLS) == 4
  # Other seeds are further runs; those that are there are used again.
  assert mtx("levels", "--seeds", "4,5")[0] == 1 and len(CALLS) == 6 and verdict()["seeds"] == [4, 5]


def test_what_is_promised_can_change_without_running_again(mtx):
  mtx("levels")
  change(", 'low >= high'", "")
  code, said = mtx("levels")
  assert code == 0 and len(CALLS) == 4 and "1 of 1 criteria met" in said


def test_a_changed_recipe_is_noticed_and_old_runs_are_kept(mtx):
  mtx("levels")
  change("level = 5", "level = 6")
  code, said = mtx("levels")
  assert code == 2 and "high-3 was run with other settings: measured_level.level was 5 and is 6" in said
  assert "--anew" in said and len(CALLS) == 4
  code, said = mtx("--list")
  assert "the recipe has changed since" in said.replace("\n", " ") or "changed since" in said
  code, said = mtx("levels", "--anew")
  assert code == 1 and CALLS[4:] == [("high", 3, 6), ("high", 4, 6)] and "old/low-3" not in said
  old = Path("runs/recipes/levels/old/high-3.1")
  assert json.loads((old / "results.json").read_text())[0]["value"] == 5
  assert verdict()["findings"][1]["right"] == pytest.approx(8.0)


def test_a_run_that_fails_is_named_and_the_others_are_done(mtx):
  change("['measured_level.level = 1']", "['measured_level.broken = True']")
  code, said = mtx("levels")
  assert code == 1 and "no verdict, 2 of 4 runs failed: low-3, low-4" in said and "broken on purpose" in said
  assert len(CALLS) == 4 and not Path("runs/recipes/levels/verdict.json").exists()
  assert read(Path("runs/recipes/levels/high-4")).state == "done"
  change("['measured_level.broken = True']", "['measured_level.level = 1']")
  assert mtx("levels", "--anew")[0] == 1 and len(CALLS) == 6 and len(verdict()["findings"]) == 2


def test_bindings_go_to_every_arm_and_are_told(mtx):
  mtx("levels", "--gin.measured_level.level=2", "--out", "other")
  assert {level for _, _, level in CALLS} == {2}
  kept = json.loads(Path("other/levels/verdict.json").read_text())
  assert kept["bindings"] == ["measured_level.level=2"]
  assert "with measured_level.level=2" in mtx("--list", "--out", "other")[1].replace("\n", " ")


def test_every_recipe_is_listed_with_its_verdict(mtx):
  mtx("levels")
  Path("configs/recipe/broken.gin").write_text("recipe.title = 'no arms'\n")
  code, said = mtx("--list")
  assert code == 0 and "1 of 2 met" in said and "can not be read" in said
  assert "10a" in said and "10b" in said and "not run" in said


def test_runs_share_what_is_compiled(tmp_path, monkeypatch):
  """In a folder beside theirs, wherever they are started from, unless one is set."""
  name = "JAX_COMPILATION_CACHE_DIR"
  monkeypatch.delenv(name, raising=False)
  monkeypatch.chdir(tmp_path)
  said = []
  for folder in ("runs/a-0", "runs/b-1", str(tmp_path / "runs" / "c-2")):
    job = execute(Job("run", folder, [sys.executable, "-c", f"import os; print(os.environ[{name!r}])"], {}))
    said.append(job.log.read_text().strip())
  assert job.code == 0 and set(said) == {str(tmp_path / "runs" / ".compiled")}
  monkeypatch.setenv(name, "elsewhere")
  assert execute(Job("run", "runs/d-3", job.command, {})).log.read_text().strip() == "elsewhere"


def test_nothing_is_run_dry(mtx):
  code, said = mtx("levels", "--dry_run")
  assert code == 0 and "high-4: not run" in said and not CALLS and not Path("runs").exists()
  code, said = mtx("10b", "--dry_run", "--seeds", "7")
  assert code == 0 and "mtx train --gin_file=configs/recipe/10b.gin" in said and "--gin.SEED=7" in said
  assert "base-7" in said.split("lora-7")[1] and not Path("runs").exists()


TRAIN = """
SEED = 0
train.seed = %SEED
train.source = @procedural
train.stages = [@tune/stage()]
model.preset = 't5_micro'
tune/stage.steps = 2
tune/stage.learning_rates = {'.*': 1e-3}
recipe.title = 'trains'
recipe.arms = {'first': [], 'second': ["model.pretrained = '{first}'", 'model.preset = None']}
recipe.measures = {'score': {'metric': 'exact_match'}}
recipe.accept = ['second >= first']
"""


@pytest.mark.parametrize(
  ("changes", "words", "says"),
  [
    ((), ["level"], "there is no recipe 'level'.\n  did you mean `levels`"),
    ((), [], "needs a recipe"),
    ((), ["levels", "--seeds", "3,x"], "--seeds '3,x' are no whole numbers"),
    ((), ["levels", "--seeds", "3,3"], "a seed twice"),
    (("high - low", "hihg - low"), ["levels"], "criterion `hihg - low >= 3 in every seed`: 'hihg' is no arm"),
    (("'metric': 'score'", "'metric': 'skore'"), ["levels"], "did you mean `score`"),
    (("level = 5", "levle = 5"), ["levels"], "did you mean `measured_level.level`"),
    (("recipe.title = 'high is above low'", ""), ["levels"], "needs `recipe.title`"),
    (("@measured_level", "@mesured_level"), ["levels"], "did you mean `measured_level`"),
    (("SEED", "SEDE"), ["train.gin"], "defines no macro SEED"),
    (("{first}", "{second}"), ["train.gin"], "arm 'second': {second} is no arm before it"),
    (("steps = 2", "steps = 'two'"), ["train.gin"], "expected a whole number"),
  ],
)
def test_mistakes_are_named(mtx, changes, words, says):
  Path("train.gin").write_text(TRAIN)
  for file in (Path("train.gin"), Path("configs/recipe/levels.gin")):
    if changes:
      file.write_text(file.read_text().replace(*changes))
  code, said = mtx(*words)
  assert code == 2 and says in said, said


@pytest.mark.parametrize("name", sorted(file.stem for file in (REPOSITORY / "configs" / "recipe").glob("*.gin")))
def test_shipped_recipes_are_sound(name, tmp_path, monkeypatch):
  """Everything they bind exists, for every arm; they are written and promise something."""
  from rich.console import Console

  monkeypatch.chdir(tmp_path)
  register()
  recipe = declared(recipe_files()[name])
  assert recipe.source and len(recipe.title) > 20 and len(recipe.seeds) >= 3 and recipe.minutes <= 20
  assert not set(recipe.seeds) & {0, 1, 2}  # those that recipes are developed on
  made = Reproduction(name, recipe_files()[name], Path("runs") / name, None, (), Console()).jobs()
  assert len(made) == len(recipe.arms) * len(recipe.seeds)
  for job, work in made:
    assert (work is None) == bool(job.command) and job.settings


def test_adapters_of_the_language_model_recipe_have_equally_many_parameters(tmp_path):
  """What its gin file says in its header, counted on the model that it trains."""
  from mtx.adapters.site import inject
  from mtx.models.build import build
  from mtx.models.sizes import PRESETS
  from mtx.training.parameters import blueprint, count

  register()
  file = recipe_files()["10b"]
  header = (REPOSITORY / file).read_text().split("\nSEED")[0]
  arms = declared(file).arms
  config = PRESETS["t5_tiny"]()
  config.update(vocab_size=128, architecture="encdec")
  sizes = {}
  for arm in ("lora", "poly", "mhr"):
    ginfile.load([file], [each for each in arms[arm] if "{" not in each], idle=["train", "model"])

    def make(rngs):
      model = build(config, rngs=rngs)
      inject(model, 12, rngs)
      return model

    shapes = blueprint(make).shapes
    sizes[arm] = count({path: s for path, s in shapes.items() if path.endswith(("adapter/a", "adapter/b"))})
    routers = count({path: s for path, s in shapes.items() if path.endswith("adapter/router")})
    assert routers < 0.1 * sizes[arm] and re.search(rf"{routers:,} .*\({arm}", header), (arm, routers)
  assert len(set(sizes.values())) == 1 and f"{sizes['mhr']:,} parameters" in header, sizes


def test_arms_of_the_architecture_recipe_are_pre_trained_with_equal_compute():
  """Decoders and encoder-decoders of its sizes, in floating-point operations; adaptation takes half of it at most."""
  from mtx.models.flops import training_per_row
  from mtx.models.sizes import model_config

  register()
  file = recipe_files()["03"]
  arms = declared(file).arms
  spent = {}
  for arm in ("flm", "mlm", "cd_mlm", "nd_plm", "ed_plm", "ed_mlm"):
    ginfile.load([file], arms[arm], idle=["train", "model"])
    config = model_config()
    config.vocab_size = 384
    lengths = [ginfile.value(f"train.{side}_length", None) for side in ("inputs", "targets")]
    spent[arm] = training_per_row(config, *lengths, frozen_base=False) * ginfile.value("pretrain/stage.steps", None)
  assert max(spent.values()) <= 1.005 * min(spent.values()), spent
  assert ginfile.value("adapt/stage.steps", None) <= ginfile.value("pretrain/stage.steps", None) / 2


def test_arms_of_the_language_recipe_are_judged_alike_on_what_none_of_them_learns():
  """In six languages, with English prompts and native ones, which are other tasks; P3 learns in English alone."""
  from mtx.tasks.chosen import chosen
  from mtx.tasks.language import language

  register()
  file = recipe_files()["01"]
  skills = lambda tasks: {re.sub("^(language|native)_|_[a-z]+$", "", task.name) for task in tasks}
  judged, tongues = {}, {}
  for arm, bindings in declared(file).arms.items():
    ginfile.load([file], [each for each in bindings if "{" not in each], idle=["train", "model"])
    tasks = chosen()
    with gin.config_scope("native"):
      native = language()
    judged[arm] = frozenset(task.name for task in (*tasks.heldout, *native.heldout))
    tongues[arm] = {task.name.rsplit("_", 1)[1] for task in tasks.train}
    assert not native.train and len(skills(tasks.train)) == 8
    assert skills(tasks.heldout) == skills(native.heldout) and len(skills(native.heldout)) == 4
    assert skills(tasks.train).isdisjoint(skills(tasks.heldout))
  assert len(set(judged.values())) == 1 and len(judged["none"]) == 48
  assert tongues["p3"] == tongues["zero_p3"] == {"en"}
  assert tongues["xp3"] == tongues["xp3mt"] == {"en", "qaa", "qab", "qac", "qad", "qae"}


STAGES = """
SEED = 0
train.seed = %SEED
train.source = @procedural
train.cache_dir = 'cache'
train.stages = [@pretrain/stage()]
train.inputs_length = 16
train.targets_length = 8
train.evaluate_every = 2
procedural.examples = 8
model.preset = None
feed.batch = 8
feed.rows = 'task'
evaluation.mixtures = ('train',)
evaluation.examples = 2
evaluation.sample = 0
evaluation.before = False
pretrain/stage.steps = 2
pretrain/stage.learning_rates = {'.*': 1e-3}
adapter.pattern = '.*/(q|v)'
adapter.method = @MHR
aligned.stage = @route/stage()
aligned.examples = 4
route/stage.steps = 4
route/stage.adapter = @adapter
route/stage.learning_rates = {'.*/adapter/router': 0.1, '.*/adapter/.*': 1e-2}
recipe.title = 'adapters on a model that another arm trained'
recipe.arms = {
  'base': ["model.preset = 't5_micro'"],
  'routed': ["model.pretrained = '{base}'", 'train.stages = [@aligned()]', 'train.keep_model = False'],
}
recipe.measures = {
  'score': {'metric': 'exact_match', 'task': 'list_*'},
  'cosine': {'metric': 'gradient_cosine', 'method': 'while training'},
}
recipe.accept = ['routed >= base', 'routed.cosine <= 100']
"""


def test_arms_that_train_and_build_on_each_other(mtx, monkeypatch):
  """One arm starts from the model of another; gradients are compared while it is trained."""
  pytest.importorskip("seqio")
  monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
  monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
  Path("stages.gin").write_text(STAGES)
  code, said = mtx("stages.gin", "--seeds", "8")
  folder = Path("runs/recipes/stages/routed-8")
  log = (folder / "log.txt").read_text() if (folder / "log.txt").exists() else ""
  assert code in (0, 1) and "criteria met" in said, said + log
  assert "starts from" in log and "base-8" in log
  lines = [json.loads(line) for line in (folder / "route" / "gradients.jsonl").read_text().splitlines()]
  assert [line["step"] for line in lines] == [2, 4]
  cosine = np.array(lines[-1]["cosine"])
  np.testing.assert_allclose(np.diagonal(cosine), 1, atol=1e-5)
  np.testing.assert_allclose(cosine, cosine.T, atol=1e-5)
  assert (abs(cosine[~np.eye(len(cosine), dtype=bool)]) < 1).all()
  kept = json.loads(Path("runs/recipes/stages/verdict.json").read_text())
  mean = np.mean([(np.sum(line["cosine"]) - len(cosine)) / len(cosine) / (len(cosine) - 1) for line in lines])
  assert kept["measured"]["routed"]["cosine"]["8"] == pytest.approx(100 * mean, abs=1e-2)
  assert "cosine" not in kept["measured"]["base"] and kept["seconds"] > 1
  before = (folder / "results.json").stat().st_mtime_ns
  assert mtx("stages.gin", "--seeds", "8")[0] == code and (folder / "results.json").stat().st_mtime_ns == before
