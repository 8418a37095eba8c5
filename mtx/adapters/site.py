"""Where adapters hang: selection of projections by a regex over their paths, and injection."""

import re
from collections.abc import Callable

import gin
from flax import nnx

from mtx.errors import UserError
from mtx.models.layers import Dense


def sites(model: nnx.Module) -> dict[str, Dense]:
  """Every projection of a model by path, for example `encoder/layers/self_attention/q`."""
  return {"/".join(map(str, p)): m for p, m in nnx.iter_modules(model) if isinstance(m, Dense)}


@gin.configurable("adapter", denylist=["model", "tasks", "rngs"])
def inject(model: nnx.Module, tasks: int, rngs: nnx.Rngs, *, pattern: str = gin.REQUIRED, method=gin.REQUIRED):
  """Hangs `method(din, dout, axes, tasks=, rngs=)` on every projection whose whole path matches `pattern`.

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
  return hit


def _maker(method: Callable, dense: Dense, tasks: int) -> Callable[[nnx.Rngs], nnx.Module]:
  # A real closure over plain values: nnx transforms would map over default arguments and refuse captured modules.
  din, dout, axes = dense.din, dense.dout, dense.axes
  return lambda rngs: method(din, dout, axes, tasks=tasks, rngs=rngs)
