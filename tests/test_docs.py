"""What the documentation shows can be run, what it links to is there, and the reference is what the code says."""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mtx import ginfile, reproduce, sweep
from mtx.errors import UserError
from mtx.run import parser, register
from mtx.tasks.metrics import METRICS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.parent.name != "reference")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(page, kind, text) for page in PAGES for kind, text in BLOCK.findall(page.read_text(encoding="utf-8"))]
COMMANDS = [(page, line) for page, _, text in BLOCKS for line in text.splitlines() if line.startswith("mtx ")]


def verbs(of: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
  return next(action.choices for action in of._actions if isinstance(action, argparse._SubParsersAction))


@pytest.fixture(scope="module", autouse=True)
def registered():
  pytest.importorskip("seqio")
  register()


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[line[:70] for _, line in COMMANDS])
def test_every_command_is_understood(page, line):
  """Options are known, gin files are there, and their bindings fit; for a run nothing is missing but its data."""
  arguments, rest = parser().parse_known_args(shlex.split(line)[1:])
  bindings = [word.removeprefix("--gin.") for word in rest if word.startswith("--gin.") and "=" in word]
  assert len(rest) == len(bindings), f"{page.name}: {rest}"
  if arguments.command == "sweep":
    assert list(sweep.jobs(arguments.gin_file, [sweep.axis(text) for text in arguments.over], bindings, Path("out")))
  elif arguments.command == "reproduce":
    assert arguments.list or reproduce.chosen_files(arguments.recipes)
  elif getattr(arguments, "gin_file", None):
    called = ["train"] if arguments.command == "train" else []
    ginfile.load(arguments.gin_file, bindings, called=called)


@pytest.mark.parametrize("options", ["--gin_file=no.gin", "--gin_file=configs/run/quickstart.gin --gin.feed.bacth=1"])
def test_a_command_that_does_not_fit_is_noticed(options):
  with pytest.raises(UserError):
    test_every_command_is_understood(DOCS, f"mtx train {options}")


def test_every_gin_block_is_read():
  found = [(page, text) for page, kind, text in BLOCKS if not kind and re.match(r"(# \w+\.gin\n)?[\w/.]+ = ", text)]
  assert len(found) >= 2
  for page, text in found:
    bindings = [line for line in text.splitlines() if not line.startswith("#")]
    idle = ["recipe"] if "recipe." in text else []
    ginfile.load([], bindings, idle=idle) if page.stem != "train" else ginfile.load([], bindings, called=["train"])


def test_every_python_block_compiles():
  for page, kind, text in BLOCKS:
    if kind == "python":
      compile(text, page.name, "exec")


def test_every_command_has_a_page():
  """`mtx data build` is on the page of `mtx data`."""
  there = {path.stem for path in (DOCS / "howto").glob("*.md")}
  assert set(verbs(parser())) == there
  for verb in there:
    assert any(line.startswith(f"mtx {verb}") for page, line in COMMANDS if page.stem == verb)


@pytest.mark.parametrize("page", [*PAGES, *sorted((DOCS / "reference").glob("*.md"))], ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page):
  for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", page.read_text(encoding="utf-8")):
    assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_linked():
  linked = set(re.findall(r"\]\(([^)]+\.md)\)", (DOCS / "README.md").read_text()))
  assert {(DOCS / each).resolve() for each in linked} == set(DOCS.rglob("*.md")) - {DOCS / "README.md"}
  assert "(docs/README.md)" in (ROOT / "README.md").read_text()


def test_the_reference_is_what_the_code_says():
  # In a process of its own: other tests make more known to gin.
  code = f"import json, runpy; print(json.dumps(runpy.run_path({str(DOCS / 'generate.py')!r})['pages']()))"
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
  assert run.returncode == 0, run.stderr
  made = json.loads(run.stdout.splitlines()[-1])
  written = {path.name: path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md")}
  stale = sorted(name for name in {*made, *written} if made.get(name) != written.get(name))
  assert not stale, f"run `make docs`: {', '.join(stale)} of docs/reference are not what the code says"
  assert "`stage.`" in made["training.md"] and "## mtx decode" in made["commands.md"]


def test_every_metric_is_listed():
  listed = set(re.findall(r"`(\w+)`", (DOCS / "howto" / "score.md").read_text(encoding="utf-8")))
  assert METRICS.keys() <= listed
