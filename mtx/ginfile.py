"""Gin files: found, read, linted before anything else starts, and bound; later, where a value was written.

Gin itself stops at the first mistake, and evaluates macros late: an undefined one surfaces minutes later as a missing
argument of `macro`. So all statements are read first with gin's own parser, every mistake is collected with its file
and line, and only then is anything bound.
"""

import copy
import difflib
import importlib.util
import inspect
import os
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gin
from gin import config as gin_config
from gin import config_parser

import mtx
from mtx.errors import UserError, did_you_mean

ROOTS = (Path(mtx.__file__).resolve().parent.parent, Path(sys.prefix) / "share" / "mtx")
FLAG = "--gin."


@dataclass(frozen=True)
class Reference:
  """`@scope/name` or `@scope/name()`; its repr is what gin reads."""

  name: str
  evaluate: bool

  def __repr__(self):
    return f"@{self.name}{'()' if self.evaluate else ''}"


@dataclass(frozen=True)
class Macro:
  """`%NAME`."""

  name: str

  def __repr__(self):
    return f"%{self.name}"


class _Markers(config_parser.ParserDelegate):
  """Lets gin's parser leave references and macros as they were written."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return Reference(scoped_configurable_name, evaluate)

  def macro(self, macro_name):
    return Macro(macro_name)


@dataclass(frozen=True)
class Binding:
  """One `scope/selector.parameter = value`, or a macro, which has no parameter. `place` is `file:line` or the flag."""

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
    """Equal for two bindings of the same parameter, however much of its module either names."""
    return (self.scope, _complete(self.selector) if self.parameter else self.selector, self.parameter)


_written: dict[tuple[str, str, str], Binding] = {}  # what the last `load` bound


def load(files: Sequence[str], bindings: Sequence[str] = ()) -> None:
  """Reads, lints and binds, in place of whatever was bound before. Later bindings win, those of `bindings` last.

  Args:
    files: gin files, looked for in the working directory, the repository and `<prefix>/share/mtx`, as are includes.
    bindings: `NAME=VALUE` or `--gin.NAME=VALUE`. A value that is no gin literal is taken as a plain string.

  Raises:
    UserError: names every mistake with its place: an unknown file, include, import, configurable, parameter, macro
      or reference, a required value that is missing, a macro that contains itself, bad syntax. Nothing is bound.
  """
  problems: list[tuple[str, str]] = []
  imports: list[str] = []
  statements: list[Binding] = []
  for file in files:
    statements += _read(file, f"--gin_file={file}", (), problems, imports)
  in_files = len(statements)
  for text in bindings:
    statements += _flag(text, problems)
  final = {statement.key: statement for statement in statements}
  problems += _unknown_names(statements)
  problems += _unknown_references(statements, final)
  problems += _idle_macros(statements, in_files)
  if not problems:  # otherwise what seems missing may be what was misspelt
    problems += _missing(final)
  if problems:
    (message, hint), *others = problems
    raise UserError(message, hint="\n  ".join([hint, *(f"{also}\n    {then}" for also, then in others)]))
  gin.clear_config()
  gin.parse_config([*imports, *(f"{statement.name} = {statement.value!r}" for statement in final.values())])
  _written.clear()
  _written.update(final)


def where(name: str) -> str:
  """`file:line` (or the flag) that decided binding or macro `name`, through macros; "its default" if none did."""
  for key, statement in _written.items():
    if name == statement.name or _key(name) == key:
      while isinstance(statement.value, Macro) and ("", statement.value.name, "") in _written:
        statement = _written["", statement.value.name, ""]
      return statement.place
  return "its default"


def macro(name: str) -> Any:
  """The value of macro `name`, references in it evaluated.

  Raises:
    UserError: no gin file and no flag defines it.
  """
  try:
    return copy.deepcopy(gin.query_parameter(f"%{name}"))
  except ValueError:
    defined = [statement.name for statement in _written.values() if not statement.parameter]
    raise UserError(f"macro `{name}` is not defined", hint=did_you_mean(name, defined)) from None


def operative() -> str:
  """What the run has used so far, defaults included, as a gin file that gives the same run."""
  return gin.operative_config_str(max_line_length=110)


def count_bindings(text: str) -> int:
  """Number of values that gin text binds, macros included."""
  parser = config_parser.ConfigParser(text, _Markers())
  return sum(isinstance(statement, config_parser.BindingStatement) for statement in parser)


def _read(
  file: str, asked: str, within: tuple[Path, ...], problems: list[tuple[str, str]], imports: list[str]
) -> Iterator[Binding]:
  """Yields the bindings of a file and its includes in order. `within`: the files that include it."""
  path = _find(file)
  if path is None:
    problems.append((f"gin file {file!r} at {asked} is not there", did_you_mean(file, _gin_files())))
    return
  if path in within:
    problems.append((f"include {file!r} at {asked} includes itself", "remove one of the includes"))
    return
  try:
    text = path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    problems.append((f"gin file {file!r} at {asked} can not be read", str(error)))
    return
  parser = None
  try:
    parser = config_parser.ConfigParser(text, _Markers())
    for statement in parser:
      place = f"{file}:{statement.location.line_num}"
      if isinstance(statement, config_parser.BindingStatement):
        yield Binding(statement.scope, statement.selector, statement.arg_name, statement.value, place)
      elif isinstance(statement, config_parser.IncludeStatement):
        yield from _read(statement.filename, place, (*within, path), problems, imports)
      elif isinstance(statement, config_parser.ImportStatement):
        if _importable(statement.module):
          imports.append(statement.format())
        else:
          problems.append((f"`{statement.format()}` at {place}: there is no such module", "is it installed?"))
      elif _complete(statement.selector) is None:  # a block, even if nothing is in it
        problems.append(_unknown_configurable(statement.selector, f"block `{statement.selector}:`", place))
  except (SyntaxError, tokenize.TokenError) as error:
    line = error.lineno if isinstance(error, SyntaxError) else None
    if (
      line is None
    ):  # the tokenizer met the end of the file inside a bracket or quote: name the last line it read
      line = parser.current_token.start[0] if parser else 1
    problems.append((f"syntax error at {file}:{line}{_quoted(text, line)}", _explain(error)))


def _flag(text: str, problems: list[tuple[str, str]]) -> Iterator[Binding]:
  """The binding of one `NAME=VALUE`."""
  name, equals, value = text.removeprefix(FLAG).partition("=")
  place = FLAG + text.removeprefix(FLAG)
  try:
    if not equals:
      raise SyntaxError("a binding is written --gin.NAME=VALUE")
    statements = _parse(f"{name.strip()} = 0\n")
    if len(statements) != 1 or not isinstance(statements[0], config_parser.BindingStatement):
      raise SyntaxError(f"{name!r} is no name of a macro or a parameter")
  except (SyntaxError, tokenize.TokenError) as error:
    problems.append((f"syntax error at {place}", _explain(error)))
    return
  try:
    (parsed,) = _parse(f"{name.strip()} = {value}\n")
    value = parsed.value
  except (SyntaxError, tokenize.TokenError, ValueError) as error:
    # `../data` is a plain string. What opens like gin is a mistake in gin.
    if value.lstrip()[:1] in tuple("@%[({'\""):
      problems.append((f"syntax error at {place}", _explain(error)))
      return
  yield Binding(statements[0].scope, statements[0].selector, statements[0].arg_name, value, place)


def _parse(text: str) -> list[Any]:
  return list(config_parser.ConfigParser(text, _Markers()))


def _find(file: str) -> Path | None:
  return next((path for root in (Path(), *ROOTS) if (path := (root / file).resolve()).is_file()), None)


def _gin_files() -> set[str]:
  """Names that an include may use."""
  roots = [root for root in (Path(), *ROOTS) if (root / "configs").is_dir()]
  return {path.relative_to(root).as_posix() for root in roots for path in (root / "configs").rglob("*.gin")}


def _importable(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except (ImportError, ValueError):  # `from module import name` need not name a module
    return "." in module and _importable(module.rpartition(".")[0])


def _quoted(text: str, line: int) -> str:
  lines = text.splitlines()
  return f": `{lines[line - 1].strip()}`" if 0 < line <= len(lines) and lines[line - 1].strip() else ""


def _explain(error: Exception) -> str:
  """One line of the parser's message."""
  message = str(error.args[0]) if error.args else ""
  if "Failed to parse token" in message:
    word = message.rsplit("Failed to parse token", 1)[1].strip()
    return f"{word} is no gin value: quote strings, write macros as %NAME and functions as @name"
  if "multi-line" in message or "EOF" in message or "never closed" in message:
    return "a bracket or a quote is not closed"
  return message.splitlines()[0] if message else "this is no gin statement"


def _complete(selector: str) -> str | None:
  """The full name of a configurable, None if there is not exactly one."""
  matching = gin_config._REGISTRY.matching_selectors(selector)
  return matching[0] if len(matching) == 1 else None


def _key(name: str) -> tuple[str, str, str] | None:
  scope, selector, parameter = config_parser.parse_binding_key(name)
  return (scope, _complete(selector) or selector, parameter)


def _configurables() -> list[str]:
  """Shortest names, gin's own (macro, constant, singleton) left out."""
  registry = gin_config._REGISTRY
  return [registry.minimal_selector(full) for full, _ in registry.items() if not full.startswith("gin.")]


def _function(selector: str) -> tuple[Any, inspect.FullArgSpec]:
  """The configurable and the signature of its function or constructor."""
  configurable = gin_config._REGISTRY.get_match(selector)
  function = configurable.wrapped
  if inspect.isclass(function):
    function = gin_config._find_class_construction_fn(function)
  return configurable, gin_config._get_cached_arg_spec(inspect.unwrap(function))


def _parameters(selector: str) -> list[str]:
  """What gin may bind; `**` among them when any name is taken."""
  configurable, spec = _function(selector)
  names = [name for name in [*spec.args, *spec.kwonlyargs] if name != "self"]
  names = [name for name in names if not configurable.allowlist or name in configurable.allowlist]
  return [n for n in names if n not in (configurable.denylist or ())] + ["**"] * bool(spec.varkw)


def _unknown_configurable(selector: str, what: str, place: str) -> tuple[str, str]:
  several = gin_config._REGISTRY.matching_selectors(selector)
  if several:
    return f"{what} at {place} names more than one configurable", f"they are {', '.join(sorted(several))}"
  return f"{what} at {place} names no configurable", did_you_mean(selector, _configurables())


def _unknown_names(statements: Iterable[Binding]) -> Iterator[tuple[str, str]]:
  """Bindings of configurables or parameters that do not exist."""
  for statement in statements:
    if not statement.parameter:
      continue
    what = f"binding `{statement.name}`"
    if _complete(statement.selector) is None:
      yield _unknown_configurable(statement.selector, what, statement.place)
      continue
    names = _parameters(statement.selector)
    configurable, spec = _function(statement.selector)
    if statement.parameter in names:
      continue
    if statement.parameter in (*spec.args, *spec.kwonlyargs):
      yield f"{what} at {statement.place} can not be bound", "mtx sets it; " + did_you_mean("", names)
    elif "**" not in names:
      hint = did_you_mean(statement.parameter, names)
      if hint.startswith("did you mean"):
        hint = hint.replace("`", f"`{statement.selector}.", 1)
      yield f"{what} at {statement.place} matches no parameter of `{statement.selector}`", hint


def _values(value: Any) -> Iterator[Reference | Macro]:
  """The references and macros in a value."""
  if isinstance(value, (Reference, Macro)):
    yield value
  elif isinstance(value, Mapping):
    for pair in value.items():
      yield from _values(pair)
  elif isinstance(value, (list, tuple)):
    for item in value:
      yield from _values(item)


def _constant(name: str) -> bool:
  return len(gin_config._CONSTANTS.matching_selectors(name)) == 1


def _required(value: Any) -> bool:
  return isinstance(value, Macro) and gin_config._CONSTANTS.matching_selectors(value.name) == ["gin.REQUIRED"]


def _unknown_references(
  statements: Iterable[Binding], final: Mapping[tuple[str, str, str], Binding]
) -> Iterator[tuple[str, str]]:
  """`@name` and `%NAME` that nothing defines, in the values that count, and macros that contain themselves."""
  macros = {statement.name: statement for statement in final.values() if not statement.parameter}
  for statement in final.values():
    for item in _values(statement.value):
      if isinstance(item, Reference):
        selector = item.name.rsplit("/", 1)[-1]
        if _complete(selector) is None:
          yield _unknown_configurable(selector, f"reference `{item}`", statement.place)
      elif item.name not in macros and not _constant(item.name):
        yield f"macro `{item}` at {statement.place} is not defined", did_you_mean(item.name, macros)
  for name, statement in macros.items():
    reached, todo = set(), [statement]
    while todo:
      inside = {item.name for item in _values(todo.pop().value) if isinstance(item, Macro)} - reached
      reached |= inside
      todo += [macros[other] for other in inside if other in macros]
    if name in reached:
      yield f"macro `{name}` at {statement.place} contains itself", "give it a value"


def _idle_macros(statements: Sequence[Binding], in_files: int) -> Iterator[tuple[str, str]]:
  """Macros that change nothing: on the command line any, in a file those that are nearly the name of another."""
  used = {
    item.name for statement in statements for item in _values(statement.value) if isinstance(item, Macro)
  }
  in_file = {statement.name for statement in statements[:in_files] if not statement.parameter}
  for index, statement in enumerate(statements):
    if statement.parameter or statement.name in used:
      continue
    what = f"macro `{statement.name}` at {statement.place} is used nowhere"
    if index >= in_files and statement.name not in in_file:
      yield what, did_you_mean(statement.name, used | in_file)
    elif near := difflib.get_close_matches(statement.name, used, cutoff=0.8):
      yield what, did_you_mean(statement.name, near)


def _missing(final: Mapping[tuple[str, str, str], Binding]) -> Iterator[tuple[str, str]]:
  """Values that are required and not given: written as `%gin.REQUIRED`, or the default of what the config uses."""
  for statement in final.values():
    if _required(statement.value):
      yield (
        f"{'binding' if statement.parameter else 'macro'} `{statement.name}` at {statement.place} needs a value",
        f"give it one in a gin file or with {FLAG}{statement.name}=VALUE",
      )
  bound: dict[tuple[str, str], set[str]] = {}  # (configurable, parameter) -> scopes
  used: dict[tuple[str, str, bool], str] = {}  # (configurable, scope, called by reference) -> place
  for (scope, selector, parameter), statement in final.items():
    if parameter:
      bound.setdefault((selector, parameter), set()).add(scope)
      used.setdefault((selector, scope, False), statement.place)
    for item in _values(statement.value):
      if isinstance(item, Reference):
        scope, _, name = item.name.rpartition("/")
        used.setdefault((_complete(name) or name, scope, True), statement.place)
  told = set()
  for (selector, scope, referenced), place in used.items():
    configurable, _ = _function(selector)
    for parameter, default in gin_config._get_kwarg_defaults(configurable.wrapped).items():
      scopes = bound.get((selector, parameter), set())
      # A reference is called in its own scope, which inherits; a binding alone does not say where it is called.
      given = any(_inherits(scope, other) for other in scopes) if referenced else bool(scopes)
      name = f"{configurable.name}.{parameter}"
      if default is gin.REQUIRED and not given and name not in told:
        told.add(name)
        full = f"{scope}/{name}" if referenced and scope else name
        yield (
          f"`{configurable.name}` at {place} needs `{full}`",
          f"bind it in a gin file or with {FLAG}{full}=VALUE",
        )


def _inherits(scope: str, outer: str) -> bool:
  return not outer or scope == outer or scope.startswith(outer + "/")
