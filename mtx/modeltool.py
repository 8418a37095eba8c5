"""`mtx import` and `mtx export`: models of others in, ours out."""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from mtx.check import versions
from mtx.errors import UserError
from mtx.parallel.mesh import AXES
from mtx.pretrained.export import ADAPTERS, DTYPES, export
from mtx.pretrained.model import Found, find_model, open_model, with_adapters
from mtx.pretrained.native import write_native
from mtx.training.parameters import Params, count

COMMANDS = ("import", "export")


def add_commands(commands: argparse._SubParsersAction) -> None:
  """Adds `import` and `export` to the command line."""
  text = "read a checkpoint of Hugging Face, T5X, llama2.c or peft, and keep it in mtx's own format"
  come = commands.add_parser("import", help=text, description=text)
  come.add_argument("model", metavar="DIR", help="its folder, or a file of it")
  come.add_argument("--out", metavar="FOLDER", help="where it goes; without it the checkpoint is only checked")
  come.add_argument("--architecture", metavar="NAME", help="what it runs as: a decoder is causal or prefix")
  come.add_argument("--adapter", metavar="DIR", help="a folder of peft, LoRA or Poly, to hang on it")

  text = "write a model for transformers, or its adapters for peft"
  go = commands.add_parser("export", help=text, description=text)
  go.add_argument("model", metavar="MODEL", help="a run's folder, one that `mtx import` wrote, or a checkpoint")
  go.add_argument("out", metavar="OUT", help="a folder that is not there yet")
  go.add_argument("--adapters", choices=ADAPTERS, help="fold them in (the default), write only them, or leave them out")
  go.add_argument("--task", metavar="NAME", help="whose routing is folded in")
  go.add_argument("--dtype", choices=DTYPES, help="of the weights; default: as they are")

  for command in (come, go):
    command.add_argument("--debug", action="store_true", help="show tracebacks")


def run(arguments: argparse.Namespace) -> int:
  """Does what a parsed command line asks for. Returns the exit code."""
  console = Console(highlight=False)
  began = time.perf_counter()
  mesh = host_mesh()
  if arguments.command == "export":
    if arguments.task and arguments.adapters not in (None, "merged"):
      raise UserError(f"--task {arguments.task} goes with --adapters merged, not {arguments.adapters}.")
    opened = open_model(arguments.model, mesh)
    export(opened, arguments.out, adapters=arguments.adapters, task=arguments.task, dtype=arguments.dtype)
    if opened.config.architecture == "prefix":
      console.print("a prefix decoder: transformers runs it as a causal one, without attention back from the inputs")
    console.print(f"{arguments.out}: written in {time.perf_counter() - began:.1f} s", soft_wrap=True)
    return 0
  out = Path(arguments.out) if arguments.out else None
  if out is not None and out.exists():
    raise UserError(f"--out {out} exists already.", hint="choose another folder, or move it away")
  found = find_model(arguments.model, architecture=arguments.architecture)
  if arguments.adapter:
    found = with_adapters(found, arguments.adapter)
  model = found.blueprint()
  params = found.read(found.stored(model.shapes), model.shardings(mesh))
  describe(console, found, params)
  if out is not None:
    known = versions()
    source = {**found.source, "made": "mtx import", "versions": {name: str(known[name]) for name in sorted(known)}}
    write_native(out, replace(found, source=source), params)
    console.print(f"{out}: written in {time.perf_counter() - began:.1f} s", soft_wrap=True)
  return 0


def host_mesh() -> Mesh:
  """One device that holds the model: the host itself, which no conversion needs an accelerator for."""
  try:
    device = jax.devices("cpu")[0]
  except RuntimeError:  # JAX_PLATFORMS leaves it out
    device = jax.devices()[0]
  return Mesh(np.array([device]).reshape((1,) * len(AXES)), AXES)


def describe(console: Console, found: Found, params: Params) -> None:
  """Prints what a model is, and which tensors nothing was made of."""
  size = sum(value.nbytes for value in params.values())
  kinds = sorted({str(value.dtype) for value in params.values()})
  lines = {
    "model": f"{found.family or 'of no family'}, {found.config.architecture}",
    "parameters": f"{count(params):,} ({', '.join(kinds)}; {size / 2**20:,.1f} MiB)",
    "vocabulary": "none" if found.vocabulary is None else f"{found.vocabulary.kind}, {found.vocabulary.size:,} ids",
  }
  for each in found.injections:
    lines["adapters"] = f"{each.method} {json.dumps(dict(each.settings))}"
  if found.tasks:
    lines["tasks"] = f"{len(found.tasks)}: {', '.join(found.tasks[:5])}{' ...' * (len(found.tasks) > 5)}"
  if found.unused:
    lines["not used"] = ", ".join(found.unused)
  for name, text in lines.items():
    console.print(f"{name:<11} {text}", markup=False, soft_wrap=True)
