"""Verdicts of recipes, for the console and as JSON."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mtx.eval.recipe import Finding, Verdict
from mtx.report.progress import duration

MET = {True: Text("met", "green"), False: Text("not met", "red")}


def verdict_table(verdict: Verdict, title: str) -> Group:
  """Every criterion with the difference of its sides, then the means of all arms."""
  table = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
  table.add_column("criterion", overflow="fold", ratio=1)
  table.add_column("left - right, 95 %", justify="right", no_wrap=True)
  table.add_column("p", justify="right", no_wrap=True)
  table.add_column("seeds", justify="right", no_wrap=True)
  table.add_column("", no_wrap=True)
  for finding in verdict.findings:
    agree = f"{len(finding.agree)}/{len(verdict.seeds)}"
    p = "-" if finding.adjusted is None else f"{finding.adjusted:.2g}"
    table.add_row(Text(finding.criterion), _interval(finding), p, agree, MET[finding.met])
  table.caption = "seeds: in how many it holds; p: of sides that are equal, by Holm over the criteria"
  table.caption_justify = "left"
  parts: list[RenderableType] = [table, Text(), _means(verdict)]
  return Group(*parts)


def _interval(finding: Finding) -> str:
  text = number(finding.difference)
  if finding.low is not None and finding.high is not None:
    text += f" [{number(finding.low)}, {number(finding.high)}]"
  return text


def _means(verdict: Verdict) -> Table:
  """Arms by measures: mean over seeds, with half of max - min."""
  measures = list(dict.fromkeys(name for arm in verdict.measured.values() for name in arm))
  table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
  table.add_column("arm")
  for name in measures:
    table.add_column(name.replace("_", " "), justify="right")
  for arm, by_measure in verdict.measured.items():
    cells = []
    for name in measures:
      values = list(by_measure.get(name, {}).values())
      spread = f" ±{number(float(np.ptp(values) / 2))}" if len(values) > 1 and np.ptp(values) else ""
      cells.append(f"{number(float(np.mean(values)))}{spread}" if values else "-")
    table.add_row(arm, *cells)
  table.caption, table.caption_justify = f"± half of max - min over {len(verdict.seeds)} seeds", "left"
  return table


def recipe_table(lines: Iterable[Mapping[str, Any]]) -> Table:
  """One line a recipe.

  Args:
    lines: `recipe`, `title`, `plan` (arms, seeds and minutes in words), and `last`: a verdict of verdict.json or None;
      `note`: what is to be said beside it.
  """
  table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
  table.add_column("recipe", no_wrap=True)
  table.add_column("claim", overflow="fold", ratio=1)
  table.add_column("plan", overflow="fold")
  table.add_column("last verdict", overflow="fold")
  for line in lines:
    table.add_row(line["recipe"], Text(line["title"]), line["plan"], _last(line.get("last"), line.get("note", "")))
  return table


def _last(last: Mapping[str, Any] | None, note: str) -> Text:
  if last is None:
    return Text(note or "not run", "dim")
  met = [finding["met"] for finding in last["findings"]]
  seeds = ", ".join(map(str, last["seeds"]))
  text = Text(f"{sum(met)} of {len(met)} met", "green" if all(met) else "red")
  return text.append(
    f"\nseeds {seeds}; {duration(last['seconds'])}; {last['when'][:10]}" + (note and f"\n{note}"), "dim"
  )


def number(value: float) -> str:
  """Three digits that count, without an exponent where that is short."""
  if value == 0 or not np.isfinite(value):
    return f"{value:.0f}"
  if abs(value) >= 1000:
    return f"{value:,.0f}"
  digits = max(0, 2 - int(np.floor(np.log10(abs(value)))))
  return f"{value:.{digits}f}" if digits <= 6 else f"{value:.1e}"
