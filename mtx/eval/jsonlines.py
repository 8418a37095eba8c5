"""Files of JSON lines: prompts that are read and checked, and outputs that grow and can be gone on with."""

import json
from pathlib import Path
from typing import IO, Any

import jax

from mtx.atomic import write
from mtx.errors import UserError, did_you_mean

PROMPTS = ("inputs", "prompt", "turns")


def read_lines(path: Path) -> list[dict[str, Any]]:
  """The objects of a JSON lines file; empty lines are passed over.

  Raises:
    UserError: no such file, a line that is no JSON object (named with line and column), or one without a prompt.
  """
  try:
    text = path.read_text(encoding="utf-8-sig")
  except OSError as error:
    raise UserError(f"{path} can not be read: {error.strerror}.") from error
  except UnicodeDecodeError as error:
    raise UserError(f"{path} is not UTF-8: byte {error.start}.", hint="convert it to UTF-8") from error
  made = []
  for number, line in enumerate(text.split("\n"), 1):
    if not line.strip():
      continue
    place = f"{path}:{number}"
    try:
      found = json.loads(line)
    except json.JSONDecodeError as error:
      raise UserError(f"{place}:{error.colno}: {error.msg}.", hint="every line is one JSON object") from error
    if not isinstance(found, dict):
      raise UserError(f"{place} is no JSON object.", hint=f'{{"{PROMPTS[0]}": "..."}}')
    present = [name for name in PROMPTS if name in found]
    if len(present) != 1:
      what = f"has {' and '.join(present)}" if present else f"has no {', '.join(PROMPTS[:-1])} or {PROMPTS[-1]}"
      raise UserError(f"{place} {what} (fields: {', '.join(found) or 'none'}).", hint=_nearest(found))
    _check_prompt(found[present[0]], present[0], place)
    made.append(found)
  if not made:
    raise UserError(f"{path} has no lines.")
  return made


def _nearest(found: dict[str, Any]) -> str:
  hints = [did_you_mean(name, PROMPTS) for name in found]
  return next((hint for hint in hints if hint.startswith("did you mean")), f"exactly one of: {', '.join(PROMPTS)}")


def _check_prompt(value: Any, name: str, place: str) -> None:
  if name != "turns":
    if not isinstance(value, str):
      raise UserError(f"{place}: {name!r} is {type(value).__name__}, not text.")
    return
  turn = lambda each: isinstance(each, dict) and isinstance(each.get("role"), str) and "content" in each
  if not isinstance(value, list) or not value or not all(map(turn, value)):
    raise UserError(f"{place}: 'turns' is no conversation.", hint='[{"role": "user", "content": "..."}, ...]')


class Output:
  """A file of JSON lines that grows; what stopped in the middle of a line loses that line.

  The record of what made it lies beside it, as FILE.settings.json.

  Attributes:
    done: complete lines that are there.

  Raises:
    UserError: the file was made otherwise, or not by this command; or it can not be written.
  """

  def __init__(self, path: Path, record: dict[str, Any]):
    self._path, self._record = path, path.with_name(path.name + ".settings.json")
    self._file: IO[str] | None = None
    try:
      if path.exists():
        self._same(record)
      else:
        write(self._record, json.dumps(record, indent=2) + "\n")
      self.done = _complete_lines(path) if path.exists() else 0
    except OSError as error:
      raise UserError(f"{path} can not be written: {error.strerror}.") from error

  def __enter__(self) -> "Output":
    if jax.process_index() == 0:
      self._file = self._path.open("a", encoding="utf-8")
    return self

  def __exit__(self, *_) -> None:
    if self._file:
      self._file.close()

  def write(self, line: dict[str, Any]) -> None:
    if self._file:
      self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
      self._file.flush()

  def _same(self, record: dict[str, Any]) -> None:
    hint = "write to another file, or remove it to begin anew"
    if not self._record.is_file():
      raise UserError(f"{self._path} is there, and was not written by `mtx decode`.", hint=hint)
    before = json.loads(self._record.read_text(encoding="utf-8"))
    for name in dict.fromkeys((*record, *before)):
      if before.get(name) != record.get(name):
        now, then = record.get(name), before.get(name)
        what = "input has changed" if name == "input" else f"{name} was {then!r} and is now {now!r}"
        raise UserError(f"{self._path} can not be gone on with: its {what}.", hint=hint)


def _complete_lines(path: Path) -> int:
  """Lines that end; what follows the last line end is cut off.

  Raises:
    UserError: a complete line that is no JSON.
  """
  count = end = 0
  with path.open("r+b") as file:
    for line in file:
      if not line.endswith(b"\n"):
        break
      count, end = count + 1, end + len(line)
      try:
        json.loads(line)
      except ValueError as error:
        raise UserError(f"{path}:{count} is no JSON: the file was changed.", hint="remove it to begin anew") from error
    file.truncate(end)
  return count
