"""run.json: what made a run, and whether it came to its end; all that its files of numbers do not say."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mtx.atomic import write
from mtx.data.cache import CachedMixture
from mtx.errors import UserError

RECORD = "run.json"


def write_record(run_dir: str | os.PathLike, **fields: Any) -> None:
  """Sets fields of run.json, in one rename; the others stay.

  Raises:
    UserError: run.json exists and is no JSON object.
  """
  write(Path(run_dir) / RECORD, json.dumps(read_record(run_dir) | fields, indent=1, ensure_ascii=False) + "\n")


def read_record(run_dir: str | os.PathLike) -> dict[str, Any]:
  """The fields of run.json; none if there is no such file.

  Raises:
    UserError: the file is no JSON object.
  """
  path = Path(run_dir) / RECORD
  if not path.exists():
    return {}
  try:
    record = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(record, dict):
      raise ValueError("it is a list or a value")
    return record
  except ValueError as error:
    raise UserError(f"{path} is not a JSON object: {error}", hint="move it away to go on without it") from error


def data_record(mixtures: Sequence[CachedMixture]) -> dict[str, Any]:
  """Fingerprints of what was read, by mixture: of the whole and of each task, with the task's category."""
  return {
    mixture.name: {
      "fingerprint": mixture.fingerprint,
      "tasks": {task.name: {"category": task.category, "fingerprint": task.fingerprint} for task in mixture.tasks},
    }
    for mixture in mixtures
  }


def code_record() -> dict[str, Any]:
  """Commit of the checkout that mtx runs from and how many of its files were changed since; empty if installed."""
  here = Path(__file__).resolve()

  def git(*words: str) -> str | None:
    try:
      done = subprocess.run(
        ["git", "-C", str(here.parent), *words], capture_output=True, text=True, timeout=10, check=False
      )
    except (OSError, subprocess.TimeoutExpired):
      return None
    return done.stdout.strip() if done.returncode == 0 else None

  # An installed package may lie inside somebody else's checkout: it is not what that one tracks.
  if not git("ls-files", "--error-unmatch", str(here.with_name("log.py"))) or not (commit := git("rev-parse", "HEAD")):
    return {}
  changed = git("status", "--porcelain", "--untracked-files=no")
  return {"commit": commit, "changed_files": len((changed or "").splitlines())}


def memory_record(before: Mapping[str, int]) -> dict[str, int]:
  """Most bytes that this process, and any one device, has held so far; not less than an earlier process's."""
  unit = 1 if sys.platform == "darwin" else 1024
  now = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
  peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
  if any(peaks):
    now["device"] = max(peaks)
  return {name: max(before.get(name, 0), now.get(name, 0)) for name in before.keys() | now.keys()}
