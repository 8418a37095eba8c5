"""Files that are written in one rename: a reader, or a crash, meets the old content or the new one."""

import os
from pathlib import Path


def write(path: Path, text: str) -> None:
  """Writes a file of text, and the folders that it lies in."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    with temporary.open("w", encoding="utf-8") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
