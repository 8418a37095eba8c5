"""What a recipe promises, written as it is said: `mhr >= poly`, `mhr.heldout - lora.heldout >= 2`.

A criterion compares two linear expressions over `arm` or `arm.measure`; a chain `mhr >= poly >= lora` is two criteria.
It holds of the mean over seeds. With ` in every seed` after it, it has to hold in each; with ` surely`, in the whole
interval of the difference.
"""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mtx.errors import UserError, did_you_mean

COMPARISONS: dict[type, tuple[str, Callable[[float, float], bool]]] = {
  ast.GtE: (">=", operator.ge),
  ast.LtE: ("<=", operator.le),
  ast.Gt: (">", operator.gt),
  ast.Lt: ("<", operator.lt),
}
ENDINGS = {" in every seed": "seeds", " surely": "interval"}
FORM = "for example `mhr >= poly`, `mhr <= 0.5 * poly in every seed`, `mhr.heldout - lora.heldout >= 2 surely`"


class Name(NamedTuple):
  """A measure of an arm."""

  arm: str
  measure: str

  def __str__(self) -> str:
    return f"{self.arm}.{self.measure}"


class Linear(NamedTuple):
  """A sum of measures times factors, and a constant."""

  factors: tuple[tuple[Name, float], ...]
  constant: float

  def __call__(self, values: Mapping[Name, Any]) -> Any:
    """The sum over numbers or arrays."""
    return self.constant + sum(factor * values[name] for name, factor in self.factors)


@dataclass(frozen=True)
class Criterion:
  """Attributes:
  text: as it is written, or the one comparison of a chain.
  sign: of COMPARISONS.
  asks: "" of the mean, "seeds" of every seed, "interval" of the whole interval.
  """

  text: str
  left: Linear
  right: Linear
  sign: str
  asks: str

  def __str__(self) -> str:
    return self.text

  @property
  def names(self) -> tuple[Name, ...]:
    """All that it is about."""
    return tuple(dict.fromkeys(name for side in (self.left, self.right) for name, _ in side.factors))

  def holds(self, difference: float) -> bool:
    """Whether left - right is on the right side of 0."""
    return next(compare for sign, compare in COMPARISONS.values() if sign == self.sign)(difference, 0.0)


def criteria(text: str, arms: Sequence[str], measures: Sequence[str]) -> list[Criterion]:
  """Reads what a recipe promises; an arm alone means the first of `measures`.

  Raises:
    UserError: names `text` and what in it can not be read, with the nearest arm or measure.
  """
  formula, asks = text.strip(), ""
  for ending, kind in ENDINGS.items():
    if formula.endswith(ending):
      formula, asks = formula.removesuffix(ending), kind
  try:
    body = ast.parse(formula, mode="eval").body
  except (SyntaxError, ValueError) as error:  # null bytes are a ValueError
    raise _wrong(text, "it can not be read", f"{FORM}; endings: {', '.join(e.strip() for e in ENDINGS)}") from error
  if not isinstance(body, ast.Compare):
    raise _wrong(text, "it compares nothing", FORM)
  sides = [_linear(node, text, arms, measures) for node in (body.left, *body.comparators)]
  written = [ast.unparse(node) for node in (body.left, *body.comparators)]
  made = []
  for i, operation in enumerate(body.ops):
    if type(operation) not in COMPARISONS:
      raise _wrong(text, "it compares otherwise", f"comparisons: {' '.join(s for s, _ in COMPARISONS.values())}")
    sign, (left, right) = COMPARISONS[type(operation)][0], sides[i : i + 2]
    if not (left.factors or right.factors):
      raise _wrong(text, "it is about no arm", did_you_mean("", arms))
    ending = next((e for e, kind in ENDINGS.items() if kind == asks), "")
    made.append(Criterion(f"{written[i]} {sign} {written[i + 1]}{ending}", left, right, sign, asks))
  return made


def _linear(node: ast.AST, text: str, arms: Sequence[str], measures: Sequence[str]) -> Linear:
  """One side; whatever is not a number, a name, a sum, or a product with a number is refused."""
  of = lambda each: _linear(each, text, arms, measures)
  if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
    return Linear((), float(node.value))
  if isinstance(node, ast.Name):
    return Linear(((Name(_known(node.id, arms, "arm", text), measures[0]), 1.0),), 0.0)
  if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
    name = Name(_known(node.value.id, arms, "arm", text), _known(node.attr, measures, "measure", text))
    return Linear(((name, 1.0),), 0.0)
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
    return _times(of(node.operand), -1.0 if isinstance(node.op, ast.USub) else 1.0)
  if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
    left, right = of(node.left), _times(of(node.right), 1.0 if isinstance(node.op, ast.Add) else -1.0)
    factors = dict(left.factors)
    for name, factor in right.factors:
      factors[name] = factors.get(name, 0.0) + factor
    return Linear(tuple(factors.items()), left.constant + right.constant)
  if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.Div)):
    left, right = of(node.left), of(node.right)
    if isinstance(node.op, ast.Mult) and not left.factors:
      left, right = right, left
    if right.factors:
      hint = "write `a <= 0.5 * b`, not `a / b <= 0.5`: an interval is of a difference"
      raise _wrong(text, f"`{ast.unparse(node)}` is not linear", hint)
    if isinstance(node.op, ast.Div) and not right.constant:
      raise _wrong(text, f"`{ast.unparse(node)}` divides by 0", FORM)
    return _times(left, right.constant if isinstance(node.op, ast.Mult) else 1.0 / right.constant)
  raise _wrong(text, f"`{ast.unparse(node)}` is no arm, number, sum or product", FORM)


def _times(side: Linear, factor: float) -> Linear:
  return Linear(tuple((name, value * factor) for name, value in side.factors), side.constant * factor)


def _known(name: str, choices: Sequence[str], what: str, text: str) -> str:
  if name not in choices:
    raise _wrong(text, f"{name!r} is no {what}", did_you_mean(name, choices))
  return name


def _wrong(text: str, why: str, hint: str) -> UserError:
  return UserError(f"criterion `{text}`: {why}.", hint=hint)
