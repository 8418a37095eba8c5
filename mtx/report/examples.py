"""A mixture as the model sees it: a table of what its tasks take, and rows of real batches in colour.

The batches are those of `mtx.data.feed`, and all that is shown is read from their arrays: segments, task ids, loss
weights, the region that a prefix decoder sees at once, padding.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool
from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from mtx.data.cache import CachedMixture
from mtx.data.convert import Arrays
from mtx.data.feed import feed
from mtx.data.vocabulary import Vocabulary
from mtx.errors import UserError
from mtx.report.cells import Name, percent

MOST_TASKS = 20
# Segments of a row in turn; a terminal's own colours, which its theme makes readable on its background.
SEGMENTS = ("cyan", "yellow", "green", "magenta", "blue", "red")
LOSS, PREFIX, SPECIAL = "bold underline", "italic", "reverse"
# What stands for a style where there is none; the second pair is for consoles that know ASCII only.
LOSS_MARKS, PREFIX_MARKS = (("⟦", "⟧"), ("[[", "]]")), (("⟨", "⟩"), ("{{", "}}"))
SIDES = ("encoder", "decoder")
NOTE = 16  # tokens; to say that fewer are left out takes as much room as they do


@dataclass(frozen=True)
class TaskShare:
  """What a task takes of training.

  Attributes:
    asked: its rate; rates sum to 1.
    drawn: its share of the examples in the batches that were looked at.
    loss: its share of the loss weights in them.
    examples: that it has.
    lengths: mean and longest tokens of inputs, then of targets.
    cut: share of its examples that are longer than a length allows.
  """

  name: str
  asked: float
  drawn: float
  loss: float
  examples: int
  lengths: tuple[float, int, float, int]
  cut: float


@dataclass(frozen=True)
class Look:
  """Some batches of a mixture.

  Attributes:
    tasks: those with a rate, by rate, the highest first.
    batches: that were read.
    rows, segments: in them.
    fill: "encoder" (if there is one) and "decoder" -> share of positions that are no padding.
    overlong: what `mtx.data.feed.Feed.overlong` counts, over all tasks.
  """

  tasks: tuple[TaskShare, ...]
  batches: tuple[Arrays, ...]
  rows: int
  segments: int
  fill: Mapping[str, float]
  overlong: int


def look(
  mixture: CachedMixture,
  *,
  architecture: str,
  inputs_length: int,
  targets_length: int,
  split: str = "train",
  batches: int = 8,
  **settings: Any,
) -> Look:
  """Draws batches as training would, and counts what is in them.

  Args:
    architecture, inputs_length, targets_length, split: as in `mtx.data.feed.feed`.
    batches: to draw; the feed is endless.
    settings: others of the feed (`pack`, `batch`, `seed`, `rows`, `overlong`); what is left out is as gin binds it.

  Raises:
    UserError: `batches` below 1, or what `feed` does not accept.
  """
  if batches < 1:
    raise UserError(f"{batches} batches are to be looked at", hint="1 or more")
  lengths = {"inputs_length": inputs_length, "targets_length": targets_length}
  made = feed(mixture, architecture=architecture, split=split, **lengths, **settings)
  endless = iter(made)
  try:
    read = tuple(itertools.islice(endless, batches))
  finally:
    endless.close()
  drawn, loss = np.zeros(len(mixture.tasks)), np.zeros(len(mixture.tasks))
  for batch in read:
    starts = (batch["decoder_segment_ids"] > 0) & (batch["decoder_positions"] == 0)
    np.add.at(drawn, batch["decoder_task_ids"][starts], 1)
    np.add.at(loss, batch["decoder_task_ids"], batch["decoder_loss_weights"])
  limits = np.array([inputs_length, targets_length])
  tasks = []
  for index in np.argsort(-np.array(mixture.rates), kind="stable"):
    if mixture.rates[index] > 0:
      examples = mixture.tasks[index].splits[split].lengths
      means, longest = examples.mean(axis=0), examples.max(axis=0)
      tasks.append(
        TaskShare(
          name=mixture.tasks[index].name,
          asked=mixture.rates[index],
          drawn=float(drawn[index] / drawn.sum()),
          loss=float(loss[index] / max(loss.sum(), 1e-9)),
          examples=len(examples),
          lengths=(float(means[0]), int(longest[0]), float(means[1]), int(longest[1])),
          cut=float((examples > limits).any(axis=1).mean()),
        )
      )
  sides = [side for side in SIDES if f"{side}_segment_ids" in read[0]]
  return Look(
    tasks=tuple(tasks),
    batches=read,
    rows=sum(len(batch["decoder_segment_ids"]) for batch in read),
    segments=int(drawn.sum()),
    fill={side: float(np.mean([(batch[f"{side}_segment_ids"] > 0).mean() for batch in read])) for side in sides},
    overlong=sum(made.overlong.values()),
  )


def show(
  mixture: CachedMixture,
  n: int = 2,
  *,
  architecture: str,
  inputs_length: int,
  targets_length: int,
  split: str = "train",
  batches: int = 8,
  tokens: int | None = 120,
  boundaries: bool = False,
  most: int = MOST_TASKS,
  console: Console | None = None,
  **settings: Any,
) -> None:
  """Prints the mixture's table and the first `n` rows of its first batches.

  Args:
    architecture, inputs_length, targets_length, split, batches, settings: see `look`.
    tokens: shown of inputs and of targets, from both ends of each; None shows all.
    boundaries: puts a mark between tokens.
    most: tasks in the table; a last line sums up the others.
    console: standard output if None. Without colour, loss and prefix are shown by brackets.

  Raises:
    UserError: `n` below 0, `tokens` below 1, or what `look` does not accept.
  """
  if n < 0 or (tokens is not None and tokens < 1):
    raise UserError(f"{n} rows of {tokens} tokens are to be shown", hint="0 rows or more, of 1 token or more")
  console = console or Console(highlight=False)
  lengths = {"inputs_length": inputs_length, "targets_length": targets_length}
  seen = look(mixture, architecture=architecture, split=split, batches=batches, **lengths, **settings)
  console.print(_table(mixture.name, split, seen, most))
  if n:
    paint = _Paint(mixture.vocabulary, console, tokens, boundaries)
    console.print(paint.legend(architecture))
  rows = ((batch, row) for batch in seen.batches for row in range(len(batch["decoder_segment_ids"])))
  for number, (batch, row) in enumerate(itertools.islice(rows, n), 1):
    for line in paint.row(number, {name: values[row] for name, values in batch.items()}, mixture):
      console.print(line)


def _table(name: str, split: str, seen: Look, most: int) -> RenderableType:
  table = Table(
    title=Text(f"{name}, {split}: {len(seen.tasks):,} tasks", "bold"),
    title_justify="left",
    box=box.SIMPLE_HEAD,
    pad_edge=False,
    padding=(0, 0, 0, 0),
  )
  table.add_column("task", overflow="fold")
  for head in ("asked", "drawn", "of loss", "examples", "inputs\nmean", "\nmax", "targets\nmean", "\nmax", "cut"):
    table.add_column(head, justify="right", no_wrap=True)
  for task in seen.tasks[:most]:
    means = (f"{task.lengths[0]:,.0f}", f"{task.lengths[1]:,}", f"{task.lengths[2]:,.0f}", f"{task.lengths[3]:,}")
    shares = (percent(task.asked), percent(task.drawn), percent(task.loss))
    cut = Text(percent(task.cut) if task.cut else "", "red" if task.cut > 0.01 else "")
    table.add_row(Name(task.name), *shares, f"{task.examples:,}", *means, cut)
  table.add_section()
  if rest := seen.tasks[most:]:
    table.add_row(*_sum(f"{len(rest):,} other tasks", rest), style="dim")
  table.add_row(*_sum("all", seen.tasks), style="bold")
  fill = ", ".join(f"{side} {100 * value:.1f} %" for side, value in seen.fill.items())
  never = sum(not task.drawn for task in seen.tasks)
  notes = [
    f"asked: the rate; drawn, of loss: share of {seen.segments:,} examples in {seen.rows:,} rows, and of their loss",
    f"{seen.segments / seen.rows:.1f} examples a row; fill: {fill}",
  ]
  notes += [f"{never:,} tasks were not drawn yet"] if never else []
  notes += [f"cut: {seen.overlong:,} examples are over a length"] if seen.overlong else []
  return Group(table, Text("; ".join(notes), "dim italic"))  # a caption would be as narrow as the table


def _sum(name: str, tasks: tuple[TaskShare, ...]) -> list[str]:
  """A line for several tasks: means over their examples."""
  counts = np.array([task.examples for task in tasks])
  lengths = np.array([task.lengths for task in tasks])
  means = (counts[:, None] * lengths).sum(axis=0) / counts.sum()
  longest = lengths.max(axis=0)
  cut = float((counts * [task.cut for task in tasks]).sum() / counts.sum())
  return [
    name,
    *(percent(round(sum(getattr(task, field) for task in tasks), 9)) for field in ("asked", "drawn", "loss")),
    f"{counts.sum():,}",
    f"{means[0]:,.0f}",
    f"{longest[1]:,.0f}",
    f"{means[2]:,.0f}",
    f"{longest[3]:,.0f}",
    percent(cut) if cut else "",
  ]


class _Paint:
  """Tokens to text in a segment's colour."""

  def __init__(self, vocabulary: Vocabulary, console: Console, tokens: int | None, boundaries: bool):
    self.spell, self.start_id = _speller(vocabulary), vocabulary.start_id
    self.tokens, self.boundaries = tokens, boundaries
    self.colour = console.color_system is not None and not console.no_color
    wide = "utf" in console.encoding
    self.loss, self.prefix = (marks[0 if wide else 1] for marks in (LOSS_MARKS, PREFIX_MARKS))
    self.gap, self.bar = ("…", "│") if wide else ("...", "|")

  def legend(self, architecture: str) -> Text:
    line = Text("\n")
    for words, style, marks in (
      ("counts in the loss", LOSS, self.loss),
      ("seen at once", PREFIX, self.prefix if architecture == "prefix" else None),
      ("special token", SPECIAL, ("<", ">")),
    ):
      if marks:
        line.append(*((words, style) if self.colour else (f"{marks[0]}{words}{marks[1]}", "")))
        line.append("   ")
    return line

  def row(self, number: int, row: Mapping[str, np.ndarray], mixture: CachedMixture) -> Iterator[RenderableType]:
    """A heading, then every segment: its task and what stands on either side."""
    sides = [side for side in SIDES if f"{side}_segment_ids" in row]
    fills: list[str] = []
    for side in sides:
      ids = row[f"{side}_segment_ids"]
      used = int((ids > 0).sum())
      units = (" tokens", " padding") if not fills else ("", "")  # said once: the line fits a terminal
      fills.append(f"{side} {used:,} of {len(ids):,}{units[0]}, {percent(1 - used / len(ids))}{units[1]}")
    yield Text()
    yield Rule(Text(f"row {number}: {'; '.join(fills)}"), align="left", style="dim")
    for segment in range(1, max(int(row[f"{side}_segment_ids"].max(initial=0)) for side in sides) + 1):
      colour = SEGMENTS[(segment - 1) % len(SEGMENTS)]
      inside = {side: row[f"{side}_segment_ids"] == segment for side in sides}
      task = max(int(row[f"{side}_task_ids"][inside[side]].max(initial=0)) for side in sides)  # a side may be empty
      notes = [f"{side} {int(inside[side].sum()):,}" for side in sides]
      notes.append(f"in the loss {int((row['decoder_loss_weights'][inside['decoder']] > 0).sum()):,}")
      name = Text(f"{segment} {mixture.tasks[task].name}", f"bold {colour}")
      yield name.append(f"  {', '.join(notes)}", "not bold default")
      for side in sides:
        yield Padding(self._side(row, side, inside[side], colour, label=len(sides) > 1), (0, 0, 0, 2))

  def _side(
    self, row: Mapping[str, np.ndarray], side: str, inside: Bool[np.ndarray, " length"], colour: str, *, label: bool
  ) -> Text:
    where = np.flatnonzero(inside)
    nothing = np.zeros(len(where), bool)
    if side == "encoder":
      values, loss, prefix = row["encoder_input_tokens"][where], nothing, nothing
    else:
      values, loss = row["decoder_target_tokens"][where], row["decoder_loss_weights"][where] > 0
      prefix = nothing
      if "decoder_causal_attention" in row:
        # A token is read one position after it is predicted, and the first thing that is read is the start.
        prefix = np.append(row["decoder_causal_attention"][where][1:] > 0, False)
      if self.start_id is None and len(where) and "encoder_segment_ids" not in row:
        # There is no start: what is read first is the segment's first token, which nothing predicts.
        values, loss = np.append(row["decoder_input_tokens"][where[0]], values), np.append(False, loss)
        seen = row.get("decoder_causal_attention")
        prefix = np.append(seen is not None and seen[where[0]] > 0, prefix)
    text = Text()
    if label:
      text.append(f"{side} {self.bar} ", "dim")
    marks = list(zip(loss.tolist(), prefix.tolist(), strict=True))
    at = 0
    for (counts, seen), group in itertools.groupby(marks):
      run = values[at : at + len(list(group))].tolist()
      at += len(run)
      self._append(text, run, counts, seen, colour)
    return text

  def _append(self, text: Text, run: list[int], counts: bool, seen: bool, colour: str) -> None:
    """Adds tokens that are marked alike. Each run is shortened for itself, so that both its ends can be seen."""
    style = " ".join([colour, *([LOSS] if counts else []), *([PREFIX] if seen else [])])
    begin, end = self._brackets(counts, seen)
    text.append(begin)
    left_out = 0 if self.tokens is None else len(run) - self.tokens
    if self.tokens is not None and left_out > NOTE:
      head = self.tokens - self.tokens // 2
      self._spell(text, run[:head], style)
      text.append(f" {self.gap} {left_out:,} tokens {self.gap} ", "dim")
      self._spell(text, run[head + left_out :], style)
    else:
      self._spell(text, run, style)
    text.append(end)

  def _spell(self, text: Text, ids: list[int], style: str) -> None:
    for index, (piece, special) in enumerate(self.spell(ids, self.boundaries)):
      if self.boundaries and index:
        text.append(self.bar, "dim")
      text.append(piece, f"{style} {SPECIAL}" if special else style)

  def _brackets(self, counts: bool, seen: bool) -> tuple[str, str]:
    if self.colour:
      return "", ""
    begin, end = "", ""
    for marked, (opening, closing) in ((seen, self.prefix), (counts, self.loss)):
      if marked:
        begin, end = begin + opening, closing + end
    return begin, end


Speller = Callable[[list[int], bool], list[tuple[str, bool]]]


def _speller(vocabulary: Vocabulary) -> Speller:
  """Ids -> (text, whether it is a special token). Texts are single tokens if asked, and else as long as may be."""
  names = {vocabulary.size - 1 - i: f"<extra_id_{i}>" for i in range(vocabulary.sentinels)}

  def spell(ids: list[int], single: bool) -> list[tuple[str, bool]]:
    found: list[tuple[str, bool]] = []
    pending = b""
    for token in [*ids, None]:
      content = None if token is None or token in names else vocabulary.spell(token)
      if content is not None:
        pending += content
      # A character may be several tokens: they stay together.
      if pending and (content is None or (single and _complete(pending))):
        found.append((_visible(pending.decode("utf-8", errors="replace")), False))
        pending = b""
      if token is not None and content is None:
        found.append((names.get(token) or vocabulary.written(token) or f"<{token}>", True))
    return found

  return spell


def _complete(content: bytes) -> bool:
  try:
    content.decode("utf-8")
  except UnicodeDecodeError as error:
    return error.reason != "unexpected end of data"
  return True


def _visible(text: str) -> str:
  """Line breaks stay one line, and control characters do nothing to the terminal."""
  text = text.replace("\n", "⏎").replace("\t", "⇥")
  return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)
