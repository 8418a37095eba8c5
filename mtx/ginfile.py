"""Gin files: linted before anything else starts, then bound; later, where a value was written.

Gin itself stops at the first mistake and evaluates macros late: an undefined one surfaces minutes later as a
missing argument of `macro`. So all statements are read first, every mistake is collected with its file and
line, and only then is anything bound.
"""

import copy
import difflib
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import gin
from gin import config as gin_config
from gin import config_parser

from mtx.errors import UserError, did_you_mean
from mtx.gintext import FLAG, Binding, Macro, Problem, Reader, Reference, complete, marks, parse
from mtx.gintypes import misfits

DEFAULT = "its default"  # where a value comes from that nobody wrote
_written: dict[tuple[str, str, str], Binding] = {}  # what the last `load` bound, by `Binding.key`


def load(
  files: Sequence[str], bindings: Sequence[str] = (), called: Sequence[str] = (), idle: Sequence[str] = ()
) -> None:
  """Reads, lints and binds, in place of whatever was bound before. The last binding of a parameter wins.

  Args:
    files: gin files. They and their includes are looked for in the working directory, the repository and
      `<prefix>/share/mtx`.
    bindings: after the files, each `NAME=VALUE` or `--gin.NAME=VALUE`. A value that is no gin literal is
      taken as a plain string.
    called: configurables that run whatever the files say, so that their required values are asked for.
    idle: configurables that do not run though the files bind them, so that their required values may be missing.

  Raises:
    UserError: every mistake with its place: an unknown file, include, import, configurable, parameter, macro
      or reference, a missing required value, a value that the parameter's annotation forbids, a macro that contains
      itself, bad syntax. Nothing is bound then.
  """
  reader = Reader()
  for file in files:
    reader.file(file)
  in_files = len(reader.bindings)
  for text in bindings:
    reader.flag(text)
  final = {binding.key: binding for binding in reader.bindings}
  problems = [
    *reader.problems,
    *_unknown_names(reader.bindings),
    *_unknown_marks(final.values()),
    *_idle_macros(reader.bindings, in_files),
  ]
  if not problems:  # else what seems to be missing may be what was misspelt
    problems = [
      *misfits(final.values()),
      *_required_in_files(final.values()),
      *_required_by_functions(final, called, idle),
    ]
  if problems:
    (message, hint), *others = problems
    raise UserError(message, hint="\n  ".join([hint, *(f"{also}\n    {then}" for also, then in others)]))
  gin.clear_config()
  gin.parse_config([*reader.imports, *(f"{binding.name} = {binding.value!r}" for binding in final.values())])
  _written.clear()
  _written.update(final)


def where(name: str) -> str:
  """`file:line` (or the flag) that gave a binding or macro its value, macros followed; else "its default"."""
  macros = {binding.name: binding for binding in _written.values() if not binding.parameter}
  scope, selector, parameter = config_parser.parse_binding_key(name)
  wanted = Binding(scope, selector, parameter, None, "").key
  binding = macros.get(name) or _written.get(wanted)
  while binding and isinstance(binding.value, Macro) and binding.value.name in macros:
    binding = macros[binding.value.name]
  return binding.place if binding else DEFAULT


def macro(name: str) -> Any:
  """The value of macro `name`, references in it evaluated.

  Raises:
    UserError: no gin file and no flag defines it.
  """
  try:
    return copy.deepcopy(gin.query_parameter(f"%{name}"))
  except ValueError:
    defined = [binding.name for binding in _written.values() if not binding.parameter]
    raise UserError(f"macro `{name}` is not defined", hint=did_you_mean(name, defined)) from None


def value(name: str, default: Any) -> Any:
  """What the config binds a parameter to, macros and references in it evaluated; `default` where it binds nothing."""
  try:
    return copy.deepcopy(gin.query_parameter(name))
  except ValueError:
    return default


def operative() -> str:
  """What the run has used so far, defaults included, as a gin file that gives the same run."""
  return gin.operative_config_str(max_line_length=110)


def count_bindings(text: str) -> int:
  """Number of values that gin text binds, macros included."""
  return sum(isinstance(statement, config_parser.BindingStatement) for statement in parse(text))


def _signature(selector: str) -> tuple[Any, inspect.FullArgSpec]:
  """Gin's entry for a configurable, and the signature of its function or constructor."""
  configurable = gin_config._REGISTRY.get_match(selector)
  function = configurable.wrapped
  if inspect.isclass(function):
    function = gin_config._find_class_construction_fn(function)
  return configurable, inspect.getfullargspec(inspect.unwrap(function))


def _unknown_configurable(selector: str, what: str, place: str) -> Problem:
  registry = gin_config._REGISTRY
  if several := registry.matching_selectors(selector):
    return f"{what} at {place} names more than one configurable", did_you_mean(selector, several)
  known = [registry.minimal_selector(full) for full, _ in registry.items() if not full.startswith("gin.")]
  return f"{what} at {place} names no configurable", did_you_mean(selector, known)


def _unknown_names(bindings: Iterable[Binding]) -> Iterator[Problem]:
  """Configurables and parameters that do not exist, or that gin may not bind."""
  told = set()
  for binding in bindings:
    if not binding.parameter or binding.selector in told:
      continue
    what, selector = f"binding `{binding.name}`", binding.selector
    if complete(selector) is None:
      told.add(selector)  # once, not for each of its parameters
      yield _unknown_configurable(selector, what, binding.place)
      continue
    configurable, spec = _signature(selector)
    names = [name for name in (*spec.args, *spec.kwonlyargs) if name != "self"]
    allowed = [
      name for name in names if name in (configurable.allowlist or names) and name not in (configurable.denylist or ())
    ]
    if binding.parameter in allowed:
      continue
    if binding.parameter in names:
      yield f"{what} at {binding.place} is not for gin to set", did_you_mean("", allowed)
    elif not spec.varkw:
      hint = re.sub(r"`(\w+)`", rf"`{selector}.\1`", did_you_mean(binding.parameter, allowed))
      yield f"{what} at {binding.place} matches no parameter of `{selector}`", hint


def _unknown_marks(final: Iterable[Binding]) -> Iterator[Problem]:
  """`@name` and `%NAME` that nothing defines, in values that count, and macros that contain themselves."""
  final = list(final)
  macros = {binding.name: binding for binding in final if not binding.parameter}
  for binding in final:
    for mark in marks(binding.value):
      if isinstance(mark, Reference):
        if complete(mark.selector) is None:
          yield _unknown_configurable(mark.selector, f"reference `{mark}`", binding.place)
      elif mark.name not in macros and len(gin_config._CONSTANTS.matching_selectors(mark.name)) != 1:
        yield f"macro `{mark}` at {binding.place} is not defined", did_you_mean(mark.name, macros)
  told: set[str] = set()
  for name, binding in macros.items():
    reached: set[str] = set()
    todo = [binding]
    while todo:
      inside = {mark.name for mark in marks(todo.pop().value) if isinstance(mark, Macro)} - reached
      reached |= inside
      todo += [macros[other] for other in inside & set(macros)]
    if name in reached - told:
      told |= reached
      yield f"macro `{name}` at {binding.place} contains itself", "give it a value"


def _idle_macros(bindings: Sequence[Binding], in_files: int) -> Iterator[Problem]:
  """Macros that change nothing: any new one among the flags, in files those nearly named like another."""
  used = {mark.name for binding in bindings for mark in marks(binding.value) if isinstance(mark, Macro)}
  filed = {binding.name for binding in bindings[:in_files] if not binding.parameter}
  for index, binding in enumerate(bindings):
    if binding.parameter or binding.name in used:
      continue
    what = f"macro `{binding.name}` at {binding.place} is used nowhere"
    if index >= in_files and binding.name not in filed:
      yield what, did_you_mean(binding.name, used | filed)
    elif near := difflib.get_close_matches(binding.name, used & filed, cutoff=0.8):
      yield what, did_you_mean(binding.name, near)


def _required_in_files(final: Iterable[Binding]) -> Iterator[Problem]:
  """Values that are written as `%gin.REQUIRED`."""
  for binding in final:
    value = binding.value
    if isinstance(value, Macro) and gin_config._CONSTANTS.matching_selectors(value.name) == ["gin.REQUIRED"]:
      kind = "binding" if binding.parameter else "macro"
      yield (
        f"{kind} `{binding.name}` at {binding.place} needs a value",
        f"give it one in a gin file or with {FLAG}{binding.name}=VALUE",
      )


def _required_by_functions(
  final: Mapping[tuple[str, str, str], Binding], called: Sequence[str], idle: Sequence[str]
) -> Iterator[Problem]:
  """Parameters whose default is `gin.REQUIRED`, of the configurables that the config uses."""
  scopes: dict[tuple[str, str], set[str]] = {}  # (configurable, parameter) -> scopes that bind it
  # (configurable, scope) -> place. A binding does not say where its function is called: scope None.
  used: dict[tuple[str, str | None], str] = {(name, ""): "" for name in called}
  for (scope, selector, parameter), binding in final.items():
    if parameter:
      scopes.setdefault((selector, parameter), set()).add(scope)
      used.setdefault((selector, None), binding.place)
    for mark in marks(binding.value):
      if isinstance(mark, Reference):
        used.setdefault((complete(mark.selector) or mark.selector, mark.scope), binding.place)
  told = set()
  for (selector, called_in), place in used.items():
    configurable, spec = _signature(selector)
    if configurable.name in idle:
      continue
    defaults = dict(zip(reversed(spec.args), reversed(spec.defaults or ()), strict=False))
    for parameter, default in (defaults | (spec.kwonlydefaults or {})).items():
      bound = scopes.get((complete(selector) or selector, parameter), set())
      inherited = [s for s in bound if not s or f"{called_in}/".startswith(f"{s}/")]
      given = bound if called_in is None else inherited
      name = f"{configurable.name}.{parameter}"
      if default is gin.REQUIRED and not given and name not in told:
        told.add(name)
        name = f"{called_in}/{name}" if called_in else name
        user = f"`{configurable.name}` at {place}" if place else f"`{configurable.name}`"
        yield f"{user} needs `{name}`", f"bind it in a gin file or with {FLAG}{name}=VALUE"
