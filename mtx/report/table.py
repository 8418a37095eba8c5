"""Result rows as tables: one metric, a line a task, a column a method, with means per category and split."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mtx.tasks.metrics import METRICS

MAX_TASKS = 60  # more lines than this are read by category
SPLITS = {"train": "training tasks", "heldout": "held-out tasks"}
NAMES = {
  "rouge_l": "ROUGE-L", "rougeL": "ROUGE-L", "f1": "F1", "squad_f1": "SQuAD F1", "squad_em": "SQuAD EM",
  "set_f1": "set F1", "set_f1_micro": "set F1, micro", "macro_f1": "macro F1", "ranked_macro_f1": "ranked macro F1",
  "bleu": "BLEU", "chrf": "chrF", "corpus_bleu": "corpus BLEU", "corpus_chrf": "corpus chrF", "auroc": "AUROC",
  "ece": "ECE",
}  # fmt: skip
Spread = Literal["half-range", "std"]


@dataclass(frozen=True)
class Cell:
  """A score in [0, 100].

  Args:
    mean: over seeds, and over tasks in a mean line (every task counts the same).
    spread: between seeds, of the mean; None with one seed.
    complete: False if the method was not evaluated on every task of a mean line.
  """

  mean: float
  spread: float | None = None
  complete: bool = True

  def __str__(self) -> str:
    text = f"{self.mean:.1f}" + ("" if self.complete else "*")
    return text if self.spread is None else f"{text} ±{self.spread:4.1f}"


@dataclass(frozen=True)
class Line:
  """A task, or the mean of a category or of the split; `count` is examples of a task, tasks of a mean.

  `lower`: of its metric less is better.
  """

  kind: Literal["task", "category", "overall"]
  name: str
  category: str
  count: int
  cells: tuple[Cell | None, ...]
  lower: bool = False

  @property
  def best(self) -> float:
    """Best mean among several cells as printed; NaN where there is nothing to compare or all are equal."""
    means = {round(cell.mean, 1) for cell in self.cells if cell}
    if len(means) < 2:
      return float("nan")
    return min(means) if self.lower else max(means)


@dataclass(frozen=True)
class Scores:
  """One metric on one split; lines go by category, its mean before its tasks; the overall mean is last."""

  split: str
  metric: str
  methods: tuple[str, ...]
  lines: tuple[Line, ...]

  @property
  def title(self) -> str:
    return f"{split_name(self.split)}, {metric_name(self.metric)}"

  @property
  def tasks(self) -> int:
    return sum(line.kind == "task" for line in self.lines)

  @property
  def overall(self) -> Line:
    return self.lines[-1]


class ParameterGroup(NamedTuple):
  """Parameters that one optimizer rule trains; `learning_rate` is the peak, or the schedule in words."""

  pattern: str
  parameters: int
  learning_rate: float | str


def tabulate(
  rows: Iterable[Mapping[str, Any]],
  *,
  metrics: Sequence[str] | None = None,
  methods: Sequence[str] | None = None,
  spread: Spread = "half-range",
) -> list[Scores]:
  """Groups result rows by split and metric, and takes means.

  Args:
    rows: result rows; of two that differ only in step or value the later counts.
    metrics: which, in order; all of them, in order of appearance, if None.
    methods: order of the columns; in order of appearance if None, and those not named follow.
    spread: what stands behind the +- of several seeds: half of max - min, or the standard deviation (n - 1).

  Returns:
    One `Scores` for each split and metric that has rows; the training split first. Methods that were not
    evaluated on a split have no column in it. A method that occurs in several stages has one column a stage.
  """
  rows = list(rows)
  stages: dict[str, dict[str, None]] = {}
  for row in rows:
    stages.setdefault(row["method"], {})[row["stage"]] = None

  def column(row: Mapping[str, Any]) -> str:
    return row["method"] if len(stages[row["method"]]) == 1 else f"{row['stage']}: {row['method']}"

  rank = {method: i for i, method in enumerate(methods or ())}
  columns = list(dict.fromkeys(map(column, sorted(rows, key=lambda row: rank.get(row["method"], len(rank))))))
  splits = sorted(dict.fromkeys(row["split"] for row in rows), key=lambda s: [*SPLITS, s].index(s))
  tables = []
  for split in splits:
    for metric in metrics if metrics is not None else dict.fromkeys(row["metric"] for row in rows):
      chosen = [row for row in rows if row["split"] == split and row["metric"] == metric]
      if chosen:
        present = {column(row) for row in chosen}
        names = tuple(name for name in columns if name in present)
        tables.append(Scores(split, metric, names, _lines(chosen, names, column, spread)))
  return tables


def _lines(rows: list[Mapping[str, Any]], columns: Sequence[str], column, spread: Spread) -> tuple[Line, ...]:
  values: dict[str, dict[str, dict[Any, float]]] = {}  # task -> column -> seed -> value
  categories: dict[str, list[str]] = {}
  counts: dict[str, int] = {}
  for row in rows:
    task = row["task"]
    if task not in values:
      categories.setdefault(row["category"], []).append(task)
    values.setdefault(task, {}).setdefault(column(row), {})[row["seed"]] = float(row["value"])
    counts[task] = max(counts.get(task, 0), int(row["count"]))

  def cells(tasks: list[str]) -> tuple[Cell | None, ...]:
    return tuple(_cell([values[task].get(name, {}) for task in tasks], spread) for name in columns)

  lower = {name for name, metric in METRICS.items() if metric.best == 0} >= {row["metric"] for row in rows}
  lines = []
  for category, tasks in categories.items():
    lines.append(Line("category", category, category, len(tasks), cells(tasks), lower))
    lines += [Line("task", task, category, counts[task], cells([task]), lower) for task in tasks]
  return (*lines, Line("overall", "mean of all tasks", "", len(values), cells(list(values)), lower))


def _cell(by_task: list[dict[Any, float]], spread: Spread) -> Cell | None:
  known = [seeds for seeds in by_task if seeds]
  if not known:
    return None
  mean = float(np.mean([np.mean(list(seeds.values())) for seeds in known]))
  by_seed = [
    np.mean([seeds[seed] for seeds in known if seed in seeds])
    for seed in dict.fromkeys(seed for seeds in known for seed in seeds)
  ]
  between = None
  if len(by_seed) > 1:
    between = float(np.std(by_seed, ddof=1) if spread == "std" else np.ptp(by_seed) / 2)
  return Cell(mean, between, len(known) == len(by_task))


def result_table(
  rows: Iterable[Mapping[str, Any]],
  *,
  metrics: Sequence[str] | None = None,
  methods: Sequence[str] | None = None,
  spread: Spread = "half-range",
  max_tasks: int = MAX_TASKS,
) -> Group:
  """Tables for the console, one for each split and metric; the best method of a line is bold.

  Args:
    rows, metrics, methods, spread: see `tabulate`.
    max_tasks: with more tasks than this in a table only means are shown.
  """
  parts: list[RenderableType] = []
  for scores in tabulate(rows, metrics=metrics, methods=methods, spread=spread):
    parts += [_table(scores, scores.tasks > max_tasks), Text()]
  return Group(*parts[:-1])


def _table(scores: Scores, summary: bool) -> Table:
  table = Table(title=Text(scores.title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
  # A column's stage stands above its method: side by side they would leave no room for the names of tasks.
  table.add_column("category" if summary else "task", overflow="fold")
  table.add_column("n", justify="right", style="dim")
  for method in scores.methods:
    table.add_column(Text(method.replace(": ", ":\n")), justify="right", no_wrap=True)
  for line in scores.lines:
    if summary and line.kind == "task":
      continue
    if line.kind == "overall":
      table.add_section()
    cells = [
      Text("-", "dim") if not cell else Text(str(cell), "bold" if round(cell.mean, 1) == line.best else "")
      for cell in line.cells
    ]
    # Straight above its tasks, a category's count of tasks would be read as examples.
    count = f"{line.count:,}" if summary or line.kind == "task" else ""
    name = f"  {line.name}" if line.kind == "task" else line.name
    table.add_row(Text(name), count, *cells, style={"category": "cyan", "overall": "bold"}.get(line.kind, ""))
  notes = [f"{scores.tasks} tasks"]
  if any(cell and cell.spread is not None for line in scores.lines for cell in line.cells):
    notes.append("± is between seeds")
  if any(cell and not cell.complete for line in scores.lines for cell in line.cells):
    notes.append("* mean over the tasks that were evaluated")
  table.caption, table.caption_justify = "; ".join(notes), "left"
  return table


def trainable_table(groups: Sequence[ParameterGroup], frozen: int, *, title: str = "trainable parameters") -> Table:
  """What the optimizer will change, rule by rule, and how much it leaves alone.

  Args:
    groups: (pattern, parameters, learning rate) in the order of the rules.
    frozen: parameters that no rule selects.
  """
  trained = sum(group[1] for group in groups)
  table = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
  table.add_column("pattern", overflow="fold")
  table.add_column("parameters", justify="right", no_wrap=True)
  table.add_column("share", justify="right", no_wrap=True)
  table.add_column("learning rate", justify="right")
  for pattern, count, rate in groups:
    table.add_row(Text(pattern), f"{count:,}", share(count, trained + frozen), learning_rate(rate))
  table.add_section()
  table.add_row("trainable", f"{trained:,}", share(trained, trained + frozen), "", style="bold")
  table.add_row("frozen", f"{frozen:,}", share(frozen, trained + frozen), "0", style="dim")
  return table


def to_text(renderable: RenderableType, width: int = 100) -> str:
  """A table as plain text of at most `width` columns, for logs and Markdown; ends in one newline."""
  console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None, legacy_windows=False)
  console.print(renderable)
  lines = console.file.getvalue().split("\n")  # type: ignore[attr-defined]
  return "\n".join(line.rstrip() for line in lines).strip("\n") + "\n"


def metric_name(metric: str) -> str:
  """`exact_match` -> `exact match`; abbreviations keep their capitals."""
  return NAMES.get(metric, metric.replace("_", " "))


def split_name(split: str) -> str:
  """`heldout` -> `held-out tasks`."""
  return SPLITS.get(split, f"{split} tasks")


def share(part: int, whole: int) -> str:
  """A percentage with three digits: 100%, 12.3%, 0.042%."""
  return f"{100 * part / max(whole, 1):.3g}%"


def learning_rate(rate: float | str) -> str:
  """A rate as `1e-03`; words stay as they are."""
  return rate if isinstance(rate, str) else f"{rate:.2g}"
