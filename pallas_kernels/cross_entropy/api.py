"""The one cross-entropy call of all objectives, and the choice of a backend.

A backend is a module with

  linear_cross_entropy(x, head, targets, weights, counted, loss, split) -> (sum, losses), and
  refusal(x, head, loss, split) -> str | None, why it can not do these sizes and dtypes, if so.

It is never called with what it refuses: `linear_cross_entropy` raises `Unsupported` first.
"""

import functools
import importlib
import logging
from types import ModuleType

from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.cross_entropy.head import LinearHead
from pallas_kernels.cross_entropy.loss import TokenLoss
from pallas_kernels.cross_entropy.split import Shaped, Split
from pallas_kernels.unsupported import Unsupported

logger = logging.getLogger(__name__)
# Name -> module.
BACKENDS = {
  "reference": "pallas_kernels.cross_entropy.reference",
  "xla": "pallas_kernels.cross_entropy.xla",
  "xla_chunked": "pallas_kernels.cross_entropy.chunked",
}
# Logits of a device, from which on they are not held in memory at once: 64 MB in float32.
DENSE_LOGITS = 1 << 24


def backend(impl: str) -> ModuleType:
  """The module of that name.

  Raises:
    ValueError: no such backend.
  """
  if impl not in BACKENDS:
    raise ValueError(f"no cross-entropy backend {impl!r}; there are: {', '.join(BACKENDS)}.")
  return importlib.import_module(BACKENDS[impl])


def chosen(x: Shaped, head: LinearHead, split: Split) -> str:
  """The backend for these sizes: logits in memory where they are few. Only shapes are read."""
  return "xla" if split.logits(x, head) <= DENSE_LOGITS else "xla_chunked"


def linear_cross_entropy(
  x: Float[Array, "batch length d_model"],
  head: LinearHead,
  targets: Int[Array, "batch length"],
  weights: Float[Array, "batch length"],
  *,
  counted: Bool[Array, "batch length"] | None = None,
  loss: TokenLoss | None = None,
  split: Split | None = None,
  impl: str | None = None,
) -> tuple[Float[Array, ""], Float[Array, "batch length"]]:
  """(sum of weights * losses, losses), both differentiable, the sum at less cost.

  Args:
    x: hidden states, which the head reads.
    targets: one that is not in the vocabulary has the loss NaN, and may stand at a token of weight 0.
    weights: of tokens. One of weight 0 adds nothing to the sum and to no gradient of it.
    counted: tokens that have a loss; to others it is 0, and chunked backends spend no time on them. None: all.
    loss: None: plain cross-entropy.
    split: where rows and vocabulary lie on the mesh that is set; None: left to the compiler.
    impl: name of a backend; None: the best.

  Raises:
    ValueError: no such backend.
    Unsupported: the named backend can not do it.
  """
  loss, split = loss or TokenLoss(), split or Split()
  name = chosen(x, head, split) if impl is None else impl
  why = backend(name).refusal(x, head, loss, split)
  if why is not None:
    able = [other for other in BACKENDS if backend(other).refusal(x, head, loss, split) is None]
    raise Unsupported(f"cross-entropy backend {name!r} can not do this: {why}. These can: {', '.join(able)}.")
  tell(name, x.shape[0] * x.shape[1], head.vocabulary)
  return backend(name).linear_cross_entropy(x, head, targets, weights, counted, loss, split)


@functools.cache
def tell(name: str, tokens: int, vocabulary: int) -> None:
  """Says once which backend was taken for what."""
  logger.info("cross-entropy: %s for %d tokens x %d", name, tokens, vocabulary)
