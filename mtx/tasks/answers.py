"""What a metric may look at: a task's examples and the answers to them. All of it is in predictions files."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True)
class Answers:
  """Columns with an entry an example.

  Attributes:
    references: all acceptable outputs.
    predictions: what was generated.
    options: answers to choose from; an example that has none has an empty entry.
    option_scores: log-likelihoods by which options were ranked (`mtx.eval.rank`); empty entries where none were.

  Raises:
    ValueError: columns of unequal length.
  """

  references: Sequence[Sequence[str]]
  predictions: Sequence[str]
  options: Sequence[Sequence[str]] = ()
  option_scores: Sequence[Sequence[float]] = ()

  def __post_init__(self):
    for name in ("options", "option_scores"):
      if not getattr(self, name):
        object.__setattr__(self, name, ((),) * len(self.references))
    lengths = [len(self.references), len(self.predictions), len(self.options), len(self.option_scores)]
    if len(set(lengths)) > 1:
      raise ValueError(f"columns of {lengths} examples: one is shorter than another")

  @classmethod
  def of(cls, lines: Sequence[Mapping[str, Any]]) -> "Answers":
    """Of the lines of a predictions file."""
    columns = ([line.get(name, ()) for line in lines] for name in ("options", "option_scores"))
    return cls([line["references"] for line in lines], [line["prediction"] for line in lines], *columns)

  def __len__(self) -> int:
    return len(self.references)

  @functools.cached_property
  def ranked(self) -> list[str]:
    """Of each example the option with the highest score; of equal ones, the first."""
    pairs = zip(self.options, self.option_scores, strict=True)
    return [options[int(np.argmax(scores))] for options, scores in pairs]

  @functools.cached_property
  def probabilities(self) -> list[Float64[np.ndarray, " options"]]:
    """Of the options of each example: softmax of their scores."""
    exponents = (np.exp(np.asarray(scores, np.float64) - max(scores)) for scores in self.option_scores)
    return [each / each.sum() for each in exponents]
