"""Token cross-entropy, with the z-loss of T5X (Chowdhery et al. 2022, arXiv 2204.02311, section 5)."""

import gin
import jax
from jaxtyping import Array, Bool, Float, Int

from mtx.errors import UserError, did_you_mean
from mtx.models.backends import bound
from mtx.models.outputs import Outputs
from mtx.objectives.loss import Loss
from mtx.objectives.normalise import WEIGHTS
from mtx.parallel.activations import SPLIT
from mtx.parallel.mesh import ROWS
from pallas_kernels.cross_entropy.api import BACKENDS, chosen, linear_cross_entropy, tell
from pallas_kernels.cross_entropy.loss import TokenLoss
from pallas_kernels.cross_entropy.split import Split
from pallas_kernels.cross_entropy.xla import of_logits

LAID = Split(ROWS, SPLIT["vocab"])


@gin.configurable(denylist=["outputs", "batch", "tasks"])
def cross_entropy(
  outputs: Outputs,
  batch: dict[str, Array],
  tasks: int,
  *,
  z_loss: float = 0.0,
  label_smoothing: float = 0.0,
  impl: str | None = None,
) -> Loss:
  """Sum over tokens of weight * (-log p(target) + z_loss * log(Z)^2).

  The sums per task are of plain token losses, however the loss is normalised.

  Args:
    outputs: logits [batch, length, vocab], or the hidden states and head that they come from.
    batch: decoder_target_tokens, decoder_loss_weights and decoder_task_ids [batch, length]; and, where the
      loss is no plain mean over tokens, the weights of `mtx.objectives.normalise`.
    tasks: length of the per-task sums.
    z_loss: coefficient that keeps log Z near zero; T5X uses 1e-4.
    label_smoothing: share of the target's probability, 0 to 1, that is spread evenly over the vocabulary.
    impl: a name in `pallas_kernels.cross_entropy.api.BACKENDS`, `xla` for logits in memory; None: by size.

  Raises:
    UserError: no such backend, or one other than `xla` where logits do not come from hidden states and head alone.
  """
  if impl is not None and impl not in BACKENDS:
    raise UserError(f"binding `cross_entropy.impl`: no backend {impl!r}.", hint=did_you_mean(impl, BACKENDS))
  if not 0 <= label_smoothing <= 1:
    raise UserError(f"binding `cross_entropy.label_smoothing`: {label_smoothing} is not from 0 to 1.")
  targets, weights = batch["decoder_target_tokens"], batch["decoder_loss_weights"]
  task_ids = batch["decoder_task_ids"].reshape(-1)
  per_task = lambda x: jax.ops.segment_sum(x.reshape(-1), task_ids, num_segments=tasks)
  normalised = batch.get(WEIGHTS, weights)
  loss = TokenLoss(z_loss, label_smoothing)
  total, losses = _summed(outputs, targets, normalised, weights != 0, loss, impl)
  return Loss(total, normalised.sum(), per_task(losses * weights), per_task(weights))


def _summed(
  outputs: Outputs,
  targets: Int[Array, "batch length"],
  weights: Float[Array, "batch length"],
  counted: Bool[Array, "batch length"],
  loss: TokenLoss,
  impl: str | None,
) -> tuple[Float[Array, ""], Float[Array, "batch length"]]:
  """(sum of weights * losses, losses), by the backend `impl`."""
  hidden, head = outputs.hidden, outputs.head
  if impl is None:
    impl = "xla" if hidden is None or head is None else chosen(hidden, head, LAID)
  if impl == "xla":  # the logits that the model computes, in its dtype
    tell(impl, targets.size, outputs.logits.shape[-1])
    return of_logits(outputs.logits, targets, weights, counted, loss)
  if hidden is None or head is None:
    raise UserError(
      f"binding `cross_entropy.impl`: {impl!r} computes logits from hidden states and head, and this head has more to "
      "it: an adapter.",
      hint="cross_entropy.impl = 'xla' reads logits, whatever they come from.",
    )
  with bound("cross_entropy.impl"):
    return linear_cross_entropy(hidden, head, targets, weights, counted=counted, loss=loss, split=LAID, impl=impl)
