"""What models score on a protocol, as tables: by level and cell, and by category."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mtx.eval.averages import MEDIAN, Averages, averages, leading
from mtx.eval.cells import Cell as Asked
from mtx.eval.levels import LEVELS
from mtx.report.table import Cell

TITLES = {
  "category": "held-out categories",
  "task": "held-out tasks of seen categories",
  "instance": "held-out instances of seen tasks",
}
MAX_CATEGORIES = 60
Row = Mapping[str, Any]
Key = tuple[str, int, str]  # level, shots, selector


def protocol_tables(runs: Mapping[str, Iterable[Row]]) -> Group:
  """A line a level, number of shots, selector and prompt, and one for the median over prompts; then one a category.

  Args:
    runs: model -> rows of a protocol, of all seeds.
  """
  rows = {model: leading(row for row in mine if "level" in row) for model, mine in runs.items()}
  keys = _keys(row for mine in rows.values() for row in mine)
  return Group(_by_level(rows, keys), Text(), _by_category(rows, keys))


def _by_level(rows: Mapping[str, Sequence[Row]], keys: Sequence[Key]) -> Table:
  several = len({row["prompt"] for mine in rows.values() for row in mine}) > 1
  table = _table("macro and micro averages", ["level", "shots", "selector", *(["prompt"] if several else [])])
  for model in rows:
    for name in ("macro", "micro"):
      table.add_column(Text(f"{model}\n{name}"), justify="right", no_wrap=True)
  before: Key | None = None
  for key in keys:
    if before is not None and before[0] != key[0]:
      table.add_section()
    found = {model: _of(mine, key) for model, mine in rows.items()}
    prompts = list(dict.fromkeys(row["prompt"] for mine in found.values() for row in mine)) if several else []
    shown = [*prompts, MEDIAN] if len(prompts) > 1 else prompts or [MEDIAN]
    for number, prompt in enumerate(shown):
      first = [*_words(key, before)] if not number else ["", "", ""]
      cells: list[Text] = []
      for mine in found.values():
        chosen = mine if prompt == MEDIAN else [row for row in mine if row["prompt"] == prompt]
        cells += [_shown(chosen, lambda a: a.macro), _shown(chosen, lambda a: a.micro)]
      table.add_row(
        *first, *([prompt] if several else []), *cells, style="bold" if prompt == MEDIAN and several else ""
      )
    before = key
  table.caption, table.caption_justify = _notes(rows), "left"
  return table


def _by_category(rows: Mapping[str, Sequence[Row]], keys: Sequence[Key]) -> Table:
  """Lines are categories, columns cells; medians over prompts."""
  table = _table("by category, median over prompts", ["level", "category", "tasks"])
  columns = list(dict.fromkeys((shots, selector) for _, shots, selector in keys))
  for model in rows:
    for shots, selector in columns:
      how = "zero-shot" if not shots else f"{shots} {selector}"
      table.add_column(Text(f"{model}\n{how}"), justify="right", no_wrap=True)
  everyone = [row for mine in rows.values() for row in mine]
  before = ""
  for level in LEVELS:
    tasks: dict[tuple[str, str], set[str]] = {}
    for row in everyone:
      if row["level"] == level:
        tasks.setdefault((row["benchmark"], row["category"]), set()).add(row["dataset"])
    for (benchmark, category), names in list(tasks.items())[:MAX_CATEGORIES]:
      cells = []
      for mine in rows.values():
        for shots, selector in columns:
          of = [
            r for r in _of(mine, (level, shots, selector)) if (r["benchmark"], r["category"]) == (benchmark, category)
          ]
          cells.append(_shown(of, lambda a: a.macro))
      name = "/".join(filter(None, (benchmark, category)))
      table.add_row(TITLES[level] if level != before else "", name, f"{len(names)}", *cells)
      before = level
  return table


def _table(title: str, columns: Sequence[str]) -> Table:
  table = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
  for name in columns:
    table.add_column(name, overflow="fold", justify="right" if name in ("shots", "tasks") else "left")
  return table


def _keys(rows: Iterable[Row]) -> list[Key]:
  """In the order of levels; shots and selectors in order of appearance."""
  found = dict.fromkeys((row["level"], row["shots"], row["selector"]) for row in rows)
  return sorted(found, key=lambda key: LEVELS.index(key[0]))


def _of(rows: Iterable[Row], key: Key) -> list[Row]:
  return [row for row in rows if (row["level"], row["shots"], row["selector"]) == key]


def _words(key: Key, before: Key | None) -> tuple[str, str, str]:
  level, shots, selector = key
  return TITLES[level] if before is None or before[0] != level else "", str(shots), selector if shots else ""


def _shown(rows: Sequence[Row], number: Callable[[Averages], float]) -> Text:
  """The mean over seeds, with half the range between them; without where seeds change nothing."""
  seeds = dict.fromkeys(row["seed"] for row in rows)
  if not seeds:
    return Text("-", "dim")
  values = [number(averages(row for row in rows if row["seed"] == seed)) for seed in seeds]
  spread = float(np.ptp(values)) / 2 if len(values) > 1 else None
  if not spread and not any(Asked(row["shots"], row["selector"], row["prompt"]).seeded for row in rows):
    spread = None
  return Text(str(Cell(float(np.mean(values)), spread)))


def _notes(rows: Mapping[str, Sequence[Row]]) -> str:
  everyone = [row for mine in rows.values() for row in mine]
  datasets = len({row["dataset"] for row in everyone})
  metrics = ", ".join(dict.fromkeys(row["metric"] for row in everyone))
  notes = [f"{datasets} tasks, {metrics}", "macro: over categories, of their tasks; micro: over items"]
  if len({row["seed"] for row in everyone}) > 1:
    notes.append("± is between seeds, where they change the shots")
  return "\n".join(notes)
