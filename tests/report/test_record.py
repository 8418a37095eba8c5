"""run.json keeps what it was told, and names the code."""

import os
import re
import subprocess

import pytest

from mtx.errors import UserError
from mtx.report import record
from mtx.report.record import code_record, memory_record, read_record, write_record


def test_fields_are_replaced_and_others_stay(tmp_path):
  assert read_record(tmp_path) == {}
  write_record(tmp_path / "run", seed=1, finished=False)
  write_record(tmp_path / "run", finished=True)
  assert read_record(tmp_path / "run") == {"seed": 1, "finished": True}
  assert os.listdir(tmp_path / "run") == ["run.json"]


def test_a_damaged_record_is_named(tmp_path):
  (tmp_path / "run.json").write_text('{"seed"')
  with pytest.raises(UserError, match=r"run\.json is not a JSON object"):
    read_record(tmp_path)


def test_memory_never_falls():
  (now,) = (memory_record({})["host"],)
  assert now > 50e6
  assert memory_record({"host": 10 * now, "device": 7}) == {"host": 10 * now, "device": 7}


def test_the_commit_is_that_of_the_checkout_and_only_of_it(tmp_path, monkeypatch):
  package = tmp_path / "mtx" / "report"
  package.mkdir(parents=True)
  for name in ("log.py", "record.py"):
    (package / name).write_text("")
  git = lambda *words: subprocess.run(
    ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True
  )
  monkeypatch.setattr(record, "__file__", str(package / "record.py"))
  assert code_record() == {}
  git("init")
  (tmp_path / "other").write_text("")
  git("add", "other")
  git("commit", "-m", "somebody else's")
  assert code_record() == {}  # installed inside a checkout that does not track it
  git("add", ".")
  git("commit", "-m", "ours")
  made = code_record()
  assert re.fullmatch("[0-9a-f]{40}", made["commit"]) and made["changed_files"] == 0
  (package / "log.py").write_text("changed")
  assert code_record() == {"commit": made["commit"], "changed_files": 1}
