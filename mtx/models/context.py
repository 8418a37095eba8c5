"""What a projection may know about the tokens it sees. Passed as an argument everywhere; nothing is global."""

from dataclasses import dataclass, replace

import jax
from jaxtyping import Array, Int, PRNGKeyArray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
  """Routing and packing facts of one stream of tokens (encoder side or decoder side).

  Attributes:
    task_ids: one task a row (`batch`, the cheaper form) or one a token (`batch length`).
    segment_ids: packed example of each token, 0 = padding.
    positions: position within the segment.
    key: randomness of this layer (dropout, sampled routing); None = deterministic.
    step: training step, for methods that anneal.
  """

  task_ids: Int[Array, "batch"] | Int[Array, "batch length"]
  segment_ids: Int[Array, "batch length"]
  positions: Int[Array, "batch length"]
  key: PRNGKeyArray | None = None
  step: Int[Array, ""] | int = 0

  def fold(self, n: int) -> "Context":
    """The same context with randomness of its own for site `n` of a layer."""
    return self if self.key is None else replace(self, key=jax.random.fold_in(self.key, n))

  def with_key(self, key: PRNGKeyArray | None) -> "Context":
    return replace(self, key=key)


def context(batch: dict[str, Array], side: str, key: PRNGKeyArray | None = None, step=0) -> Context:
  """The routing context of one side of a batch; rows of one task carry `task_ids` [batch] and take the cheaper form."""
  return Context(
    task_ids=batch["task_ids"] if "task_ids" in batch else batch[f"{side}_task_ids"],
    segment_ids=batch[f"{side}_segment_ids"],
    positions=batch[f"{side}_positions"],
    key=key,
    step=step,
  )
