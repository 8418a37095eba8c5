"""What decoding returns."""

from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import Array, Float, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoded:
  """Outputs of a batch, on every device.

  Attributes:
    tokens: what was emitted, the end's id included; padding after it.
    lengths: how many tokens that is; 0 where a row's limit was 0.
    scores: their log-probability under the (combined) logits, before temperature and filters. With beams and a
      repetition penalty: what beam search summed, that is penalised log-probabilities, as in `transformers`.
    state: the last state of a combination of models, by row [batch * samples]; () with beams.
  """

  tokens: Int[Array, "batch samples length"]
  lengths: Int[Array, "batch samples"]
  scores: Float[Array, "batch samples"]
  state: Any = ()
