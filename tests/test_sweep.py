"""`mtx sweep` and what it shares with `mtx reproduce`: runs start once, are gone on with, and named when they fail."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from mtx.errors import UserError
from mtx.launch import (
  DONE,
  FAILED,
  QUEUED,
  RUNNING,
  STOPPED,
  WAITING,
  Job,
  by_template,
  one_by_one,
  prepare,
  read,
  save,
)
from mtx.report.log import write_results
from mtx.run import main
from mtx.sweep import axis, run_name, summary, write_table

REPOSITORY = Path(__file__).parents[1]
GIN = """
SEED = 0
train.seed = %SEED
train.source = @procedural
train.cache_dir = 'cache'
train.run_dir = 'run'
train.stages = [@tune/stage()]
train.inputs_length = 16
train.targets_length = 8
train.keep_model = False
procedural.examples = 8
model.preset = 't5_micro'
feed.batch = 8
evaluation.examples = 2
evaluation.sample = 0
evaluation.before = False
tune/stage.steps = 2
tune/stage.learning_rates = {'.*': 1e-3}
"""
WRITES = "import sys; open(sys.argv[1], 'a').write('x'); print('the reason'); sys.exit(int(sys.argv[2]))"


def job(folder: Path, name: str, code: int = 0, **settings: str) -> Job:
  """Leaves an x for each time it is run."""
  command = [sys.executable, "-c", WRITES, str(folder / f"{name}.x"), str(code)]
  return Job(name, str(folder / name), command, settings)


def runs(folder: Path, name: str) -> int:
  file = folder / f"{name}.x"
  return len(file.read_text()) if file.exists() else 0


def test_what_is_done_is_skipped_and_what_failed_does_not_stop_others(tmp_path):
  jobs = lambda: [(prepare(job(tmp_path, name, code)), None) for name, code in (("a", 0), ("b", 3), ("c", 0))]
  told = []
  ended, through = one_by_one(jobs(), lambda each: told.append((each.name, each.state)))
  assert through and [each.state for each in ended] == [DONE, FAILED, DONE]
  assert told == list(itertools.chain(*([(n, RUNNING), (n, s)] for n, s in (("a", DONE), ("b", FAILED), ("c", DONE)))))
  assert ended[1].code == 3 and "the reason" in ended[1].said() and ended[1].seconds > 0
  ended, _ = one_by_one(jobs(), lambda each: None)
  assert [runs(tmp_path, name) for name in "abc"] == [1, 2, 1]


def test_a_run_that_was_told_to_stop_ends_the_row_and_is_gone_on_with(tmp_path):
  jobs = lambda code: [(prepare(job(tmp_path, name, code)), None) for name in "ab"]
  ended, through = one_by_one(jobs(143), lambda each: None)
  assert not through and [each.state for each in ended] == [STOPPED]
  ended, through = one_by_one(jobs(0), lambda each: None)
  assert through and [runs(tmp_path, name) for name in "ab"] == [2, 1]


def test_other_settings_are_noticed(tmp_path):
  one_by_one([(prepare(job(tmp_path, "a", rank="4")), None)], lambda each: None)
  with pytest.raises(UserError, match=r"(?s)a was run with other settings: rank was 4 and is 8\..*--anew"):
    prepare(job(tmp_path, "a", rank="8"))
  with pytest.raises(UserError, match=r"rank was 4 and is not bound \(and 1 more\)"):
    prepare(job(tmp_path, "a", alpha="1"))
  kept: list[Path] = []
  assert prepare(job(tmp_path, "a", rank="4"), kept.append).state == DONE and not kept
  assert prepare(job(tmp_path, "a", rank="8"), kept.append).state == WAITING and kept == [tmp_path / "old" / "a.1"]
  assert read(kept[0]).state == DONE and read(tmp_path / "a").settings == {"rank": "8"}
  (tmp_path / "a" / "job.json").write_text("{")
  with pytest.raises(UserError, match=r"job\.json is no record of a run"):
    prepare(job(tmp_path, "a", rank="4"))


SAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("up", flush=True)
time.sleep(50)
"""


def test_sigterm_reaches_the_run_and_one_that_was_left_alone_is_not_run_twice(tmp_path):
  """A launcher that is told to end lets its command save; one that is killed leaves it behind, still running."""
  made = Job("a", str(tmp_path / "a"), [sys.executable, "-c", SAVES], {})
  save(made)
  for number, code, state in ((signal.SIGTERM, 143, STOPPED), (signal.SIGKILL, -9, RUNNING)):
    made.log.unlink(missing_ok=True)
    launcher = subprocess.Popen([sys.executable, "-m", "mtx.launch", str(tmp_path / "a")], cwd=REPOSITORY)
    deadline = time.monotonic() + 60
    while not (made.log.exists() and "up" in made.log.read_text()):
      assert time.monotonic() < deadline and launcher.poll() is None
      time.sleep(0.05)
    launcher.send_signal(number)
    assert launcher.wait(30) == code and read(tmp_path / "a").state == state
  there = prepare(made)
  with pytest.raises(UserError, match=f"is being run by process {there.pid}"):
    one_by_one([(there, None)], lambda each: None)
  os.kill(there.pid, signal.SIGKILL)
  while Path(f"/proc/{there.pid}").exists() and time.monotonic() < deadline:
    time.sleep(0.05)
  assert prepare(made).state == STOPPED


def test_a_queue_runs_them_and_the_same_command_waits_for_it(tmp_path, monkeypatch):
  monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
  jobs = [prepare(job(tmp_path, name, code)) for name, code in (("a", 0), ("b", 2))]
  told = []
  ended = by_template(jobs, "( sleep 0.2; {command} ) & echo {name}", lambda j: told.append(j.state), pause=0.1)
  assert [each.state for each in ended] == [DONE, FAILED] and told[:2] == [QUEUED, QUEUED]
  assert "the reason" in ended[1].said()
  # Done stays done; what is queued already is waited for, and not handed over twice.
  jobs = [prepare(job(tmp_path, "a")), prepare(job(tmp_path, "c"))]
  save(Job(**{**vars(jobs[1]), "state": QUEUED}))
  late = subprocess.Popen([sys.executable, "-m", "mtx.launch", str(tmp_path / "c")], stdout=subprocess.DEVNULL)
  ended = by_template([jobs[0], read(tmp_path / "c")], "exit 1 # {command}", lambda j: None, pause=0.1)
  assert late.wait(30) == 0 and [each.state for each in ended] == [DONE, DONE]
  assert [runs(tmp_path, name) for name in "abc"] == [1, 1, 1]


def test_a_template_that_fails_or_runs_nothing(tmp_path):
  (ended,) = by_template([prepare(job(tmp_path, "a"))], "echo no such partition; exit 1 # {command}", lambda j: None)
  assert ended.state == FAILED and "no such partition" in ended.said()
  with pytest.raises(UserError, match=r"has no \{command\}"):
    by_template([ended], "sbatch", lambda j: None)


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("MHR.rank=4", "is no list of values"),
    ("MHR.rank", "can not be read|is no list"),
    ("MHR.rank=[]", "has no values"),
    ("MHR.rank=[2, 2]", "has 2 twice"),
    ("MHR.rank=[2,", "can not be read as gin"),
    ("MHR.rank=[two]", "can not be read as gin"),
  ],
)
def test_values_that_are_none_are_refused(text, says):
  with pytest.raises(UserError, match=says):
    axis(text)


def test_names_tell_the_values_and_are_never_equal():
  values = axis("stage.adapter=[@adapter, 'adapter', None]").values
  cells = [{"a/stage.steps": 2, "x.y": value} for value in (*values, 1, 1.0, "1", "a" * 99, "a" * 98)]
  names = [run_name(cell) for cell in cells]
  assert len(set(names)) == len(names) and names[0].startswith("steps=2,y=_adapter-")
  assert all(len(name) < 99 and "/" not in name for name in names)


def test_a_table_takes_any_values_and_says_which_run_a_row_is_of(tmp_path):
  pandas = pytest.importorskip("pandas")
  row = {
    "stage": "t",
    "method": "m",
    "split": "train",
    "task": "a",
    "category": "c",
    "metric": "f1",
    "seed": 3,
    "count": 2,
    "step": 1,
  }
  cells = {}
  for i, value in enumerate((1, 2.5, axis("x.y=[@adapter]").values[0])):
    folder = tmp_path / f"r{i}"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps([{**row, "value": 50 + i, **({"shots": 4} if i else {})}]))
    cells[str(folder)] = {"x.y": value, "seed": i, "flag": bool(i), "rate": 1 if i else 0.5}
  cells[str(tmp_path / "not run")] = {"x.y": 1, "seed": 9, "flag": False, "rate": 0.1}
  assert write_table(tmp_path, cells) == 3
  table = pandas.read_parquet(tmp_path / "results.parquet")
  assert list(table["run"]) == ["r0", "r1", "r2"] and list(table["x.y"]) == ["1", "2.5", "@adapter"]
  assert list(table["swept seed"]) == [0, 1, 2] and list(table["seed"]) == [3, 3, 3]
  assert table["value"].dtype == "float64" and table["rate"].dtype == "float64" and table["flag"].dtype == "bool"
  assert table["shots"].isna().tolist() == [True, False, False]


def test_the_console_shows_what_a_run_was_judged_on_last(tmp_path):
  folder = tmp_path / "run"
  row = {"method": "trained", "split": "train", "category": "c", "metric": "f1", "seed": 0, "count": 2}
  stages = (("pretrain", 10, (20, 30)), ("route", 20, (60, 71)))
  rows = [
    {**row, "stage": stage, "step": step, "task": task, "value": value}
    for stage, step, values in stages
    for task, value in zip("ab", values, strict=True)
  ]
  write_results(folder, rows)
  ended = Job("run", str(folder), [], {}, state=DONE)
  console = Console(width=80, record=True, file=io.StringIO())
  console.print(summary([ended], {str(folder): {"SEED": 0}}))
  assert "65.5" in console.export_text()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  pytest.importorskip("seqio")
  folder = tmp_path_factory.mktemp("place")
  (folder / "tiny.gin").write_text(GIN)
  return folder


def test_a_sweep_of_runs_one_of_which_fails(place, monkeypatch, capsys):
  """Two presets, one misspelt: the other run is done, once; the table and the exit code say what there is."""
  pandas = pytest.importorskip("pandas")
  monkeypatch.chdir(place)
  monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
  monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
  words = ["sweep", "--gin_file=tiny.gin", "--over", "model.preset=['t5_mikro', 't5_micro']", "--over", "SEED=[7]"]
  before = None
  for _ in range(2):
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "failed: preset=t5_mikro,SEED=7-" in said and "did you mean `t5_micro`" in said
    (done,) = (Path("runs/sweeps/tiny")).glob("preset=t5_micro*")
    results = done / "results.json"
    assert before in (None, results.stat().st_mtime_ns)
    before = results.stat().st_mtime_ns
  assert "2 runs, 1 of them done" in said and "nothing left" not in said
  table = pandas.read_parquet("runs/sweeps/tiny/results.parquet")
  assert set(table["model.preset"]) == {"t5_micro"} and set(table["SEED"]) == {7} == set(table["seed"])
  assert len(table) == len(json.loads(results.read_text())) > 5 and set(table["run"]) == {done.name}


@pytest.mark.parametrize(
  ("words", "says"),
  [
    ([], "needs a gin file"),
    (["--gin_file=tiny.gin"], "needs values to sweep over"),
    (["--gin_file=tiny.gin", "--over", "SEED=[1]", "--over", "SEED=[2]"], "'SEED' is given by --over twice"),
    (["--gin_file=tiny.gin", "--over", "SEED=[1]", "--gin.SEED=2"], "'SEED' is given by --over and --gin"),
    (["--gin_file=tiny.gin", "--over", "train.run_dir=['a', 'b']"], "the sweep's to choose"),
    (["--gin_file=tiny.gin", "--over", "feed.bacth=[1]"], "did you mean `feed.batch`"),
    (["--gin_file=tiny.gin", "--over", "feed.batch=[8, 'many']"], "expected a whole number"),
    (["--gin_file=tiny.gin", "--over", "SEED=[1]", "--launch", "sbatch"], "has no {command}"),
  ],
)
def test_mistakes_are_named_before_anything_runs(place, monkeypatch, capsys, words, says):
  monkeypatch.chdir(place)
  assert main(["sweep", *words, "--out", "nothing"]) == 2
  assert says in capsys.readouterr().err and not list(Path("nothing").glob("*/log.txt"))
