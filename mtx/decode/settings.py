"""What decides how a model's logits become tokens: one frozen, hashable value, bound by gin or by flags."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import gin

from mtx.errors import UserError


@gin.configurable("decode", denylist=["eos_ids", "pad_id", "stop_ids"])
@dataclass(frozen=True)
class Settings:
  """Greedy decoding by default. Filters have the order and the meaning that they have in `transformers`.

  Attributes:
    length: most tokens of an output; a row may have a limit of its own.
    samples: outputs a prompt; with beams: the best ones of them.
    temperature: 0 takes the most probable token; otherwise logits are divided by it and a token is drawn.
    top_k: only the k most probable tokens can be drawn; 0 = all (Fan et al. 2018, arXiv 1805.04833).
    top_p: only the fewest tokens whose probabilities sum to p (Holtzman et al. 2020, arXiv 1904.09751).
    min_p: only tokens with at least p times the probability of the most probable one (arXiv 2407.01082).
    repetition_penalty: what stands in the row already has its logit divided by this, or multiplied where it is
      negative (Keskar et al. 2019, arXiv 1909.05858). A decoder's prompt counts; of an encoder-decoder, the decoder's
      start token does, the encoder's prompt does not.
    beams: width of beam search; 1 = none.
    length_penalty: outputs of beam search are ranked by log-probability / tokens ** length_penalty.
    early_stopping: when a row with as many finished outputs as beams ends. True: at once. False: when the best running
      beam, divided by its present length, is worse than all of them. "never": when it would be worse even at the row's
      limit (for a positive length_penalty).
    stop: texts that end an output; they and what follows are left out.
    eos_ids: any of them ends a row; it is kept.
    pad_id: stands after a row's end. It may be a real token elsewhere: lengths decide.
    stop_ids: sequences of ids that end a row like eos_ids (`mtx.decode.stops`).
  """

  length: int = 128
  samples: int = 1
  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  repetition_penalty: float = 1.0
  beams: int = 1
  length_penalty: float = 1.0
  early_stopping: bool | Literal["never"] = False
  stop: Sequence[str] = ()
  eos_ids: Sequence[int] = (1,)
  pad_id: int = 0
  stop_ids: Sequence[Sequence[int]] = ()

  def __post_init__(self):
    stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
    object.__setattr__(self, "stop", stop)
    object.__setattr__(self, "eos_ids", tuple(map(int, self.eos_ids)))
    object.__setattr__(self, "stop_ids", tuple(tuple(map(int, ids)) for ids in self.stop_ids))
    for name, least in (("length", 1), ("samples", 1), ("top_k", 0), ("beams", 1)):
      value = getattr(self, name)
      if not isinstance(value, int) or value < least:
        raise _wrong(name, value, f"a whole number, {least} or more")
    for name, fits, wanted in (
      ("temperature", self.temperature >= 0, "0 (the most probable token) or more"),
      ("top_p", 0 < self.top_p <= 1, "over 0, at most 1"),
      ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
      ("repetition_penalty", self.repetition_penalty > 0, "over 0; 1 changes nothing"),
      ("early_stopping", self.early_stopping in (True, False, "never"), 'valid choices: True, False, "never"'),
      ("stop", all(isinstance(text, str) and text for text in stop), "texts of at least one character"),
      ("stop_ids", all(self.stop_ids), "sequences of at least one id"),
    ):
      if not fits:
        raise _wrong(name, getattr(self, name), wanted)
    self._check_together()

  def _check_together(self) -> None:
    """Raises UserError for values that are right alone, and of which one would silently do nothing."""
    if self.beams > 1 and self.temperature:
      raise _wrong("temperature", self.temperature, f"with decode.beams = {self.beams} nothing is drawn: set it to 0")
    if not self.temperature:
      for name, nothing in (("top_k", 0), ("top_p", 1.0), ("min_p", 0.0)):
        if getattr(self, name) != nothing:
          raise _wrong(name, getattr(self, name), "it needs decode.temperature over 0, 1.0 for example")
      if self.samples > self.beams:
        raise _wrong("samples", self.samples, "they would be equal: set decode.temperature, or as many decode.beams")

  @property
  def width(self) -> int:
    """Rows that decode for one prompt."""
    return max(self.samples, self.beams)

  @property
  def longest_stop(self) -> int:
    """Tokens that must be looked at to see that a row ends."""
    return max(map(len, self.stop_ids), default=1)


def _wrong(name: str, value, wanted: str) -> UserError:
  return UserError(f"decode.{name} is {value!r}.", hint=wanted)
