"""A model's answers: the likeliest option where an example has options, else what the model says."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtx.data.cache import Example
from mtx.eval.generate import Generator
from mtx.eval.likelihood import Likelihood
from mtx.eval.rank import Ranked, Ranker
from mtx.training.session import Carried, Session


class Answer(NamedTuple):
  """`option_scores`: of every option; None where the text was generated."""

  text: str
  option_scores: list[float] | None = None

  @property
  def ranked(self) -> Ranked:
    """Raises ValueError where the text was generated."""
    if self.option_scores is None:
      raise ValueError(f"{self.text!r} was generated")
    return Ranked(int(np.argmax(self.option_scores)), np.array(self.option_scores))


class Answerer:
  """Answers of models of one run. Each number of router rows is compiled once, whatever the parameters.

  Args:
    session: whose lengths, mesh and vocabulary count.
  """

  def __init__(self, session: Session):
    self._session = session
    self._made: dict[tuple[int, int], tuple[Generator, Ranker]] = {}

  def __call__(self, carried: Carried, examples: Sequence[Example], task_ids: Sequence[int]) -> list[Answer]:
    """One answer an example.

    Args:
      task_ids: router row of each.
    """
    generator, ranker = self._tools(carried)
    made: dict[int, Answer] = {}
    with_options = [i for i, example in enumerate(examples) if example.get("options")]
    others = [i for i, example in enumerate(examples) if not example.get("options")]
    if with_options:
      chosen = [examples[i] for i in with_options]
      ranked = ranker.examples(carried.params, chosen, [task_ids[i] for i in with_options])
      for i, example, each in zip(with_options, chosen, ranked, strict=True):
        made[i] = Answer(example["options"][each.index], each.scores.tolist())
    if others:
      texts = generator(carried.params, [examples[i] for i in others], [task_ids[i] for i in others])
      made |= {i: Answer(text) for i, text in zip(others, texts, strict=True)}
    return [made[i] for i in range(len(examples))]

  def _tools(self, carried: Carried) -> tuple[Generator, Ranker]:
    rows = len(carried.tasks) if routed(carried) else 0
    key = (id(carried.adapter), rows)
    if key not in self._made:
      s = self._session
      of = carried.model, s.config, s.mesh, s.mixture("train").vocabulary
      generator = Generator(*of, inputs_length=s.inputs_length, targets_length=s.targets_length)
      self._made[key] = generator, Ranker(Likelihood(*of, inputs_length=s.inputs_length))
    return self._made[key]


def routed(carried: Carried) -> bool:
  """Whether the model tells tasks apart."""
  return any("task" in axes for axes in carried.model.axes.values())
