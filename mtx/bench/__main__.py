"""`python -m mtx.bench [names]`: runs benches and prints one table. Exit code 1 if a target was missed."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from mtx.bench.build import build
from mtx.bench.feed import feed
from mtx.bench.generating import SHAPES as GENERATED
from mtx.bench.generating import generating
from mtx.bench.host import host
from mtx.bench.importing import importing
from mtx.bench.memory import memory
from mtx.bench.open import opening
from mtx.bench.packing import packing
from mtx.bench.pipeline import pipeline
from mtx.bench.ranking import ranking
from mtx.bench.row import Row
from mtx.bench.train_step import PEERS, train_step
from mtx.errors import UserError, did_you_mean

# What imports torch comes last: its threads stay, and the host's time of a step, 1.8 ms alone, is 3.4 ms after them.
NAMES = (
  "host", "open", "feed", "build", "pipeline", "packing", "memory", "importing", "ranking", *GENERATED, "train_step",
)  # fmt: skip
SHOWN = ("jax", "jaxlib", "flax", "grain", *PEERS)


def benches(superni: Path | None, cache: Path) -> dict[str, Callable[[], Row]]:
  """Every bench by name, ready to run."""
  return {
    "host": partial(host, superni=superni, cache=cache),
    "open": opening,
    "feed": partial(feed, superni=superni, cache=cache),
    "build": partial(build, superni=superni),
    "pipeline": partial(pipeline, superni=superni, cache=cache),
    "packing": partial(packing, superni=superni, cache=cache),
    "memory": memory,
    "importing": importing,
    "ranking": ranking,
    **{name: partial(generating, name) for name in GENERATED},
    "train_step": train_step,
  }


def table(rows: Sequence[Row]) -> Table:
  """One line a bench."""
  shown = Table(title="mtx.bench", show_lines=True)
  for name in ("bench", "ours", "peer", "ratio", "target", "met", "how"):
    shown.add_column(name, justify="right" if name in ("ours", "peer", "ratio") else "left", overflow="fold")
  for row in rows:
    met = "-" if row.met is None else "[green]yes[/]" if row.met else "[bold red]no[/]"
    ours, peer = (_quantity(value, row.unit) for value in (row.ours, row.peer))
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    shown.add_row(row.name, ours, peer, ratio, str(row.target), met, row.detail)
  return shown


def summary(row: Row) -> str:
  """A row as one line, shown as soon as it is known."""
  ours, peer = (_quantity(value, row.unit) for value in (row.ours, row.peer))
  ratio = "" if row.ratio is None else f", peer {peer}, ratio {row.ratio:.2f}"
  return f"{row.name}: {ours}{ratio}, target {row.target}" + (f"; {row.detail}" if row.met is None else "")


def _quantity(value: float | None, unit: str) -> str:
  return "-" if value is None else f"{value:,.{0 if value >= 100 else 2}f} {unit}"


def machine() -> str:
  """Versions, devices and how busy the processor is: other work on it makes numbers smaller and ratios noisier."""
  names = [f"python {sys.version.split()[0]}"]
  for name in SHOWN:
    try:
      names.append(f"{name} {metadata.version(name)}")
    except metadata.PackageNotFoundError:
      names.append(f"{name} not installed")
  devices = jax.devices()
  load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
  return f"{', '.join(names)}\n{len(devices)} x {devices[0].device_kind}, {os.cpu_count()} cores, {load}"


def main(argv: Sequence[str] | None = None) -> int:
  given = os.environ.get("SUPERNI_DIR")
  parser = argparse.ArgumentParser(prog="python -m mtx.bench", description="Speed and memory, as ratios in one run.")
  parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
  parser.add_argument("--superni", type=Path, default=Path(given) if given else None, metavar="DIR",
                      help="Super-NaturalInstructions checkout; default $SUPERNI_DIR")  # fmt: skip
  parser.add_argument("--cache", type=Path, default=Path(".cache/mtx"), metavar="DIR", help="tokenised tasks")
  arguments = parser.parse_args(argv)
  console = Console(highlight=False)
  rows = []
  try:
    chosen = benches(arguments.superni, arguments.cache)
    for name in arguments.names:
      if name not in chosen:
        raise UserError(f"no bench {name!r}.", hint=did_you_mean(name, NAMES))
    console.print(machine())
    for name in arguments.names or NAMES:
      start = time.perf_counter()
      rows.append(chosen[name]())
      console.print(f"{summary(rows[-1])} ({time.perf_counter() - start:.0f} s)")
  except UserError as error:
    print(f"mtx: {error}", file=sys.stderr)
    return 2
  console.print(table(rows))
  console.print(machine().splitlines()[-1])
  return int(any(row.met is False for row in rows))


if __name__ == "__main__":
  sys.exit(main())
