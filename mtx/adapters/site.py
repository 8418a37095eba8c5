"""Where adapters hang: selection of projections by a regex over their paths, and injection."""

import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import gin
from flax import nnx

from mtx.errors import UserError, did_you_mean
from mtx.models.layers import Dense


@dataclass(frozen=True)
class Injection:
  """What was hung on a model, in words that build it again without gin.

  Attributes:
    pattern: of sites. tasks: that routers tell apart.
    method: gin's name of the adapter class; None where gin does not know it.
    settings: all that the class was called with beside sizes and randomness, defaults included.
  """

  pattern: str
  tasks: int
  method: str | None
  settings: Mapping[str, Any]

  def inject(self, model: nnx.Module, rngs: nnx.Rngs, tasks: int | None = None) -> None:
    """Hangs it on a model, for as many tasks as before, or for `tasks`."""
    method = methods().get(self.method or "")
    if method is None:
      raise UserError(
        f"adapter method {self.method!r} is not known.",
        hint="import the module that defines it: " + did_you_mean(self.method or "", methods()),
      )
    method = partial(method, **self.settings)
    inject(model, self.tasks if tasks is None else tasks, rngs, pattern=self.pattern, method=method)


def methods() -> dict[str, Callable]:
  """Adapter classes by gin's name: those of this package, and any other that was imported."""
  for file in sorted(Path(__file__).parent.glob("*.py")):
    import_module(f"mtx.adapters.{file.stem}")
  known = gin.config._REGISTRY.items()
  return {each.name: each.wrapper for _, each in known if inspect.isclass(each.wrapped) and _is_method(each.wrapped)}


def _is_method(cls: type) -> bool:
  return issubclass(cls, nnx.Module) and {"din", "dout", "tasks"} <= set(inspect.signature(cls.__init__).parameters)


def injections(model: nnx.Module) -> tuple[Injection, ...]:
  """What hangs on a model, oldest first."""
  return tuple(Injection(**entry) for entry in json.loads(getattr(model, "injections", "[]")))


def sites(model: nnx.Module) -> dict[str, Dense]:
  """Every projection of a model by path, for example `encoder/layers/self_attention/q`."""
  return {"/".join(map(str, p)): m for p, m in nnx.iter_modules(model) if isinstance(m, Dense)}


@gin.configurable("adapter", denylist=["model", "tasks", "rngs"])
def inject(model: nnx.Module, tasks: int, rngs: nnx.Rngs, *, pattern: str = gin.REQUIRED, method=gin.REQUIRED):
  """Hangs `method(din, dout, axes, tasks=, rngs=)` on every projection whose whole path matches `pattern`.

  The model keeps a record of it in `injections`, from which its checkpoint is opened again.

  Args:
    model: changed in place; sites inside a stack get a stacked adapter.
    tasks: number of tasks that routers distinguish.
    pattern: regular expression over site paths (`sites`).
    method: an adapter class, bound in gin (`adapter.method = @MHR`).

  Returns:
    The paths of the sites that were hit.

  Raises:
    UserError: the pattern is no regular expression or selects nothing; lists the sites.
  """
  found = sites(model)
  try:
    hit = [s for s in found if re.fullmatch(pattern, s)]
  except re.error as e:
    raise UserError(f"binding `adapter.pattern`: {pattern!r} is no regular expression: {e}.") from e
  if not hit:
    raise UserError(
      f"binding `adapter.pattern`: {pattern!r} selects no projection.", hint="the projections are: " + " ".join(found)
    )
  for name in hit:
    dense = found[name]
    make = _maker(method, dense, tasks)
    layers = dense.kernel.shape[0] if dense.kernel.ndim == 3 else None
    dense.adapter = make(rngs) if layers is None else nnx.vmap(make, in_axes=0, out_axes=0)(rngs.split(layers))
  made = Injection(pattern, tasks, *_described(method))
  # Text, since what is static about a model has to be hashable.
  model.injections = json.dumps([asdict(each) for each in (*injections(model), made)])  # type: ignore[attr-defined]
  return hit


def _maker(method: Callable, dense: Dense, tasks: int) -> Callable[[nnx.Rngs], nnx.Module]:
  # A real closure over plain values: nnx transforms would map over default arguments and refuse captured modules.
  din, dout, axes = dense.din, dense.dout, dense.axes
  return lambda rngs: method(din, dout, axes, tasks=tasks, rngs=rngs)


def _described(method: Callable) -> tuple[str | None, dict[str, Any]]:
  """Gin's name of a method and its settings; (None, {}) where they are not known or can not be written down."""
  given: dict[str, Any] = {}
  while isinstance(method, partial):
    given, method = {**method.keywords, **given}, method.func
  try:
    name, bound = gin.get_configurable(method).__name__, gin.get_bindings(method)
  except ValueError:  # a class that gin made of a reference with a scope: the binding says which
    reference = gin.get_bindings("adapter", resolve_references=False).get("method")
    same = isinstance(reference, gin.config.ConfigurableReference) and inspect.isclass(method)
    if not same or not issubclass(method, reference.configurable.wrapped):  # type: ignore[arg-type]
      return None, {}
    name, bound = reference.configurable.name, gin.get_bindings(reference.scoped_selector)
  parameters = inspect.signature(methods()[name].__init__).parameters
  defaults = {key: each.default for key, each in parameters.items() if each.default is not each.empty}
  try:
    return name, json.loads(json.dumps({**defaults, **bound, **given}))
  except TypeError:  # a function among them
    return None, {}
