"""An operative gin config as bindings, and what tells several apart."""

import re
from collections.abc import Mapping, Sequence

ABSENT = "–"


def bindings(text: str) -> dict[str, str]:
  """name -> value as it is written, of what `gin.operative_config_str` gives; a long value on one line."""
  found: dict[str, str] = {}
  name = ""
  for line in text.splitlines():
    if line.startswith("#") or not line.strip():
      continue
    if match := re.match(r"([\w./-]+) = ?(.*)", line):
      name, found[match[1]] = match[1], match[2].rstrip("\\").strip()
    elif name and line.startswith(" "):
      found[name] = f"{found[name]} {line.strip()}".strip()
  return found


def differences(texts: Sequence[str]) -> dict[str, list[str]]:
  """Bindings that are not the same in all configs, each with its value in every one."""
  return unequal([bindings(text) for text in texts])


def unequal(columns: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
  """Keys whose values are not the same in all mappings, in order of appearance, with the values."""
  names = dict.fromkeys(name for column in columns for name in column)
  rows = {name: [column.get(name, ABSENT) for column in columns] for name in names}
  return {name: values for name, values in rows.items() if len(set(values)) > 1}
