"""Training progress: a live bar in a terminal, a plain line every few seconds anywhere else."""

import time
from collections import deque
from collections.abc import Callable

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

REFRESHES = 5  # a second; drawing takes about a millisecond
SAMPLE_SECONDS = 0.5
BAR_CELLS = 12  # the bar gives up no more than this before measures are left out


class Progress:
  """Context manager that shows how far a stage is.

  `update` stores numbers and returns; in a terminal a thread draws them.

      with Progress("pretrain", total=3000, start=1200) as progress:
        progress.update(1201, loss=2.31, tokens_per_second=18_400, mfu=0.31, learning_rate=1e-3)
        progress.note("eval at step 1,201: exact match 41.0")

  Args:
    stage: name shown first.
    total: steps at the end of the stage.
    start: steps already done (a resumed run).
    every: seconds between lines where there is no terminal.
    unit: what is counted.
    console: where to write; standard output by default.
    clock: seconds from any origin, monotonic.
  """

  def __init__(
    self,
    stage: str,
    total: int,
    start: int = 0,
    *,
    every: float = 10.0,
    unit: str = "steps",
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
  ):
    self.stage, self.total, self.start, self.step = stage, total, start, start
    self.console = console or Console()
    self._every, self._unit, self._clock = every, unit, clock
    self._measures: dict[str, float] = {}
    # The window for the rate starts at the first update, because the first step compiles.
    self._samples: deque[tuple[float, int]] = deque(maxlen=60)
    self._printed = -float("inf")
    terminal = self.console.is_terminal and not self.console.is_dumb_terminal
    self._live = Live(self, console=self.console, refresh_per_second=REFRESHES, transient=True) if terminal else None

  def __enter__(self) -> "Progress":
    self._began = self._clock()
    if self._live:
      self._live.start()
    return self

  def __exit__(self, kind, exception, traceback) -> None:
    if self._live:
      self._live.stop()
    if kind is not None:
      self._print(f"stopped at step {self.step:,} of {self.total:,}", style="yellow")
    elif self.step > self.start:
      done = f"{self.step - self.start:,} {self._unit} in {duration(self._clock() - self._began)}"
      self._print("  ".join([done, *_texts(self._measures)[:2]]), style="green")
    else:
      self._print(f"nothing left to do at step {self.step:,} of {self.total:,}")

  def update(
    self,
    step: int,
    *,
    loss: float | None = None,
    tokens_per_second: float | None = None,
    mfu: float | None = None,
    learning_rate: float | None = None,
  ) -> None:
    """Tells where the stage is. A measure left out keeps its last value.

    Args:
      step: steps done.
      loss: nats a target token.
      tokens_per_second: useful tokens, padding excluded.
      mfu: model FLOPs utilisation in [0, 1].
      learning_rate: of the main group.
    """
    given = {"loss": loss, "tokens_per_second": tokens_per_second, "mfu": mfu, "learning_rate": learning_rate}
    # A new dict, so that the drawing thread never sees one half changed.
    self._measures = self._measures | {name: value for name, value in given.items() if value is not None}
    self.step = step
    now = self._clock()
    if not self._samples or now - self._samples[-1][0] >= SAMPLE_SECONDS:
      self._samples.append((now, step))
    if not self._live and (now - self._printed >= self._every or step == self.total):
      self._printed = now
      where = f"{step:,}/{self.total:,}"
      self._print("  ".join([where, *_texts(self._measures), f"ETA {self.eta()}"]))

  def note(self, text: str) -> None:
    """Prints one line above the bar: an evaluation, a checkpoint, a warning."""
    self._print(text)

  def eta(self) -> str:
    """Time left at the pace of the last minute or so, as h:mm:ss; `-` before it is known."""
    if len(self._samples) < 2:
      return "-"
    (began, first), (now, last) = self._samples[0], self._samples[-1]
    if last <= first:
      return "-"
    return duration((self.total - self.step) * (now - began) / (last - first))

  def _print(self, text: str, style: str = "") -> None:
    if self._live:
      self.console.print(Text.assemble((f"{self.stage}  ", "bold"), (text, style)), highlight=False)
    else:
      # Never wrapped: one line is one record for those who grep a log.
      self.console.print(f"{self.stage}  {text}", highlight=False, markup=False, soft_wrap=True)
      self.console.file.flush()

  def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
    where = f"{self.step:,}/{self.total:,}"
    measures = _texts(self._measures) or ["compiling" if self.step == self.start else ""]
    # By importance; the last ones give way in a narrow terminal.
    shown = [where, measures[0], f"ETA {self.eta()}", *measures[1:]]
    space = options.max_width - len(self.stage) - 2 - BAR_CELLS
    while len(shown) > 2 and sum(len(text) + 2 for text in shown) > space:
      shown.pop()
    line = Table.grid(padding=(0, 2, 0, 0), expand=True)
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    for _ in shown:
      line.add_column(no_wrap=True, justify="right")
    bar = ProgressBar(total=max(self.total, 1), completed=self.step)
    line.add_row(Text(self.stage, "bold"), bar, *[Text(t, "" if i < 3 else "dim") for i, t in enumerate(shown)])
    yield line


def duration(seconds: float) -> str:
  """Seconds as `m:ss` or `h:mm:ss`."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def quantity(value: float) -> str:
  """A count with three digits and a suffix: 950, 12.3k, 4.56M."""
  for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
    if abs(value) >= size:
      digits = 2 if abs(value) < 10 * size else 1 if abs(value) < 100 * size else 0
      return f"{value / size:.{digits}f}{suffix}"
  return f"{value:.0f}"


def _texts(measures: dict[str, float]) -> list[str]:
  formats: dict[str, Callable[[float], str]] = {
    "loss": lambda x: f"loss {float(x):.4f}",
    "tokens_per_second": lambda x: f"{quantity(float(x))} tok/s",
    "mfu": lambda x: f"MFU {100 * float(x):.1f}%",
    "learning_rate": lambda x: f"lr {float(x):.1e}",
  }
  return [show(measures[name]) for name, show in formats.items() if name in measures]
