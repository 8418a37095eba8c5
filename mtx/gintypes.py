"""Values that a gin file binds against the annotations of what they are bound to.

Only what an annotation clearly forbids counts: a string for a number, `@f()` for a function. What a called reference
gives is not known before it is called, and an annotation that is not plain (a class, a type variable, none at all)
forbids nothing.
"""

import contextlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gin import config as gin_config

from mtx.gintext import FLAG, Binding, Macro, Problem, Reference

# In words.
_SCALARS = {bool: "True or False", int: "a whole number", float: "a number", str: "a string", type(None): "None"}


def misfits(final: Iterable[Binding]) -> Iterator[Problem]:
  """Bindings whose value the parameter's annotation forbids. Names must have been linted before."""
  final = list(final)
  macros = {binding.name: binding for binding in final if not binding.parameter}
  for binding in final:
    if not binding.parameter:
      continue
    annotation = _annotations(binding.selector).get(binding.parameter, Any)
    wrong = _wrong(binding.value, annotation, macros)
    if wrong is None:
      continue
    value, wanted = wrong
    written = f"`{_short(binding.value)}`"
    if (given := _resolved(binding.value, macros)) is not binding.value:
      written += f", `{_short(given)}` at {_last(binding, macros).place},"
    if value is not given:
      written += f" with `{_short(value)}` in it"
    yield f"binding `{binding.name}` at {binding.place} is {written.rstrip(',')}", _hint(value, wanted, binding)


def _annotations(selector: str) -> Mapping[str, Any]:
  """Of a configurable's function or constructor; a default of None allows None."""
  wrapped = gin_config._REGISTRY.get_match(selector).wrapped
  function = gin_config._find_class_construction_fn(wrapped) if inspect.isclass(wrapped) else wrapped
  try:
    found = typing.get_type_hints(inspect.unwrap(function))
    parameters = inspect.signature(inspect.unwrap(function)).parameters.values()
  except (TypeError, ValueError, NameError, AttributeError):  # a name for type checkers alone, a function in C
    return {}
  for each in parameters:
    if each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL):
      found.pop(each.name, None)
    elif each.default is None and each.name in found:
      found[each.name] = found[each.name] | None
  return found


def _resolved(value: Any, macros: Mapping[str, Binding]) -> Any:
  """What a macro stands for in the end; a constant of gin stays."""
  while isinstance(value, Macro) and value.name in macros:
    value = macros[value.name].value
  return value


def _last(binding: Binding, macros: Mapping[str, Binding]) -> Binding:
  """The macro that holds the value that a binding has by way of macros."""
  while isinstance(binding.value, Macro) and binding.value.name in macros:
    binding = macros[binding.value.name]
  return binding


def _wrong(value: Any, annotation: Any, macros: Mapping[str, Binding]) -> tuple[Any, Any] | None:
  """(the value or the part of it that is forbidden, the annotation that forbids it), None where all may be right."""
  value = _resolved(value, macros)
  kind = typing.get_origin(annotation) or annotation
  if kind in (typing.Union, types.UnionType):
    found = [_wrong(value, each, macros) for each in typing.get_args(annotation)]
    if None in found:
      return None
    inside = [wrong for wrong in found if wrong and wrong[0] is not value]  # the container fits, a part of it does not
    return inside[0] if len(inside) == 1 else (value, annotation)
  if isinstance(value, Macro) or not _plain(kind):
    return None
  if isinstance(value, Reference):
    return None if _may_give(value, kind) else (value, annotation)
  if not _is(value, kind):
    return value, annotation
  parts: list[tuple[Any, Any]] = []
  given = typing.get_args(annotation)
  if isinstance(value, Mapping) and len(given) == 2:
    parts = [pair for key, entry in value.items() for pair in ((key, given[0]), (entry, given[1]))]
  elif kind is tuple and given and given[-1] is not ...:
    if len(value) != len(given):
      return value, annotation
    parts = list(zip(value, given, strict=True))
  elif isinstance(value, (list, tuple)) and given:
    parts = [(item, given[0]) for item in value]
  elif isinstance(value, str) and kind is not str and given and _wrong("", given[0], macros):
    return value, annotation  # a string is a sequence, of strings alone
  return next((wrong for part, wanted in parts if (wrong := _wrong(part, wanted, macros))), None)


def _plain(kind: Any) -> bool:
  return kind in (*_SCALARS, Path, list, tuple, dict, Sequence, Mapping, Callable)


def _is(value: Any, kind: Any) -> bool:
  """Whether a literal is of a plain kind."""
  if kind is type(None):
    return value is None
  if kind is bool:
    return isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))
  if kind is float:
    return isinstance(value, (int, float))
  if kind is Path:
    return isinstance(value, str)
  if kind in (list, tuple):  # written either way
    return isinstance(value, (list, tuple))
  return isinstance(value, kind)


def _may_give(reference: Reference, kind: Any) -> bool:
  """Whether a function, or what it returns, may be of a plain kind."""
  if not reference.evaluate:
    return kind is Callable  # a function is no number, string, list, mapping or None
  if kind not in (Callable, type(None)):
    return True  # what declares another type may still act as one, as arrays do for lists
  wrapped = gin_config._REGISTRY.get_match(reference.selector).wrapped
  returned = wrapped if inspect.isclass(wrapped) else _annotations(reference.selector).get("return", Any)
  union = typing.get_origin(returned) in (typing.Union, types.UnionType)
  choices = [typing.get_origin(each) or each for each in (typing.get_args(returned) if union else (returned,))]
  fits = _callable if kind is Callable else _none
  return any(not inspect.isclass(each) or each in (object, Any) or fits(each) for each in choices)


def _none(kind: type) -> bool:
  return kind is type(None)


def _callable(kind: type) -> bool:
  return any("__call__" in vars(each) for each in kind.__mro__)


def _short(value: Any, most: int = 60) -> str:
  text = repr(value)
  return text if len(text) <= most else f"{text[: most - 3]}..."


def _named(annotation: Any) -> str:
  """An annotation in words."""
  kind, given = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
  if kind in (typing.Union, types.UnionType):
    return " or ".join(dict.fromkeys(map(_named, given)))
  if kind in (list, tuple, Sequence):
    inside = [_named(each) for each in given if each not in (..., Any)]
    if kind is tuple and inside and given[-1] is not ...:
      return f"({', '.join(inside)})"
    return f"a list, each item {inside[0]}" if inside and given[0] in _SCALARS else "a list"
  if kind in (dict, Mapping):
    return "a mapping, {'name': value}"
  if kind is Callable:
    return "a function, `@name`"
  return "a path" if kind is Path else _SCALARS.get(kind, str(kind))


def _hint(value: Any, annotation: Any, binding: Binding) -> str:
  """What is expected, and how to write what was probably meant."""
  union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
  kinds = [typing.get_origin(a) or a for a in (typing.get_args(annotation) if union else (annotation,))]
  hint = f"expected {_named(annotation)}"
  quote = '"' if binding.place.startswith(FLAG) else ""  # a shell takes these away
  if isinstance(value, Reference):
    if Callable in kinds and value.evaluate:
      return f"{hint}: `@{value.name}` without ()"
    if {list, tuple, Sequence} & set(kinds):
      return f"{hint}: `[{value}]`"
    return f"{hint}: `@{value.name}()` calls it"
  if isinstance(value, str) and Callable in kinds and gin_config._REGISTRY.matching_selectors(value):
    return f"{hint}: `@{value}`"
  if isinstance(value, str) and {bool, int, float} & set(kinds):
    if bool in kinds and value in ("True", "False"):
      return f"{hint}: `{value}` without quotes"
    meant = _number(value)
    if meant is not None and any(_is(meant, kind) for kind in {int, float} & set(kinds)):
      return f"{hint}: `{value}` without quotes"
  if str in kinds and isinstance(value, (int, float)):
    return f"{hint}: `{quote}'{value}'{quote}`"
  if int in kinds and isinstance(value, float) and value.is_integer():
    return f"{hint}: `{int(value)}`"
  return hint


def _number(text: str) -> int | float | None:
  try:
    return int(text)
  except ValueError:
    with contextlib.suppress(ValueError):
      return float(text)
  return None
