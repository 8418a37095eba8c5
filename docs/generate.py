"""Writes docs/reference: what a gin file may bind, from docstrings, and what the command line takes. `make docs`."""

import argparse
import inspect
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gin
from docstring_parser import DocstringStyle, parse

from mtx.run import parser, register
from pallas_kernels.attention.api import BACKENDS, backend
from pallas_kernels.attention.spec import FEATURES

HERE = Path(__file__).parent / "reference"
COMMANDS = "commands.md"
KERNELS = "kernels.md"
HIDDEN = ("help", "debug")  # of every command: say nothing of this one


class Configurable(NamedTuple):
  """What gin knows by a name.

  Attributes:
    name: as a gin file writes it.
    module: dotted.
    source: the function or class itself, without gin's wrapping.
    bindable: parameter -> default, as it stands in the code; "" where there is none.
  """

  name: str
  module: str
  source: Any
  bindable: dict[str, str]

  @property
  def package(self) -> str:
    return self.module.split(".")[1]


def configurables() -> list[Configurable]:
  """Everything that `mtx train` makes known to gin, by module and name."""
  register()
  found = []
  for selector in gin.config._REGISTRY._selector_map:
    entry = gin.config._REGISTRY[selector]
    if entry.wrapped.__module__.startswith("mtx."):
      name = selector.rpartition(".")[2]
      found.append(Configurable(name, entry.wrapped.__module__, entry.wrapped, _bindable(entry)))
  return sorted(found, key=lambda each: (each.module, each.name.lower()))


def _bindable(entry: Any) -> dict[str, str]:
  # Of modules of flax.nnx the class itself shows no signature.
  made_by = entry.wrapped.__init__ if inspect.isclass(entry.wrapped) else entry.wrapped
  parameters = inspect.signature(made_by).parameters.values()
  fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
  hidden = {"self", *(entry.denylist or ())}
  allowed = lambda name: name in entry.allowlist if entry.allowlist else name not in hidden
  return {p.name: _default(p.default) for p in parameters if p.kind not in fixed and allowed(p.name)}


def _default(value: Any) -> str:
  """As a gin file would write it."""
  if value is inspect.Parameter.empty or value is gin.REQUIRED:
    return ""
  if callable(value):
    return f"@{value.__name__}"
  return repr(value)


def describe(each: Configurable) -> str:
  """Markdown of one configurable: its first paragraph, and a line a parameter."""
  docstrings = [each.source, *([each.source.__init__] if inspect.isclass(each.source) else [])]
  found, *inside = [parse(inspect.getdoc(of) or "", DocstringStyle.GOOGLE) for of in docstrings]
  told: dict[str, str] = {}
  for parameter in sum((of.params for of in inside), found.params):
    told |= _told(f"{parameter.arg_name}: {_line(parameter.description)}", each.bindable)
  lines = [f"## {each.name}", "", f"`{each.module.replace('.', '/')}.py`: {_line(found.short_description)}", ""]
  if each.bindable:
    lines += [f"| `{each.name}.` | default | |", "|---|---|---|"]
    for name, default in each.bindable.items():
      lines.append(f"| `{name}` | {_code(default) or 'required'} | {_cell(told.get(name, ''))} |")
    lines.append("")
  return "\n".join(lines)


def _told(text: str, names: Collection[str]) -> dict[str, str]:
  """Parameter -> what is said of it. A line may tell of two at once (`inputs_length, targets_length: ...`), or of one
  and then of another (`rank: r. alpha: ...`)."""
  told = {}
  for part in re.split(r"(?<=[.;]) (?=\w+(?:, \w+)*: )", text):
    heads, _, about = part.partition(": ")
    heard = [word.partition(" ")[0] for word in re.split(r",\s*", heads)]
    if told and not set(heard) <= set(names):  # a sentence with a colon
      told = {name: f"{said} {part}" for name, said in told.items()}
    else:
      told |= dict.fromkeys(heard, about)
  return told


def commands() -> str:
  """Markdown of the command line: a heading a command, a line an option."""
  lines = ["# The command line", "", _written("the parsers"), ""]
  for name, text, command in _leaves("mtx", "", parser()):
    lines += [f"## {name}", "", _sentence(text), ""]
    rows = [_option(action) for action in command._actions if action.dest not in HIDDEN]
    if rows:
      lines += ["| | |", "|---|---|", *rows, ""]
    if command.epilog:
      lines += [_line(command.epilog), ""]
  return "\n".join(lines)


def _leaves(
  name: str, text: str, command: argparse.ArgumentParser
) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
  below = [action for action in command._actions if isinstance(action, argparse._SubParsersAction)]
  for action in below:
    for choice in action._choices_actions:
      yield from _leaves(f"{name} {choice.dest}", choice.help or "", action.choices[choice.dest])
  if not below:
    yield name, text, command


def _option(action: argparse.Action) -> str:
  value = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
  written = " ".join([*action.option_strings[-1:], *([] if action.nargs == 0 else [str(value)])])
  return f"| `{written}` | {_cell(_line(action.help))} |"


def kernels() -> str:
  """Markdown of what each attention backend honours."""
  modules = {name: backend(name) for name in BACKENDS}
  lines = [
    "# Attention backends",
    "",
    _written("`HONOURED` of each backend"),
    "",
    "`attention.impl` names one for a run. A backend refuses by name what it does not honour, and sizes and dtypes",
    "that it can not do.",
    "",
    *(f"* `{name}`: {_line((module.__doc__ or '').split(chr(10) * 2)[0])}" for name, module in modules.items()),
    "",
    f"| field | {' | '.join(f'`{name}`' for name in modules)} |",
    f"|---|{'---|' * len(modules)}",
  ]
  for feature in FEATURES:
    lines.append(f"| {feature} | {' | '.join('yes' if feature in m.HONOURED else '-' for m in modules.values())} |")
  return "\n".join(lines)


def pages() -> dict[str, str]:
  """File name -> Markdown of the whole reference."""
  by_package: dict[str, list[Configurable]] = {}
  for each in configurables():
    by_package.setdefault(each.package, []).append(each)
  made = {COMMANDS: commands(), KERNELS: kernels()}
  for package, members in by_package.items():
    title = "`mtx train` itself" if package == "run" else f"`mtx/{package}`"
    about = _line(sys.modules[f"mtx.{package}"].__doc__) if package != "run" else ""
    parts = [f"# What a gin file may bind: {title}", "", *([about, ""] if about else []), _written("docstrings"), ""]
    made[f"{package}.md"] = "\n".join([*parts, *map(describe, members)])
  return {name: text.rstrip("\n") + "\n" for name, text in made.items()}


def _written(source: str) -> str:
  return f"*Written by `make docs` from {source}; do not edit.*"


def _line(text: str | None) -> str:
  return " ".join((text or "").split())


def _sentence(text: str | None) -> str:
  line = _line(text)
  return line[:1].upper() + line[1:] + ("" if line.endswith(".") else ".")


def _cell(text: str) -> str:
  return text.replace("|", r"\|")


def _code(text: str) -> str:
  return f"`{_cell(text)}`" if text else ""


def write(made: Mapping[str, str]) -> None:
  """Replaces the folder's pages."""
  HERE.mkdir(exist_ok=True)
  for old in HERE.glob("*.md"):
    old.unlink()
  for name, text in made.items():
    (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
  write(pages())
