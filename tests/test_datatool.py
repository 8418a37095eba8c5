"""`mtx data` and `mtx cache` from end to end: tasks of a folder, built, shown, checked and listed."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random

import gin
import matplotlib.image
import pytest

from mtx.run import main

pytest.importorskip("seqio")
WORDS = ["".join(parts) for parts in itertools.product("bdfgklmnpr", "aeiou", "lmnrst", "aeiou")]  # 1500
MANIFEST = """
upper:
  files: upper.jsonl
  instruction: Write it in capital letters.
  fields: [text]
  target: answer
last:
  files: last.csv
  template: "The last word of: {{ text }}"
  target: answer
quiz:
  files: quiz.jsonl
  fields: [text]
  target: answer
  heldout: true
"""
GIN = """
train.source = @mixture
train.inputs_length = 160
train.targets_length = 128
mixture.sources = [@own]
mixture.vocabulary = 'bytes'
mixture.rates = @explicit
explicit.rates = {'own_upper': 3, 'own_last': 1}
own.path = 'data'
feed.batch = 16
"""


def text(number: int, words: int = 5) -> str:
  return " ".join(Random(number).sample(WORDS, words))


def write_jsonl(path: Path, rows: list[tuple[str, str]]) -> None:
  path.write_text("".join(json.dumps({"text": x, "answer": y}) + "\n" for x, y in rows))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with data, a gin file and a cache. Three of the 20 questions of the quiz are learned from."""
  root = tmp_path_factory.mktemp("place")
  (root / "data").mkdir()
  known = [text(300 + i, 16) for i in range(3)]
  write_jsonl(root / "data" / "upper.jsonl", [(x, x.upper()) for x in [*map(text, range(40)), *known]])
  write_jsonl(root / "data" / "quiz.jsonl", [(x, x.upper()) for x in [*map(text, range(100, 117)), *known]])
  rows = [f"{text(i)},{text(i).split()[-1]}" for i in range(200, 220)]
  (root / "data" / "last.csv").write_text("\n".join(["text,answer", *rows]) + "\n")
  (root / "data" / "tasks.yaml").write_text(MANIFEST)
  (root / "my.gin").write_text(GIN)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(root)
    assert main(["data", "build", "--gin_file=my.gin", "--cache_dir=cache"]) == 0
  gin.clear_config()
  return root


@pytest.fixture
def mtx(place, monkeypatch, capsys):
  """Runs the command line in this process; returns (exit code, standard output, standard error)."""
  monkeypatch.chdir(place)
  monkeypatch.setenv("COLUMNS", "160")

  def run(words: str) -> tuple[int, str, str]:
    gin.clear_config()
    capsys.readouterr()
    try:
      code = main(words.split())
    except SystemExit as stopped:  # argparse
      code = stopped.code
    return code, *capsys.readouterr()

  return run


def row(output: str, first: str) -> list[str]:
  return next(line.split() for line in output.splitlines() if line.split()[:1] == [first])


def test_build_says_what_it_builds_and_does_it_once(mtx, tmp_path):
  code, said, _ = mtx(f"data build --gin_file=my.gin --cache_dir={tmp_path}")
  assert code == 0
  assert "own_train: 0 splits cached, 2 to build" in said and "own_train: 2 tasks, 63 examples" in said
  assert "own_heldout: 0 splits cached, 1 to build" in said and "own_heldout: 1 tasks, 20 examples" in said
  code, said, _ = mtx(f"data build --gin_file=my.gin --cache_dir={tmp_path}")
  assert (code, said.splitlines()) == (0, ["own_train: 2 tasks, 63 examples", "own_heldout: 1 tasks, 20 examples"])


@pytest.mark.parametrize("words", ["--gin_file=my.gin", "own_train", "train --gin.feed.batch=16"])
def test_show_prints_rates_shares_and_rows(mtx, place, words):
  code, said, _ = mtx(f"data show {words} -n 2 --cache_dir=cache --gin.train.inputs_length=160")
  assert code == 0
  upper, last = row(said, "own_upper"), row(said, "own_last")
  assert (upper[1], last[1]) == ("75.0%", "25.0%")
  assert abs(float(upper[2].rstrip("%")) - 75) < 5 and abs(float(last[2].rstrip("%")) - 25) < 5
  assert (upper[4], last[4]) == ("43", "20")
  assert [f"row {n}:" in said for n in (1, 2, 3)] == [True, True, False]
  known = {json.loads(line)["text"] for line in (place / "data" / "upper.jsonl").read_text().splitlines()}
  shown = re.findall(r"encoder │ Write it in capital letters.⏎⏎(.*?)</s>", said)
  assert shown and set(shown) <= known
  assert f"decoder │ ⟦{shown[0].upper()}</s>⟧" in said


def test_show_of_a_mixture_that_is_held_out_shows_what_it_is_judged_on(mtx):
  code, said, _ = mtx("data show heldout -n 1 --cache_dir=cache")
  assert code == 0 and "own_heldout, test: 1 tasks" in said and row(said, "own_quiz")[4] == "20"


def test_bindings_count_without_a_gin_file(mtx):
  code, said, _ = mtx("data show -n 1 --cache_dir=cache --gin.model.architecture=causal")
  assert code == 0 and "decoder │" not in said and "encoder" not in said


def test_check_finds_the_planted_leak_and_fails_only_if_asked(mtx):
  code, said, _ = mtx("data check --gin_file=my.gin --cache_dir=cache")
  assert code == 0 and "1 of 2 pairs flagged" in said
  assert row(said, "!") == ["!", "own_upper", "own_quiz", "(test)", "20", "15.0%", "15.0%", "15.0%"]
  code, said, _ = mtx("data check --gin_file=my.gin --cache_dir=cache --fail_on leaks conflicts")
  assert code == 1 and "leaks 15.0% own_quiz (test): of 20 examples 3 share a 13-gram" in said
  code, said, _ = mtx("data check own_train --cache_dir=cache --fail_on conflicts duplicates empty")
  assert code == 0 and "1 of 2 pairs flagged" in said and "no problem is over its threshold" in said


def test_check_says_when_it_looked_for_no_leaks(mtx):
  code, said, _ = mtx("data check own_train --against --cache_dir=cache")
  assert code == 0 and "leaks were not looked for" in said
  code, _, said = mtx("data check own_train --against --fail_on leaks --cache_dir=cache")
  assert code == 2 and "leaks of own_train can not be found: there is no evaluation set" in said


@pytest.mark.parametrize("name", ["lengths.png", "figures/lengths.svg"])
def test_figure_has_something_on_it(mtx, tmp_path, name):
  code, said, _ = mtx(f"data check --cache_dir=cache --figure {tmp_path / name}")
  assert code == 0 and f"lengths: {tmp_path / name}" in said
  if name.endswith("png"):
    pixels = matplotlib.image.imread(tmp_path / name)
    assert pixels.shape[0] > 200 and pixels.shape[1] > 600
    assert 0.005 < (pixels[..., :3].min(axis=-1) < 0.7).mean() < 0.5  # ink on white
  else:
    assert (tmp_path / name).read_text().count("<path") > 20


def test_cache_lists_mixtures_and_marks_what_is_damaged(mtx, place, tmp_path):
  shutil.copytree(place / "cache", tmp_path / "cache")
  code, said, _ = mtx(f"cache --list --cache_dir={tmp_path / 'cache'}")
  assert code == 0
  assert row(said, "own_train")[1:3] == ["2", "63"] and row(said, "own_heldout")[1:3] == ["1", "20"]
  (file,) = (tmp_path / "cache" / "tasks" / "own_upper").glob("train-*/examples-*")
  file.write_bytes(file.read_bytes()[:-100])
  code, said, _ = mtx(f"cache --list --cache_dir={tmp_path / 'cache'}")
  assert code == 0 and row(said, "own_train")[-1] == "unusable"
  assert "is damaged: it has" in " ".join(said.split())  # a long path breaks the line anywhere
  assert row(said, "own_heldout")[1:3] == ["1", "20"]
  for source in ("own_train", "--gin_file=my.gin"):
    code, _, said = mtx(f"data show {source} --cache_dir={tmp_path / 'cache'}")
    assert code == 2 and re.search(r"array_record is damaged: it has \d+ of \d+ bytes\n  delete the folder", said)
  shutil.rmtree(file.parent)
  assert mtx(f"data build --gin_file=my.gin --cache_dir={tmp_path / 'cache'}")[0] == 0
  assert mtx(f"data show own_train -n 0 --cache_dir={tmp_path / 'cache'}")[0] == 0


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ("data", "the following arguments are required: ACTION"),
    ("data build", "`mtx data build` needs a gin file"),
    ("data build --gin_file=nowhere.gin", "gin file 'nowhere.gin' .* is not there"),
    ("data build --gin_file=my.gin --gin.own.path=gone", r"own\.path is 'gone': there is no such folder\n.*MTX_DATA"),
    ("data build --gin_file=my.gin --gin.own.path=3", r"`own\.path` at .* is `3`\n  expected a string"),
    ("data build --gin_file=my.gin --gin.train.source=3", r"`train\.source` at --gin\.train\.source=3 gives int"),
    ("data build --gin_file=my.gin --gin.mixture.sources=@own", r"sources` at .* is `@own`\n.*`\[@own\]`"),
    ("data build --gin_file=my.gin --gin.mixture.rates=@uniform()", r"rates` at .* is `@uniform\(\)`\n.*without \(\)"),
    ("data build --gin_file=my.gin --gin.mixture.rates=uniform", r"rates` at .* is `'uniform'`\n.*`@uniform`"),
    ("data build --gin_file=my.gin --gin.mixture.holdout=task=own_last", r"is 'task=own_last', not a list"),
    ("data build --gin_file=my.gin --gin.mixture.name=a/b --gin.mixture.extra_ids=1", r"mixture\.name is 'a/b'"),
    ("data build --gin_file=my.gin --gin.mixture.extra_ids=-1", r"mixture\.extra_ids is -1"),
    ("data build --gin_file=my.gin --gin.explicit.rates={'own_*':0}", "rates sum to 0"),
    ("data build --gin_file=my.gin --gin.explicit.rates={'own_*':'all'}", "with `'all'` in it\n  expected a number"),
    ("data build --gin_file=my.gin --cache_dir=my.gin", r"my\.gin/sources/own\.json can not be written"),
    ("data build --gin_file=my.gin --runner=DirectRunner", "argument '--runner=DirectRunner' is not known"),
    ("data show --cache_dir=nowhere", "there is no cache folder 'nowhere'.*\n.*mtx data build"),
    ("data show own_trian --cache_dir=cache", "no mixture 'own_trian' in the cache cache.*\n.*`own_train`"),
    ("data show own_trian --gin_file=my.gin", "no mixture 'own_trian' .*\n.*`own_train`"),
    ("data show --cache_dir=cache -n -1", "-n is -1"),
    ("data show --cache_dir=cache --tokens -3", "--tokens is -3"),
    ("data show --cache_dir=cache --batches 0", "--batches is 0"),
    ("data show --cache_dir=cache --split trian", r"'own_last' has no examples in split 'trian'\n.*train \(20\)"),
    ("data show --cache_dir=cache --gin.train.inputs_length=many", r"inputs_length` at .* is `.many.`\n  expected"),
    ("data show --cache_dir=cache --gin.modell.architecture=causal", r"`modell\.architecture`"),
    ("data show --cache_dir=cache --gin.model.architecture=causl", "architecture 'causl' is not known\n.*`causal`"),
    ("data check --cache_dir=cache --gin.train.targets_length=0.5", r"targets_length` at .* is `0\.5`\n  expected"),
    ("data check --cache_dir=cache --fail_on leeks", "--fail_on names 'leeks'.*\n.*`leaks`"),
    ("data check --cache_dir=cache --fail_on", "--fail_on: expected at least one argument"),
    ("data check --cache_dir=cache --against hedlout", "no mixture 'hedlout' .*\n.*`heldout`"),
    ("data check --cache_dir=cache --figure lengths.xyz", r"--figure lengths\.xyz ends with '\.xyz'"),
    ("data check --cache_dir=cache --figure my.gin/lengths.png", r"--figure my\.gin/lengths\.png can not be written"),
    ("data check own_heldout --cache_dir=cache", "no task of 'own_heldout' has examples in split 'train'"),
    ("cache", "required: --list"),
    ("cache --list --cache_dir=nowhere", "there is no cache folder 'nowhere'"),
    ("cache --list --gin.train.seed=3", "argument '--gin.train.seed=3' is not known"),
  ],
)
def test_mistakes_have_one_message_and_status_2(mtx, words, message):
  code, _, said = mtx(words)
  assert code == 2 and "Traceback" not in said
  assert re.search(message, said), said
  assert len(re.findall(r"^mtx[: ]", said, re.MULTILINE)) == 1


@pytest.mark.parametrize(
  ("content", "message"),
  [
    ('{"train": "own_tr', r"own\.json is damaged: .*\n.*build the cache again"),
    ('"own"', r"own\.json is damaged"),
  ],
)
def test_a_damaged_record_of_a_source_is_named(mtx, tmp_path, content, message):
  (tmp_path / "sources").mkdir()
  (tmp_path / "sources" / "own.json").write_text(content)
  code, _, said = mtx(f"data show --cache_dir={tmp_path}")
  assert code == 2 and re.search(message, said)


def test_a_damaged_vocabulary_or_manifest_is_mended_by_building(mtx, tmp_path, monkeypatch):
  monkeypatch.setenv("MTX_CACHE", str(tmp_path))
  build = "data build --gin_file=my.gin --gin.mixture.vocabulary=None"
  assert mtx(f"{build} --gin.mixture.vocabulary_size=80 --cache_dir={tmp_path}/first")[0] == 0
  shutil.copytree(tmp_path / "first", tmp_path / "cache")  # a process keeps the models that it has read
  words = f"{build} --cache_dir={tmp_path}/cache"
  (file,) = (tmp_path / "cache" / "vocabularies").glob("*.model")
  whole = file.read_bytes()
  file.write_bytes(whole[:50])
  code, _, said = mtx(f"data show own_train -n 1 --cache_dir={tmp_path}/cache")
  assert code == 2 and re.search(r"is not a SentencePiece model\n  copy or build it again", said)
  assert mtx(f"{words} --gin.mixture.vocabulary_size=80")[0] == 0 and file.read_bytes() == whole
  (manifest,) = (tmp_path / "cache" / "tasks" / "own_upper").glob("train-*/manifest.json")
  manifest.write_text("{")
  code, said, _ = mtx(f"{words} --gin.mixture.vocabulary_size=90")
  assert code == 0 and "1 to build" in said  # the damaged manifest can not say what is stale


def test_a_build_that_is_stopped_says_so_and_goes_on(mtx, place, tmp_path, monkeypatch):
  (tmp_path / "stopping.py").write_text(
    "import gin\nfrom mtx.tasks.task import Collection, TextTask\n\n"
    "def rows(split, reading):\n"
    "  if split == 'test':\n    raise KeyboardInterrupt\n"
    "  yield {'inputs': 'a', 'targets': 'b'}\n\n"
    "@gin.configurable\ndef stopping():\n"
    "  return Collection('stopping', (TextTask('stopping_a', 'c', rows, {'train': 1, 'test': 1}),))\n"
  )
  (tmp_path / "stop.gin").write_text("import stopping\ntrain.source = @mixture\nmixture.sources = [@stopping]\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  words = f"data build --gin_file={tmp_path}/stop.gin --gin.mixture.vocabulary=bytes --cache_dir={tmp_path}/cache"
  for built in ("0 splits cached, 2 to build", "1 splits cached, 1 to build"):
    code, said, error = mtx(words)
    assert code == 130 and built in said and error == "mtx: stopped; the same command goes on from what is done.\n"


def test_what_is_cached_is_shown_without_seqio_and_a_process_ends_with_its_status(place):
  program = (
    "import sys; from mtx.run import main; code = main(sys.argv[1:]); "
    "sys.exit(9 if {'seqio', 'tensorflow'} & set(sys.modules) else code)"
  )
  run = lambda *words: subprocess.run(
    [sys.executable, "-c", program, *words, "--cache_dir=cache"], cwd=place, capture_output=True, text=True
  )
  done = run("data", "check", "own_train", "--fail_on", "leaks")
  assert done.returncode == 1 and "leaks 15.0%" in done.stdout and not done.stderr


def test_a_broken_row_stops_a_build_or_is_counted(mtx, place, tmp_path):
  """The budget is bound on the command line, as the message says."""
  shutil.copytree(place / "data", tmp_path / "data")
  with (tmp_path / "data" / "upper.jsonl").open("a") as file:
    file.write('{"text": "half a row", "answer"\n')
  build = f"data build --gin_file=my.gin --cache_dir={tmp_path / 'cache'} --gin.own.path={tmp_path / 'data'}"
  code, _, said = mtx(build)
  assert code == 2 and "upper.jsonl:44: column 32: not JSON" in said
  code, said, _ = mtx(f"{build} --gin.own.bad_rows=1 --gin.build.bad_rows=1")
  assert code == 0 and "own_train: 2 tasks, 63 examples" in said
  assert "own_upper train: 1 bad rows left out of 43; the first:" in said


def test_parts_of_a_mixture_are_built_too(mtx, tmp_path):
  """So that a machine without SeqIO finds them."""
  build = f"data build --gin_file=my.gin --cache_dir={tmp_path}"
  code, said, _ = mtx(build + " --gin.mixture.parts={'last':{'task=own_last':1.0}}")
  assert code == 0 and "own_last: 2 tasks, 63 examples" in said
  assert json.loads((tmp_path / "own_last.json").read_text())["rates"] == [1.0, 0.0]
