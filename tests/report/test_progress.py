"""Progress says the same in a terminal and in a log file, and costs the loop nothing."""

import io
import re
import time

import pytest
from rich.console import Console

from mtx.report.progress import Progress, duration, quantity


class Clock:
  def __init__(self):
    self.now = 0.0

  def __call__(self):
    return self.now


def plain_console():
  return Console(file=io.StringIO(), force_terminal=False, width=40)


def terminal(width=100):
  return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, legacy_windows=False)


def drawn(console, progress):
  with console.capture() as capture:
    console.print(progress)
  return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capture.get()).rstrip("\n")


def test_a_log_file_gets_one_line_every_few_seconds_without_control_codes():
  console, clock = plain_console(), Clock()
  with Progress("mhr", 100, every=10, console=console, clock=clock) as progress:
    for step in range(1, 101):
      clock.now += 1
      progress.update(step, loss=2.0, tokens_per_second=18_400, mfu=0.311, learning_rate=1e-3)
  text = console.file.getvalue()
  lines = text.splitlines()
  assert "\x1b" not in text and "\r" not in text
  assert [line.split()[1] for line in lines[:3]] == ["1/100", "11/100", "21/100"]
  assert lines[1] == "mhr  11/100  loss 2.0000  18.4k tok/s  MFU 31.1%  lr 1.0e-03  ETA 1:29"
  assert lines[-2].startswith("mhr  100/100") and lines[-2].endswith("ETA 0:00")
  assert lines[-1] == "mhr  100 steps in 1:40  loss 2.0000  18.4k tok/s"


def test_time_left_leaves_out_compilation_and_steps_done_before():
  clock = Clock()
  with Progress("mhr", 1000, start=900, console=plain_console(), clock=clock) as progress:
    clock.now += 300  # compiling
    progress.update(901)
    assert progress.eta() == "-"
    for step in range(902, 951):
      clock.now += 2
      progress.update(step)
    assert progress.eta() == "1:40"


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_the_bar_fits_the_terminal_and_drops_the_least_first(width):
  console = terminal(width)
  progress = Progress("fewshot", 3000, start=1200, console=console, clock=Clock())
  progress.update(1234, loss=1.5, tokens_per_second=18_400, mfu=0.311, learning_rate=1e-3)
  line = drawn(console, progress)
  assert "\n" not in line and len(line) <= width
  assert "fewshot" in line and "1,234/3,000" in line
  assert ("lr 1.0e-03" in line) == (width >= 100)
  assert "loss 1.5000" in line or width < 60


def test_a_terminal_shows_the_bar_while_it_runs_and_one_line_after():
  console = terminal()
  with Progress("mhr", 10, console=console) as progress:
    progress.update(10, loss=0.5)
    progress.note("eval at step 10: exact match 41.0 [held-out]")
    time.sleep(0.3)
  text = console.file.getvalue()
  assert "━" in text and "exact match 41.0 [held-out]" in text
  assert "10 steps in 0:00  loss 0.5000" in text.splitlines()[-1]


def test_notes_are_not_wrapped_and_brackets_stay():
  console = plain_console()
  note = "exact match [bold] " + "x" * 60
  with Progress("mhr", 1, console=console) as progress:
    progress.note(note)
    progress.update(1)
  assert console.file.getvalue().splitlines()[0] == f"mhr  {note}"


def test_an_interrupted_stage_says_where():
  console = plain_console()
  with pytest.raises(KeyboardInterrupt), Progress("mhr", 3000, console=console) as progress:
    progress.update(1500, loss=1.0)
    raise KeyboardInterrupt
  assert console.file.getvalue().splitlines()[-1] == "mhr  stopped at step 1,500 of 3,000"


def test_a_finished_stage_started_again_says_so():
  console = plain_console()
  with Progress("mhr", 3000, start=3000, console=console):
    pass
  assert console.file.getvalue() == "mhr  nothing left to do at step 3,000 of 3,000\n"


def test_update_does_not_wait_for_drawing():
  with Progress("mhr", 10_000, console=terminal()) as progress:
    began = time.perf_counter()
    for step in range(10_000):
      progress.update(step, loss=1.0, tokens_per_second=1e4, mfu=0.3, learning_rate=1e-3)
    assert time.perf_counter() - began < 2.0  # 0.2 ms each, many times what it takes


def test_numbers_are_short():
  assert [quantity(x) for x in (7, 950, 1234, 12_345, 123_456, 4.56e6)] == "7 950 1.23k 12.3k 123k 4.56M".split()
  assert [duration(x) for x in (0.4, 59.6, 61, 3_700)] == ["0:00", "1:00", "1:01", "1:01:40"]
