"""Several models' next-token logits to one: `combine(logits, state) -> (logits, state)`, pure, for the decode loop.

`logits` are float32 [batch, vocab] of one model each, not yet warped: temperature and top-p come after. A combination
that remembers something has `init(batch) -> state`, a tree whose arrays lead with the batch axis.

Where models are compared with a reference, they come as: the large model, the small one before tuning, then the small
ones after tuning. All must share one vocabulary. Rows that pad an embedding differ between sizes: the result is as wide
as the first model's, and a token that some model does not know (its row is missing, or -inf) is -inf in the result.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gin
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mtx.errors import UserError

Logits = Sequence[Float[Array, "batch vocab"]]


@gin.configurable("emulated")
@dataclass(frozen=True)
class Emulated:
  """large + sum_i w_i (tuned_i - small): emulated fine-tuning, and proxy tuning where there is one w.

  Logits serve as log-probabilities do, for a model's log-partition is a constant that the softmax removes (Mitchell et
  al. 2023, arXiv 2310.12962, section 3; Liu et al. 2024, arXiv 2401.08565, equation 1).

  Attributes:
    weights: one a tuned model. (1.0,) is up-scaling or down-scaling; (l, 1 - l) trades two behaviours at test time.
      With zeros alone, the large model's logits are returned as they are.
  """

  weights: Sequence[float] = (1.0,)

  def __call__(self, logits: Logits, state: Any = ()) -> tuple[Float[Array, "batch vocab"], Any]:
    """Raises UserError unless there are two more models than weights."""
    if len(logits) != len(self.weights) + 2:
      raise UserError(
        f"binding `emulated.weights`: {len(self.weights)} weights for {len(logits)} models.",
        hint="the models are the large one, the small one before tuning, and one tuned model a weight.",
      )
    used = [(w, tuned) for w, tuned in zip(self.weights, logits[2:], strict=True) if w]
    if not used:
      return logits[0], state
    (large, small, *tuned), known = _aligned([*logits[:2], *(each for _, each in used)])
    total = large
    for (weight, _), each in zip(used, tuned, strict=True):
      total = total + weight * (each - small)
    return _widened(total, known, logits[0]), state


@gin.configurable("logit_fusion")
@dataclass(frozen=True)
class LogitFusion:
  """large + a (tuned_t - small), with expert t and weight a chosen anew for every row and step.

  They are those for which the large model moves as far as the experts did (Fan et al. 2024, arXiv 2406.15480, section
  3 and algorithm 1). With P, Q and Q_u the large, small and tuned distributions and P' the result, they minimise

      sum_u (KL(P' || P) - KL(Q_u || Q))^2 + (KL(P || P') - KL(Q || Q_u))^2

  over every pair of an expert and a member of `alphas`; of equals, the first expert and then the first weight. The
  objective sees sizes of divergences only: an expert that is as far from Q as the right one is as good to it, so what
  was chosen is kept in the state. Memory is a few [batch, vocab] arrays, however many pairs there are.

  Attributes:
    alphas: the weights to choose from. One alone with one expert is proxy tuning.
    steps: how many are remembered in the state; later ones are chosen as well, and not kept.
  """

  alphas: Sequence[float] = tuple(round(0.1 * i, 1) for i in range(21))
  steps: int = 512

  def init(self, batch: int) -> dict[str, Array]:
    """The state: `step` int32[batch], `expert` int32[batch, steps] (-1: not yet), `alpha` float32[batch, steps]."""
    return {
      "step": jnp.zeros(batch, jnp.int32),
      "expert": jnp.full((batch, self.steps), -1, jnp.int32),
      "alpha": jnp.zeros((batch, self.steps), jnp.float32),
    }

  def __call__(self, logits: Logits, state: dict[str, Array]) -> tuple[Float[Array, "batch vocab"], dict[str, Array]]:
    """Raises UserError without a tuned model, or without `alphas`."""
    if len(logits) < 3 or not self.alphas:
      raise UserError(
        f"logit_fusion has {len(logits)} models and {len(self.alphas)} alphas.",
        hint="the models are the large one, the small one before tuning, and one or more that are tuned.",
      )
    (large, small, *tuned), known = _aligned(logits)
    objective = self._objective(large, small, tuned, known)
    best = objective.reshape(-1, objective.shape[-1]).argmin(axis=0)
    expert = best // len(self.alphas)
    alpha = jnp.asarray(self.alphas, jnp.float32)[best % len(self.alphas)]
    chosen = tuned[0]
    for t, each in enumerate(tuned[1:], 1):
      chosen = jnp.where((expert == t)[:, None], each, chosen)
    fused = large + alpha[:, None] * (chosen - small)
    rows, step = jnp.arange(len(expert)), state["step"]
    state = {
      "step": step + 1,
      "expert": state["expert"].at[rows, step].set(expert.astype(jnp.int32), mode="drop"),
      "alpha": state["alpha"].at[rows, step].set(alpha, mode="drop"),
    }
    return _widened(fused, known, logits[0]), state

  def _objective(self, large, small, tuned, known) -> Float[Array, "expert alpha batch"]:
    over = lambda x: jnp.where(known, x, 0.0).sum(-1)
    masked = lambda x: jax.nn.log_softmax(jnp.where(known, x, -jnp.inf))
    log_p, log_q = masked(large), masked(small)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    experts = [masked(each) for each in tuned]
    ratios = [each - log_q for each in experts]  # NaN where unknown, which `over` leaves out
    forward = jnp.stack([over(jnp.exp(each) * r) for each, r in zip(experts, ratios, strict=True)])
    backward = jnp.stack([over(q * -r) for r in ratios])

    def one(ratio, alpha):
      # P' is proportional to P exp(alpha ratio), so its log-partition and two means give both divergences.
      shift = alpha * jnp.where(known, ratio, 0.0)
      moved = log_p + shift
      log_z = jax.nn.logsumexp(moved, axis=-1)
      to_p = over(jnp.exp(moved - log_z[:, None]) * shift) - log_z
      from_p = log_z - over(p * shift)
      return (jnp.square(to_p - forward) + jnp.square(from_p - backward)).sum(0)

    grid = jnp.asarray(self.alphas, jnp.float32)
    return jnp.stack([jax.lax.map(lambda alpha, r=ratio: one(r, alpha), grid) for ratio in ratios])


@gin.configurable
def mean_logits(logits: Logits, state: Any = ()) -> tuple[Float[Array, "batch vocab"], Any]:
  """The mean of all models' logits: a product of experts, whose softmax is the normalised geometric mean."""
  aligned, known = _aligned(logits)
  return _widened(sum(aligned[1:], aligned[0]) / len(aligned), known, logits[0]), state


@gin.configurable
def mean_probabilities(logits: Logits, state: Any = ()) -> tuple[Float[Array, "batch vocab"], Any]:
  """The log of the models' mean probability: an ensemble. A token that one model lacks has probability 0 there."""
  width = logits[0].shape[-1]
  log_p = jnp.stack([resized(jax.nn.log_softmax(each), width) for each in logits])
  return jax.nn.logsumexp(log_p, axis=0) - jnp.log(float(len(logits))), state


def _aligned(logits: Logits) -> tuple[list[Float[Array, "batch common"]], Bool[Array, "batch common"]]:
  """(every model's logits over the rows that all have, 0 where some model has -inf; where none has)."""
  common = min(each.shape[-1] for each in logits)
  cut = [each[:, :common] for each in logits]
  known = jnp.stack([each > -jnp.inf for each in cut]).all(0)
  return [jnp.where(known, each, 0.0) for each in cut], known


def _widened(x: Array, known: Array, like: Array) -> Float[Array, "batch vocab"]:
  return resized(jnp.where(known, x, -jnp.inf), like.shape[-1])


def resized(x: Float[Array, "batch vocab"], width: int) -> Float[Array, "batch width"]:
  """Cut to `width`, or filled up with -inf."""
  return jnp.pad(x[:, :width], ((0, 0), (0, max(0, width - x.shape[-1]))), constant_values=-jnp.inf)
