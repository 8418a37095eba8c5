"""`mtx evaluate` from end to end: two small models that were trained here, on one grid, gone on with and refused."""

import json
import re
import shutil

import pytest

from mtx.report.log import read_results
from mtx.report.runs import open_runs
from mtx.run import main

pytest.importorskip("seqio")
GIN = """
SEED = 0
train.seed = %SEED
train.source = @chosen
chosen.source = @procedural
chosen.train = ['list_reverse', 'list_sort', 'word_upper']
chosen.heldout = ['word_*']
train.stages = [@tune/stage(), @protocol()]
train.cache_dir = 'cache'
train.run_dir = 'run'
train.inputs_length = 48
train.targets_length = 8
procedural.examples = 16
model.preset = 't5_micro'
feed.batch = 8
evaluation.examples = 2
evaluation.sample = 0
evaluation.before = False
tune/stage.steps = 2
tune/stage.learning_rates = {'.*': 1e-3}
protocol.shots = (0, 1)
protocol.selectors = ('random', 'bm25')
protocol.examples = 3
LORA = @adapter
adapter.pattern = 'encoder/layers/.*/(q|v)'
adapter.method = @LoRA
lora/stage.adapter = %LORA
lora/stage.steps = 2
lora/stage.learning_rates = {'.*/adapter/.*': 1e-3}
"""
CELLS = {"zero-shot", "1-shot-random", "1-shot-bm25"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A working directory in which two models were trained: all of one, and LoRA on another that ends with a protocol."""
  folder = tmp_path_factory.mktemp("evaluate")
  (folder / "run.gin").write_text(GIN)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    stages = "--gin.train.stages=[@tune/stage()]"
    assert main(["train", "--gin_file=run.gin", "--gin.train.run_dir=plain", stages]) == 0
    stages = "--gin.train.stages=[@lora/stage(), @protocol()]"
    assert main(["train", "--gin_file=run.gin", "--gin.train.run_dir=lora", stages, "--gin.train.seed=1"]) == 0
  return folder


@pytest.fixture
def mtx(folder, monkeypatch, capsys):
  monkeypatch.chdir(folder)
  monkeypatch.setenv("COLUMNS", "140")

  def run(*words):
    code = main(list(words))
    out, err = capsys.readouterr()
    return code, out + err

  return run


def test_a_run_ends_with_a_protocol(folder):
  (run,) = open_runs([folder / "lora"])
  rows = [row for row in run.rows if row["stage"] == "protocol"]
  assert {row["method"] for row in rows} == CELLS and {row["seed"] for row in rows} == {1}
  assert {row["level"] for row in rows} == {"task", "instance"}
  assert {each.split for each in run.evaluated if each.stage == "protocol"} == {"train", "heldout"}


def test_the_same_command_judges_nothing_again_until_it_trains_on(folder, mtx):
  """A model that is loaded is the one that was trained, bit for bit; two more updates make another one."""
  shutil.copytree(folder / "lora", folder / "again")
  words = ["train", "--gin_file=run.gin", "--gin.train.run_dir=again", "--gin.train.seed=1"]
  words += ["--gin.train.stages=[@lora/stage(), @protocol()]"]
  files = sorted((folder / "again" / "protocol").rglob("*.jsonl"))
  stamps = [file.stat().st_mtime_ns for file in files]
  code, text = mtx(*words)
  assert code == 0 and "judged anew" not in text and [file.stat().st_mtime_ns for file in files] == stamps
  code, text = mtx(*words, "--gin.lora/stage.steps=4")
  assert code == 0 and "protocol: the model is not the one that was judged before; it is judged anew" in text
  assert all(file.stat().st_mtime_ns > stamp for file, stamp in zip(files, stamps, strict=True))


def test_two_models_on_one_grid(folder, mtx):
  """A run folder for each model and seed, paired by item; the table; the same command answers nothing again."""
  words = ("evaluate", "plain", "other=lora/model", "--gin_file=run.gin", "--seeds", "0,1", "--out", "grid")
  code, text = mtx(*words)
  assert code == 0, text
  for said in (
    "macro",
    "micro",
    "held-out tasks of seen categories",
    "held-out instances of seen tasks",
    "± is between",
  ):
    assert said in text
  names = [f"{model}-{seed}" for model in ("plain", "other") for seed in (0, 1)]
  assert sorted(path.name for path in (folder / "grid").iterdir()) == sorted(names)
  rows = {name: read_results(folder / "grid" / name) for name in names}
  keys = {name: [(r["method"], r["task"], r["metric"], r["count"]) for r in mine] for name, mine in rows.items()}
  assert len({str(each) for each in keys.values()}) == 1 and {key[0] for key in keys["plain-0"]} == CELLS
  in_run = [r for r in read_results(folder / "lora") if r["stage"] == "protocol" and r["seed"] == 1]
  here = [r for r in rows["other-1"] if r["stage"] == "protocol"]
  assert [r | {"seed": 1} for r in here] == in_run  # the same model on the same grid
  code, page = mtx("report", *(f"grid/{name}" for name in names), "--out", "grid.html")
  assert code == 0, page
  stamps = {path: path.stat().st_mtime_ns for path in (folder / "grid").rglob("*.jsonl")}
  code, again = mtx(*words)
  assert code == 0 and {path: path.stat().st_mtime_ns for path in stamps} == stamps
  table = lambda text: text[text.index("macro and micro") : text.index("mtx report")]
  assert table(again) == table(text)


def test_a_refusal_leaves_what_is_there(folder, mtx):
  """Another model under a name that has results: neither they nor their record are touched."""
  words = ("--gin_file=run.gin", "--out", "named", "--gin.protocol.shots=(0,)", "--gin.protocol.examples=1")
  assert mtx("evaluate", "m=plain", *words)[0] == 0
  files = {path: path.read_bytes() for path in (folder / "named").rglob("*") if path.is_file()}
  code, text = mtx("evaluate", "m=lora", *words)
  assert code == 2 and "m-0/protocol/zero-shot has results of another model" in text
  assert {path: path.read_bytes() for path in (folder / "named").rglob("*") if path.is_file()} == files


def test_tuned_on_a_few_shots(folder, mtx):
  """All of a model, and adapters: their own, or fresh ones."""
  few = ["--gin.protocol.shots=(0,2)", "--gin.protocol.selectors=()", "--gin.protocol.tuned=@fewshot()"]
  few += ["--gin.fewshot.learning_rates={'.*': 1e-3}", "--gin.fewshot.steps=2", "--gin.protocol.levels=('task',)"]
  for model, methods, more in (
    ("lora", "('full','adapters')", []),
    ("plain", "('adapters',)", ["--gin.fewshot.adapter=@adapter"]),
  ):
    words = ["evaluate", model, "--gin_file=run.gin", "--out", f"tuned-{model}", *few, *more]
    code, text = mtx(*words, f"--gin.fewshot.methods={methods}")
    assert code == 0, text
    rows = read_results(folder / f"tuned-{model}" / f"{model}-0")
    methods = re.findall(r"\w+", methods)
    assert {row["method"] for row in rows} == {"zero-shot", *(f"2-shot-{method}" for method in methods)}
    assert {(row["shots"], row["step"]) for row in rows} == {(0, 0), (2, 2)}
  code, text = mtx(*words, f"--gin.fewshot.methods={tuple(methods)}", "--gin.LoRA.rank=2")
  assert code == 2 and "2-shot-adapters has results of other settings: adapters was" in text


def test_the_config_of_the_first_run_is_the_default(mtx):
  code, text = mtx("evaluate", "lora", "--out", "own", "--gin.protocol.shots=(0,)", "--gin.protocol.examples=1")
  assert code == 0, text


@pytest.mark.parametrize(
  "words, said",
  [
    (["plain", "--gin.protocol.pool=test"], r"`protocol.pool` = 'test': task \w+ is judged on that split"),
    (["plain", "--gin.protocol.metrics=('exact_mtach',)"], "no metric 'exact_mtach'.\n.*exact_match"),
    (["plain", "--gin.protocol.shots=(0,99)"], "has (16|64) examples in 'train', and 99"),
    (["plain", "--gin.protocol.inputs_length=0"], "protocol.inputs_length"),
    (["plain", "plain"], "names two models"),
    (["a/b=plain"], "is no name for a model"),
    (["nowhere"], "nowhere is not there"),
    (["plain", "--seeds", "0,x"], "no whole numbers"),
    (["plain", "--gin.protocol.mixture=heldoot"], "no task or mixture 'heldoot'"),
    (["plain", "--gin.protocol.tuned=@fewshot()", "--gin.fewshot.learning_rates={'.*':1}"], "routed adapters"),
  ],
)
def test_mistakes(mtx, words, said):
  code, text = mtx("evaluate", "--gin_file=run.gin", "--out", "mistakes", *words)
  assert code == 2 and re.search(said, text), text


def test_a_corrupt_file_is_named(folder, mtx):
  words = ("evaluate", "plain", "--gin_file=run.gin", "--out", "corrupt", "--gin.protocol.shots=(0,)")
  assert mtx(*words)[0] == 0
  file = next((folder / "corrupt").rglob("*.jsonl"))
  first, *rest = file.read_text().splitlines(keepends=True)
  file.write_text("".join([first, rest[0][:9] + "\n", *rest[1:]]))
  code, text = mtx(*words)
  assert code == 2 and f"{file.name}:2 is not JSON" in text
  line = json.loads(first)
  file.write_text("".join([json.dumps(line | {"id": "another"}) + "\n", *rest]))
  code, text = mtx(*words)
  assert code == 2 and "item 'another' in place of" in text
