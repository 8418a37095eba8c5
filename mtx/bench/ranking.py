"""Rank scoring of options that share a prompt, beside scoring every pair of a prompt and an option."""

from statistics import median

import jax
import numpy as np

from mtx.bench.clock import interleaved
from mtx.bench.row import Row, Target, compared
from mtx.data.vocabulary import Vocabulary
from mtx.eval.likelihood import Likelihood
from mtx.models.build import build
from mtx.models.sizes import PRESETS
from mtx.parallel.mesh import make_mesh
from mtx.training.parameters import blueprint

NAME, UNIT, TARGET = "ranking", "options/s", Target(3.0)


def ranking(
  *,
  preset: str = "t5_small",
  architecture: str = "encdec",
  vocabulary: int = 32128,
  batch: int = 8,
  inputs: int = 256,
  options: int = 5,
  length: int = 4,
  repeats: int = 3,
) -> Row:
  """Options/s of `Likelihood`, given each prompt once with all its options, or once for every option.

  Both sides are the same program but for that: pairs get no logits, and no padding, that they do not need.
  """
  config = PRESETS[preset]()
  config.update(vocab_size=vocabulary, architecture=architecture)
  mesh = make_mesh()
  model = blueprint(lambda rngs: build(config, rngs=rngs))
  params = model.initialise(jax.random.key(0), mesh)
  # Of the vocabulary, only the ids of start and end are asked for.
  likelihood = Likelihood(model, config, mesh, Vocabulary("byte"), inputs_length=inputs)
  rng = np.random.default_rng(0)
  prompts = list(rng.integers(3, vocabulary, (batch, inputs), np.int32))
  choices = [list(each) for each in rng.integers(3, vocabulary, (batch, options, length), np.int32)]
  repeated = [prompt for prompt in prompts for _ in range(options)]
  alone = [[tokens] for each in choices for tokens in each]
  contestants = {
    "shared": lambda: likelihood(params, prompts, choices, [0] * batch),
    "pairs": lambda: likelihood(params, repeated, alone, [0] * len(alone)),
  }
  # One computation in two forms, or the comparison means nothing.
  shared, pairs = (np.concatenate([log_p for each in run() for log_p in each]) for run in contestants.values())
  np.testing.assert_allclose(shared, pairs, atol=1e-3)
  seconds = {name: median(runs) for name, runs in interleaved(contestants, repeats).items()}
  return compared(
    NAME,
    UNIT,
    batch * options / seconds["shared"],
    batch * options / seconds["pairs"],
    TARGET,
    f"{preset} {architecture} float32, {vocabulary} pieces, {batch} prompts of {inputs} tokens with {options} options "
    f"of {length}; peer: ours on the {batch * options} pairs; medians of {repeats} interleaved runs "
    f"({seconds['shared']:.2f} s and {seconds['pairs']:.2f} s)",
  )
