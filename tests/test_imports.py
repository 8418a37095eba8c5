"""Data goes one way: a package imports from its left only, and the core runs without SeqIO and TensorFlow."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = (
  "tokens", "tasks", "data", "parallel", "models", "adapters", "objectives", "taskgrad", "training", "pretrained",
  "merge", "decode", "eval", "analysis", "report", "bench",
)  # fmt: skip
ALL = {"errors", "atomic"}  # modules beside the packages that every package may use
HEAVY = ("tensorflow", "tensorflow_datasets", "tensorflow_text", "seqio")
# All else runs where SeqIO is not installed, task providers too: worker processes read rows without TensorFlow.
SEQIO = ("tasks/source.py", "tasks/mixture.py", "tasks/registered.py", "tasks/vocabularies.py", "tasks/tfds.py",
         "data/build.py")  # fmt: skip
MODULES = [path for package in ("mtx", "pallas_kernels") for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> Iterator[tuple[str, int]]:
  """(dotted name, line) of every import of a file, those inside functions and under TYPE_CHECKING too."""
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      yield from ((alias.name, node.lineno) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path}:{node.lineno}: relative import"
      yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def room(path: Path) -> str:
  """The package, or the module at the root, that a file of mtx belongs to."""
  first = path.relative_to(ROOT / "mtx").parts[0]
  return first.removesuffix(".py")


def needs_seqio(path: Path) -> bool:
  return path.relative_to(ROOT / "mtx").as_posix() in SEQIO


def place(path: Path, line: int) -> str:
  return f"{path.relative_to(ROOT).as_posix()}:{line}"


def test_every_package_has_a_place_in_the_order():
  packages = {path.name for path in (ROOT / "mtx").iterdir() if (path / "__init__.py").is_file()}
  assert packages <= set(ORDER)


def test_packages_import_from_their_left_only():
  wrong = []
  for path in (path for path in MODULES if path.is_relative_to(ROOT / "mtx")):
    here = room(path)
    for name, line in imported(path):
      parts = name.split(".")
      if parts[0] == "mtx" and len(parts) > 1 and here in ORDER:
        there = parts[1]
        allowed = there in ALL or (there in ORDER and ORDER.index(there) <= ORDER.index(here))
        if not allowed:
          wrong.append(f"{place(path, line)}: {here} imports {name}")
      if parts[0] == "pallas_kernels" and here in ORDER and ORDER.index(here) < ORDER.index("models"):
        wrong.append(f"{place(path, line)}: {here} imports {name}")
  assert not wrong, "\n".join(wrong)


def test_nobody_imports_the_command_line():
  wrong = [
    place(path, line)
    for path in MODULES
    for name, line in imported(path)
    if name == "mtx.run" or name.startswith("mtx.run.")
  ]
  assert not wrong, wrong


def test_kernels_import_nothing_of_mtx():
  kernels = [path for path in MODULES if path.is_relative_to(ROOT / "pallas_kernels")]
  wrong = [place(path, line) for path in kernels for name, line in imported(path) if name.split(".")[0] == "mtx"]
  assert not wrong, wrong


def test_packages_are_imported_without_side_effects():
  """An `__init__` is its docstring."""
  for path in MODULES:
    if path.name == "__init__.py":
      body = ast.parse(path.read_text(encoding="utf-8")).body
      assert len(body) == 1 and isinstance(body[0], ast.Expr), path


def test_tensorflow_and_seqio_stay_in_their_rooms():
  wrong = []
  for path in MODULES:
    if path.is_relative_to(ROOT / "mtx") and needs_seqio(path):
      continue
    for name, line in imported(path):
      if name.split(".")[0] in HEAVY:
        wrong.append(f"{place(path, line)}: {name}")
  assert not wrong, "\n".join(wrong)


BLOCKED = """
import importlib, sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in sys.argv[1].split():
      raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
for name in sys.argv[2:]:
  importlib.import_module(name)
print("imported", len(sys.argv) - 2)
"""


def without_seqio() -> list[str]:
  """Modules that must run from caches and checkpoints that were made elsewhere."""
  names = []
  for path in MODULES:
    if not (path.is_relative_to(ROOT / "mtx") and needs_seqio(path)):
      module = path.relative_to(ROOT).with_suffix("")
      names.append(".".join(module.parts).removesuffix(".__init__"))
  return names


def test_core_imports_where_seqio_and_tensorflow_are_not_installed():
  names = without_seqio()
  assert {"mtx.run", "mtx.ginfile", "mtx.tasks.metrics", "mtx.data.cache"} <= set(names)
  run = subprocess.run(
    [sys.executable, "-c", BLOCKED, " ".join(HEAVY), *names],
    env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert run.returncode == 0, run.stderr
  assert f"imported {len(names)}" in run.stdout


@pytest.mark.parametrize("name", HEAVY)
def test_the_blocker_blocks(name):
  command = [sys.executable, "-c", BLOCKED, " ".join(HEAVY), name]
  run = subprocess.run(command, capture_output=True, text=True, timeout=60)
  assert run.returncode and f"{name} is blocked" in run.stderr
