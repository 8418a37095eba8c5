"""Notebooks run from the first cell to the last, in a kernel of their own, as Jupyter and Colab run them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "colabs").glob("*.ipynb"))
# What replaces the values of a notebook's cell of parameters: as many steps as show that the line works.
SMALL = {
  "lora": {"PRETRAIN_STEPS": 4, "STEPS": 6},
  "superni": {"TRAIN_TASKS": 6, "TEST_TASKS": 2, "EXAMPLES": 8, "PRETRAIN_STEPS": 4, "STEPS": 6},
  "prefix": {"STEPS": 6, "SEEDS": (0,)},
  "compare": {"PRETRAIN_STEPS": 4, "STEPS": 6},
}
FIGURES = {"install": 1, "lora": 1, "superni": 3, "prefix": 2, "compare": 1}


def read(path: Path):
  return pytest.importorskip("nbformat").read(path, as_version=4)


def code(notebook) -> list:
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters(notebook) -> list:
  return [cell for cell in code(notebook) if "parameters" in cell.metadata.get("tags", [])]


@pytest.fixture
def execute(tmp_path, monkeypatch):
  """execute(path, **values): the notebook as it was run in an empty folder, with these values for its parameters."""
  client = pytest.importorskip("nbclient")
  pytest.importorskip("ipykernel")
  pytest.importorskip("seqio")
  monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")

  def run(path: Path, **values):
    notebook = read(path)
    for cell in parameters(notebook) if values else ():
      names: dict = {}
      exec(cell.source, names)
      assert values.keys() <= names.keys(), "a value for a parameter that the notebook does not have"
      cell.source += "".join(f"\n{name} = {value!r}" for name, value in values.items())
    client.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    return notebook

  return run


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, execute, request):
  data = {"SUPERNI": str(request.getfixturevalue("shared") / "superni")} if path.stem == "superni" else {}
  made = execute(path, **SMALL.get(path.stem, {}), **data)
  shown = [set(output.get("data", {})) for cell in code(made) for output in cell.outputs]
  assert sum("image/png" in kinds for kinds in shown) == FIGURES[path.stem]
  pages = [output.data.get("text/html", "") for cell in code(made) for output in cell.outputs if "data" in output]
  assert any(page.startswith("<iframe") for page in pages) == (path.stem == "compare")


def test_there_are_five():
  assert {path.stem for path in NOTEBOOKS} == set(FIGURES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_kept_without_outputs(path):
  notebook = read(path)
  pytest.importorskip("nbformat").validate(notebook)
  assert all(not cell.outputs and cell.execution_count is None for cell in code(notebook))
  assert code(notebook)[0].source == code(read(NOTEBOOKS[0]))[0].source  # they all install alike
  assert len(parameters(notebook)) == (path.stem in SMALL)


def test_the_first_cell_installs_mtx_where_it_is_not(tmp_path):
  """In an interpreter that sees no packages, from a clone of this repository; what mtx needs is not fetched."""
  if not (ROOT / ".git").exists():
    pytest.skip("the installed repository is no git checkout")
  source = code(read(NOTEBOOKS[0]))[0].source.replace("https://github.com/OWNER/mtx", str(ROOT))
  site = tmp_path / "site"
  look = f"import sys; sys.path.append({str(site)!r})\n{source}\nimport mtx.errors; print(mtx.__file__)"
  alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
  pip = {"PIP_TARGET": str(site), "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1"}
  for _ in range(2):  # the second time nothing is left to do
    done = subprocess.run(
      [sys.executable, "-I", "-S", "-c", look], cwd=tmp_path, env=alone | pip, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path(done.stdout.strip()).is_relative_to(site)


def test_the_first_cell_says_what_it_lacks(tmp_path):
  """Where mtx is not installed and no address was given, nothing is fetched."""
  source = code(read(NOTEBOOKS[0]))[0].source
  done = subprocess.run([sys.executable, "-I", "-S", "-c", source], cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode and "REPOSITORY = an address or a folder" in done.stderr and not list(tmp_path.iterdir())
