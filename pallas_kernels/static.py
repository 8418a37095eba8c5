"""What the compiler says of a TPU kernel's time: its schedule, bundle by bundle.

libtpu writes the instruction bundles that it schedules, and what each uses of the units. A bundle issues in one cycle:
their number is the length of the kernel's program text, where the body of a loop or a branch counts once, and stalls,
copies from memory and the steps of the grid do not show. Programs of the same form can be compared by it; a time it is
not, and it was never held against a chip.
"""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pallas_kernels.ahead import compiled_for

TABLE = "*{name}*final_hlo-static-per-bundle-utilization.txt"
LISTING = "*{name}*-final_bundles.txt"
ADDRESS = re.compile(r"\s*0x([0-9a-f]+) +([A-Z]{2})?")


class Schedule(NamedTuple):
  """A kernel's program on one chip.

  Attributes:
    bundles: of the whole text.
    cycles: by unit (MXU, XLU, VALU, EUP, VLOAD, VSTORE, ...), what its work takes at the least.
    block: bundles of the branch that multiplies most, which a kernel takes for each block of its operands.
    block_cycles: of that branch.
  """

  bundles: int
  cycles: dict[str, int]
  block: int
  block_cycles: dict[str, int]


def schedules(chip: str, kernels: list[str], program: str, **arguments: Any) -> dict[str, Schedule]:
  """Schedules of the kernels of those names in a program, compiled in a process of its own (5 to 30 s).

  Args:
    chip: "v5e", "v5p" or "v6e".
    kernels: as given to `pl.pallas_call(name=...)`.
    program: "module:function" of a function that returns (function to compile, its arguments or their shapes).
    arguments: of that function; JSON.

  Raises:
    RuntimeError: it does not compile, or holds no kernel of such a name.
  """
  with tempfile.TemporaryDirectory() as folder:
    flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    environment = {**os.environ, "LIBTPU_INIT_ARGS": flags, "JAX_PLATFORMS": "cpu"}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # what is not compiled is not dumped
    command = [sys.executable, "-m", "pallas_kernels.static", chip, program, json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
      raise RuntimeError(f"{program} does not compile for {chip}: {done.stderr[-2000:]}")
    return {name: _schedule(Path(folder), name) for name in kernels}


def _schedule(folder: Path, kernel: str) -> Schedule:
  tables, listings = (sorted(folder.glob(form.format(name=kernel))) for form in (TABLE, LISTING))
  listings = [path for path in listings if "analysis" not in path.name]
  if not tables or not listings:
    raise RuntimeError(f"no schedule of a kernel {kernel!r} was written.")
  return parsed(tables[0].read_text(), listings[0].read_text())


def parsed(table: str, listing: str) -> Schedule:
  """From libtpu's two files.

  Args:
    table: names of units, how many of each there are, a blank line, and what each bundle uses.
    listing: bundles by address; a branch over a region is one with `sbr.rel`, and "PF" marks where the region ended.
  """
  lines = table.splitlines()
  units = [name.strip().replace("MATMUL", "MXU") for name in lines[1].split(",")]  # as newer releases call it
  there = [int(n) for n in lines[2].split()]
  rows = [[int(n) for n in line.split()] for line in lines[4:] if line.strip()[:1].isdigit()]

  def cycles(rows: list[list[int]]) -> dict[str, int]:
    used = [sum(row[i] for row in rows) for i in range(len(units))]
    return {unit: -(-n // many) for unit, n, many in zip(units, used, there, strict=True) if n}

  bodies = [rows[first:end] for first, end in _branches(listing)]
  block = max(bodies, key=lambda body: cycles(body).get("MXU", 0), default=[])
  return Schedule(len(rows), cycles(rows), len(block), cycles(block))


def _branches(listing: str) -> list[tuple[int, int]]:
  """First bundle after each branch, and the one where the region it skips ended; regions without regions inside."""
  found, start = [], None
  for line in listing.splitlines():
    address = ADDRESS.match(line)
    if address is None:
      continue
    at = int(address[1], 16)
    if address[2] == "PF" and start is not None:
      found.append((start, at))
      start = None
    if "sbr.rel" in line:
      start = at + 1
  return found


def _compile(chip: str, program: str, arguments: str) -> None:
  module, name = program.split(":")
  build: Callable[..., tuple[Callable[..., Any], tuple[Any, ...]]] = getattr(importlib.import_module(module), name)
  function, operands = build(**json.loads(arguments))
  compiled_for(chip, function, *operands)


if __name__ == "__main__":
  _compile(*sys.argv[1:])
