"""`python -m pallas_kernels.bench`: kernels on the device at hand, beside their peers; on a CPU, what the compilers for
TPUs and GPUs say of them. With --tune it writes the tuning table instead."""

import argparse
import math
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

import jax
from jax.stages import Compiled

from pallas_kernels.ahead import TPUS, available, compiled_for
from pallas_kernels.bench import schedule, tune
from pallas_kernels.bench.case import Case, Contestant
from pallas_kernels.bench.cases import cases
from pallas_kernels.bench.measure import PEAKS, milliseconds
from pallas_kernels.tuning.lookup import write

CHIPS = {"tpu": tuple(TPUS), "gpu": ("h200",)}
MEASURED = ("case", "by", "ms", "TFLOP/s", "of peak", "temporary MB", "goals")
COMPILED = ("case", "kernel", "chip", "compiled in s", "temporary MB", "flops counted / needed")
Row = tuple[str, ...]


def measured(case: Case, platform: str) -> Iterator[Row]:
  """Each contestant's time and memory on this device, and what became of the goals."""
  arguments = case.arguments()
  programs, memory = {}, {}
  for name, contestant in case.contestants.items():
    if contestant.platform not in (None, platform):
      continue
    try:
      program = jax.jit(contestant.run).lower(*arguments).compile()
      jax.block_until_ready(program(*arguments))
    except Exception as error:  # a peer that does not take these shapes, or runs out of memory, is a result
      yield (case.name, name, _said(error), "", "", "", "")
      continue
    programs[name], memory[name] = program, _temporary(program)
  times = milliseconds(programs, arguments, repeats=20 if platform != "cpu" else 5)
  peak = PEAKS.get(jax.devices()[0].device_kind)
  ours = case.ours[platform]
  for name, took in times.items():
    rate = case.flops / took / 1e9
    share = rate / peak if peak else None
    verdicts = []
    if name == ours:
      for goal in case.goals.get(platform, ()):
        compared = memory if goal.memory else times
        reached = share if goal.than is None else _ratio(compared.get(goal.than), compared[ours])
        verdicts.append(f"{goal}: {_met(reached, goal.bound)}")
    shown = f"{share:.0%}" if share else ""
    yield (case.name, name, f"{took:.3f}", f"{rate:.1f}", shown, f"{memory[name]:.1f}", "; ".join(verdicts))


def _ratio(other: float | None, ours: float) -> float | None:
  return None if other is None or not ours else other / ours


def _met(reached: float | None, bound: float) -> str:
  return "not known" if reached is None else f"{reached:.2f}, {'met' if reached >= bound else '**missed**'}"


def _temporary(program: Compiled) -> float:
  """Memory beside arguments and results, MB."""
  analysis = program.memory_analysis()
  return math.nan if analysis is None else analysis.temp_size_in_bytes / 1e6


def _said(error: Exception) -> str:
  return f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"


def compiled(case: Case) -> Iterator[Row]:
  """Each kernel as the compiler of each chip sees it."""
  for name, contestant in case.contestants.items():
    if not contestant.kernel or contestant.platform is None:
      continue
    for chip in CHIPS[contestant.platform]:
      if available(chip):
        yield (case.name, name, chip, *_compiled(case, contestant, chip))


def _compiled(case: Case, contestant: Contestant, chip: str) -> Row:
  start = time.perf_counter()
  try:
    program = compiled_for(chip, contestant.run, *case.shapes())
  except Exception as error:
    return (_said(error), "", "")
  took = time.perf_counter() - start
  flops = (program.cost_analysis() or {}).get("flops")  # the plugin for GPUs does not count
  return (f"{took:.1f}", f"{_temporary(program):.1f}", f"{flops / case.flops:.2f}" if flops else "")


def _tunable(case: Case, platform: str) -> list[str]:
  """Those of this package that are for this platform; ours, if there is no kernel for it."""
  kernels = [name for name, each in case.contestants.items() if each.kernel and each.platform == platform]
  return kernels or [case.ours[platform]] if platform in case.ours else kernels


def markdown(header: Row, rows: Sequence[Row]) -> str:
  """A table."""
  lines = [header, tuple("---" for _ in header), *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(rows: Iterable[Row]) -> list[Row]:
  """All rows; each is printed as soon as it is there."""
  kept = []
  for row in rows:
    print(*row, sep="  ", flush=True)
    kept.append(row)
  return kept


def versions() -> str:
  names = [f"python {sys.version.split()[0]}"]
  for name in ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "tokamax"):
    try:
      names.append(f"{name} {metadata.version(name)}")
    except metadata.PackageNotFoundError:
      continue
  return ", ".join(names)


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m pallas_kernels.bench", description=__doc__)
  parser.add_argument("--tune", action="store_true", help="find the fastest block sizes and write them to the table")
  parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name has it")
  parser.add_argument("--out", type=Path, metavar="FILE", help="the table as Markdown")
  arguments = parser.parse_args(argv)
  platform = jax.default_backend()
  chosen = [case for case in cases() if re.search(arguments.only, case.name)]
  if not chosen:
    print(f"no case has {arguments.only!r} in its name; there are:", *(case.name for case in cases()), sep="\n  ")
    return 2
  print(f"{len(jax.devices())} x {jax.devices()[0].device_kind}; {versions()}", flush=True)
  if arguments.tune:
    for case in chosen:
      for name in _tunable(case, platform):
        lines = tune.best(case.contestants[name].run, case.arguments())
        write(lines)
        print(*(f"{line}: {sizes}" for line, sizes in lines.items()), sep="\n", flush=True)
    return 0
  tables = []
  if any(platform in case.ours for case in chosen):
    here = (case for case in chosen if platform in case.ours)
    tables.append(markdown(MEASURED, _shown(row for case in here for row in measured(case, platform))))
  if platform == "cpu":
    tables.append(markdown(COMPILED, _shown(row for case in chosen for row in compiled(case))))
    if available("v5e") and not arguments.only:
      tables.append(markdown(schedule.HEADER, _shown(schedule.rows())))
  report = "\n\n".join((f"{jax.devices()[0].device_kind}; {versions()}", *tables)) + "\n"
  print("\n" + report)
  if arguments.out:
    arguments.out.write_text(report)
  return 0


if __name__ == "__main__":
  sys.exit(main())
