"""What models score on a protocol, as tables: by level and cell, and by category."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Line:
  """A level, a number of shots and how they are chosen, asked by one prompt, or the median over prompts.

  Attributes:
    level, shots, selector: as people read them; empty where the line before has the same.
    prompt: its name; "" where there is one alone.
    cells: of each model, macro and micro average; None where it was not asked so.
    median, begins: whether it is the median of several prompts; whether a level begins.
  """

  level: str
  shots: str
  selector: str
  prompt: str
  cells: tuple[tuple[Cell | None, Cell | None], ...]
  median: bool
  begins: bool


def protocol_tables(runs: Mapping[str, Iterable[Row]]) -> Group:
  """A line a level, number of shots, selector and prompt, and one for the median over prompts; then one a category.

  Args:
    runs: model -> rows of a protocol, of all seeds.
  """
  rows = protocols(runs)
  return Group(_by_level(rows), Text(), _by_category(rows, _keys(row for mine in rows.values() for row in mine)))


def protocol_lines(rows: Mapping[str, Sequence[Row]]) -> list[Line]:
  """The lines of the first of these tables, of what `protocols` gives."""
  several = len({row["prompt"] for mine in rows.values() for row in mine}) > 1
  lines: list[Line] = []
  before: Key | None = None
  for key in _keys(row for mine in rows.values() for row in mine):
    found = {model: _of(mine, key) for model, mine in rows.items()}
    prompts = list(dict.fromkeys(row["prompt"] for mine in found.values() for row in mine)) if several else []
    for number, prompt in enumerate([*prompts, MEDIAN] if len(prompts) > 1 else prompts or [MEDIAN]):
      words = ("", "", "") if number else _words(key, before)
      cells = []
      for mine in found.values():
        chosen = mine if prompt == MEDIAN else [row for row in mine if row["prompt"] == prompt]
        cells.append((_cell(chosen, lambda a: a.macro), _cell(chosen, lambda a: a.micro)))
      median = several and prompt == MEDIAN
      begins = not number and (before is None or before[0] != key[0])
      lines.append(Line(*words, prompt if several else "", tuple(cells), median, begins))
    before = key
  return lines


def protocols(runs: Mapping[str, Iterable[Row]]) -> dict[str, list[Row]]:
  """Main rows of every protocol by model, with the stage's name where a model has several; of nothing else."""
  found: dict[str, dict[str, list[Row]]] = {}
  for model, mine in runs.items():
    for row in mine:
      if "level" in row:
        found.setdefault(model, {}).setdefault(row["stage"], []).append(row)
  return {
    model if len(stages) == 1 else f"{model}: {stage}": leading(rows)
    for model, stages in found.items()
    for stage, rows in stages.items()
  }


def _by_level(rows: Mapping[str, Sequence[Row]]) -> Table:
  lines = protocol_lines(rows)
  several = any(line.prompt for line in lines)
  table = _table("macro and micro averages", ["level", "shots", "selector", *(["prompt"] if several else [])])
  for model in rows:
    for name in ("macro", "micro"):
      table.add_column(Text(f"{model}\n{name}"), justify="right", no_wrap=True)
  for number, line in enumerate(lines):
    if line.begins and number:
      table.add_section()
    words = [line.level, line.shots, line.selector, *([line.prompt] if several else [])]
    cells = [_shown(cell) for pair in line.cells for cell in pair]
    table.add_row(*words, *cells, style="bold" if line.median else "")
  table.caption, table.caption_justify = "\n".join(protocol_notes(rows)), "left"
  return table


def _by_category(rows: Mapping[str, Sequence[Row]], keys: Sequence[Key]) -> Table:
  """Lines are categories, columns cells; medians over prompts."""
  several = len({row["prompt"] for mine in rows.values() for row in mine}) > 1
  title = "by category, median over prompts" if several else "by category"
  table = _table(title, ["level", "category", "tasks"])
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
          cells.append(_shown(_cell(of, lambda a: a.macro)))
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


def _cell(rows: Sequence[Row], number: Callable[[Averages], float]) -> Cell | None:
  """The mean over seeds, with half the range between them; without where seeds change nothing."""
  seeds = dict.fromkeys(row["seed"] for row in rows)
  if not seeds:
    return None
  values = [number(averages(row for row in rows if row["seed"] == seed)) for seed in seeds]
  spread = float(np.ptp(values)) / 2 if len(values) > 1 else None
  if not spread and not any(Asked(row["shots"], row["selector"], row["prompt"]).seeded for row in rows):
    spread = None
  return Cell(float(np.mean(values)), spread)


def _shown(cell: Cell | None) -> Text:
  return Text("-", "dim") if cell is None else Text(str(cell))


def protocol_notes(rows: Mapping[str, Sequence[Row]]) -> list[str]:
  """What the numbers of these tables are."""
  everyone = [row for mine in rows.values() for row in mine]
  datasets = len({row["dataset"] for row in everyone})
  metrics = ", ".join(dict.fromkeys(row["metric"] for row in everyone))
  notes = [f"{datasets} tasks, {metrics}", "macro: over categories, of their tasks; micro: over items"]
  if len({row["seed"] for row in everyone}) > 1:
    notes.append("± is between seeds, where they change the shots")
  return notes
