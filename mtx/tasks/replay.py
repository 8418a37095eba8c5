"""A fixed part of a task's training examples, to be seen again in a later stage.

Dual-stage mixed fine-tuning (Dong et al. 2023, arXiv 2310.05492) learns all specialised data first, then all general
data and a fraction k of the specialised, 1/256 by default:

    mixture.parts = {
      'special': {'source=gsm8k': 1},
      'general': {'source=self_instruct': 1, 'source=gsm8k': {'replay': '1/256', 'seed': 0}},
    }
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from mtx.errors import UserError, did_you_mean
from mtx.tasks.task import share

FIELDS = ("replay", "seed")


@dataclass(frozen=True)
class Replay:
  """Examples whose ids' hashes, salted with the seed, fall below the fraction.

  So the choice depends on nothing but seed and id: it stays when a task grows, and a smaller fraction is a part of a
  larger one. Of n examples it holds n times the fraction on average, and of a small task perhaps none.
  """

  fraction: float
  seed: int = 0

  @classmethod
  def of(cls, written: Mapping[str, Any], binding: str) -> "Replay":
    """Reads `{'replay': 0.25}` or `{'replay': '1/256', 'seed': 3}`.

    Raises:
      UserError: another field, a fraction that is not above 0 and at most 1, a seed that is no whole number.
    """
    for field in written:
      if field not in FIELDS:
        raise UserError(f"{binding} has a field {field!r}", hint=did_you_mean(str(field), FIELDS))
    try:
      fraction = float(Fraction(written["replay"]))
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
      fraction = 0.0
    if not 0 < fraction <= 1:
      raise UserError(
        f"{binding} replays {written.get('replay')!r}", hint="a fraction above 0, at most 1: {'replay': '1/256'}"
      )
    seed = written.get("seed", 0)
    if not isinstance(seed, int):
      raise UserError(f"{binding} has the seed {seed!r}", hint="a seed is a whole number")
    return cls(fraction, seed)

  def rows(self, task: str, ids: Sequence[str]) -> list[int]:
    """Positions of a task's examples that are replayed, ascending.

    Args:
      ids: of all its training examples, in order.
    """
    return [row for row, identity in enumerate(ids) if share(identity, f"replay {self.seed} {task} ") < self.fraction]
