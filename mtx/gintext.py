"""Gin text to statements that remember where they were written; nothing is bound and mistakes are collected.

Gin's own parser reads the text (gin 0.5, `config_parser.py`), so what is accepted here is what gin accepts.
"""

import importlib
import sys
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gin import config as gin_config
from gin import config_parser

import mtx
from mtx.errors import did_you_mean

ROOTS = (Path(mtx.__file__).resolve().parent.parent, Path(sys.prefix) / "share" / "mtx")
FLAG = "--gin."
Problem = tuple[str, str]  # what was written and where; what would work


@dataclass(frozen=True)
class Reference:
  """`@scope/name` or `@scope/name()`; its repr is what gin reads."""

  name: str
  evaluate: bool

  @property
  def scope(self) -> str:
    return self.name.rpartition("/")[0]

  @property
  def selector(self) -> str:
    return self.name.rpartition("/")[2]

  def __repr__(self):
    return f"@{self.name}{'()' if self.evaluate else ''}"


@dataclass(frozen=True)
class Macro:
  """`%NAME`."""

  name: str

  def __repr__(self):
    return f"%{self.name}"


@dataclass(frozen=True)
class Binding:
  """One `scope/selector.parameter = value`, or a macro, which has no parameter.

  Attributes:
    value: a literal that may hold References and Macros; its repr is gin text.
    place: `file:line`, or the flag of the command line.
  """

  scope: str
  selector: str
  parameter: str
  value: Any
  place: str

  @property
  def name(self) -> str:
    scoped = f"{self.scope}/{self.selector}" if self.scope else self.selector
    return f"{scoped}.{self.parameter}" if self.parameter else scoped

  @property
  def key(self) -> tuple[str, str, str]:
    """Equal for two bindings of one parameter, however much of the function's module each names."""
    return (self.scope, (self.parameter and complete(self.selector)) or self.selector, self.parameter)


def complete(selector: str) -> str | None:
  """The full name of a configurable, None if there is not exactly one."""
  matching = gin_config._REGISTRY.matching_selectors(selector)
  return matching[0] if len(matching) == 1 else None


def marks(value: Any) -> Iterator[Reference | Macro]:
  """The references and macros in a value."""
  if isinstance(value, (Reference, Macro)):
    yield value
  elif isinstance(value, Mapping):
    for pair in value.items():
      yield from marks(pair)
  elif isinstance(value, (list, tuple)):
    for item in value:
      yield from marks(item)


class _Markers(config_parser.ParserDelegate):
  """Leaves references and macros as they were written."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return Reference(scoped_configurable_name, evaluate)

  def macro(self, macro_name):
    return Macro(macro_name)


def parse(text: str) -> config_parser.ConfigParser:
  """An iterator of gin's statements. Raises SyntaxError and tokenize.TokenError."""
  return config_parser.ConfigParser(text, _Markers())


@dataclass
class Reader:
  """Reads files and flags in order.

  Attributes:
    bindings: all of them, in order; of two with one key the later wins.
    imports: gin import statements; the modules are imported while reading, for they register configurables.
    problems: mistakes found on the way.
  """

  bindings: list[Binding] = field(default_factory=list)
  imports: list[str] = field(default_factory=list)
  problems: list[Problem] = field(default_factory=list)

  def file(self, name: str, asked: str = "", within: Sequence[Path] = ()) -> None:
    """Reads a file and its includes.

    Args:
      name: looked for in the working directory, the repository and `<prefix>/share/mtx`.
      asked: where it is named.
      within: the files that include it.
    """
    asked = asked or f"--gin_file={name}"
    path = next((found for root in (Path(), *ROOTS) if (found := (root / name).resolve()).is_file()), None)
    if path is None:
      self.problems.append((f"gin file {name!r} at {asked} is not there", did_you_mean(name, _gin_files())))
      return
    if path in within:
      self.problems.append((f"gin file {name!r} at {asked} includes itself", "remove one of the includes"))
      return
    try:
      text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
      self.problems.append((f"gin file {name!r} at {asked} can not be read", str(error)))
      return
    parser = None
    try:
      parser = parse(text)
      for statement in parser:
        self._statement(statement, f"{name}:{statement.location.line_num}", (*within, path))
    except (SyntaxError, tokenize.TokenError) as error:
      line = error.lineno if isinstance(error, SyntaxError) else None
      if line is None:  # the end of the file came inside a bracket or a quote: name the last line that was read
        line = parser.current_token.start[0] if parser else 1
      lines = text.splitlines()
      quoted = f": `{lines[line - 1].strip()}`" if 0 < line <= len(lines) else ""
      self.problems.append((f"syntax error at {name}:{line}{quoted}", _explain(error)))

  def _statement(self, statement: Any, place: str, within: Sequence[Path]) -> None:
    """A block, `name:`, needs nothing here: gin's parser gives its bindings one by one."""
    if isinstance(statement, config_parser.BindingStatement):
      self.bindings.append(Binding(statement.scope, statement.selector, statement.arg_name, statement.value, place))
    elif isinstance(statement, config_parser.IncludeStatement):
      self.file(statement.filename, place, within)
    elif isinstance(statement, config_parser.ImportStatement):
      self.imports.append(statement.format())
      try:
        _import(statement)
      except ImportError as error:
        self.problems.append((f"`{statement.format()}` at {place} fails", str(error)))

  def flag(self, text: str) -> None:
    """Reads `NAME=VALUE` or `--gin.NAME=VALUE`. A value that is no gin literal is taken as a plain string."""
    name, equals, value = text.removeprefix(FLAG).partition("=")
    place = FLAG + text.removeprefix(FLAG)
    try:
      if not equals:
        raise SyntaxError("a binding is written --gin.NAME=VALUE")
      (key,) = parse(f"{name} = 0\n")
    except (SyntaxError, ValueError, tokenize.TokenError) as error:
      self.problems.append((f"syntax error at {place}", _explain(error)))
      return
    if (bare := value.strip()) in ("true", "false", "none"):  # as a string it would count as true; in quotes it is one
      self.problems.append((f"syntax error at {place}", f"did you mean `{bare.title()}`?"))
      return
    try:
      (statement,) = parse(f"{name} = {value}\n")
      value = statement.value
    except (SyntaxError, ValueError, tokenize.TokenError) as error:
      if value.lstrip()[:1] in tuple("@%[({'\""):  # opens like gin, so it is a mistake in gin
        self.problems.append((f"syntax error at {place}", _explain(error)))
        return
    self.bindings.append(Binding(key.scope, key.selector, key.arg_name, value, place))


def _import(statement: config_parser.ImportStatement) -> None:
  try:
    importlib.import_module(statement.module)
  except ModuleNotFoundError:
    parent, _, name = statement.module.rpartition(".")
    if not (statement.is_from and hasattr(importlib.import_module(parent), name)):
      raise


def _gin_files() -> set[str]:
  """Names that an include may use."""
  roots = [root for root in (Path(), *ROOTS) if (root / "configs").is_dir()]
  return {path.relative_to(root).as_posix() for root in roots for path in (root / "configs").rglob("*.gin")}


def _explain(error: Exception) -> str:
  """The parser's message in one line."""
  message = str(error.args[0]) if error.args else ""
  if "Failed to parse token" in message:
    word = message.rsplit("Failed to parse token", 1)[1].strip()
    return f"{word} is no gin value: quote strings, write macros as %NAME and functions as @name"
  if "multi-line" in message or "EOF" in message or "unterminated" in message:
    return "a bracket or a quote is not closed"
  return message.splitlines()[0] if message else "this is no gin statement"
