"""A tiny routed model of bytes, and cached tasks for it."""

import io
from functools import partial

import pytest
from rich.console import Console

from mtx.adapters.poly import MHR
from mtx.adapters.site import inject
from mtx.data.cache import CachedMixture, CachedTask, write_split
from mtx.data.vocabulary import Vocabulary
from mtx.eval.generate import Generator
from mtx.report.reporter import Reporter
from mtx.training.session import Carried, Session

INPUTS, TARGETS = 32, 6
TASKS = ("sort", "copy", "upper")
WORDS = ("a", "bc", "some longer text", "0123456789", "twenty-one characters", "xyz", "nine char", "the last of these")


@pytest.fixture(scope="session")
def vocabulary():
  return Vocabulary("byte")


@pytest.fixture(scope="session")
def task_of(tmp_path_factory, vocabulary):
  """task_of(name, references): a cached task of WORDS; short and long inputs alternate."""

  def make(name: str, references=lambda i: ["?"]) -> CachedTask:
    examples = [
      {
        "inputs": [*vocabulary.encode(f"{name} {text}"), vocabulary.eos_id],
        "targets": [*vocabulary.encode(text[:4]), vocabulary.eos_id],
        "id": f"{name}-{i}",
        "references": references(i),
        "text": text,
      }
      for i, text in enumerate(WORDS)
    ]
    folder = tmp_path_factory.mktemp(name)
    splits = {s: write_split(folder / s, examples, fingerprint=name, ingredients={}) for s in ("train", "test")}
    return CachedTask(name, f"{name}s", ("exact_match", "rouge_l"), name, splits)

  return make


@pytest.fixture(scope="session")
def session_of(tiny, mesh1, vocabulary):
  """session_of(folder, mixtures): a run whose mixtures are these tasks."""

  def make(folder, **mixtures) -> Session:
    cached = {n: CachedMixture(n, tuple(t), (1 / len(t),) * len(t), vocabulary) for n, t in mixtures.items()}
    return Session(
      run_dir=folder,
      config=tiny("causal", vocab_size=vocabulary.size, tied_head=False, decoder_layers=1).lock(),
      mesh=mesh1,
      seed=0,
      mixture=cached.__getitem__,
      inputs_length=INPUTS,
      targets_length=TARGETS,
      evaluate_every=0,
      save_every=0,
      evaluate=None,
      reporter=None if folder is None else Reporter(folder, Console(file=io.StringIO())),
      gin=str,
    )

  return make


@pytest.fixture(scope="session")
def carried(session_of, weights):
  """A trained model with a router row for each of TASKS, in an order of its own."""
  adapter = partial(inject, pattern=".*/(q|wo)", method=partial(MHR, skills=3, splits=2, rank=2))
  model = session_of(None).blueprint(adapter, len(TASKS))
  return Carried(model, weights(model), adapter, TASKS[::-1], True)


@pytest.fixture(scope="session")
def generator(carried, session_of, vocabulary, mesh1):
  config = session_of(None).config
  return Generator(carried.model, config, mesh1, vocabulary, inputs_length=INPUTS, targets_length=TARGETS)


@pytest.fixture(scope="session")
def predict(generator, carried):
  """predict(task, router row): the model's predictions for WORDS, one call an example."""

  def one_by_one(task: CachedTask, row: int, params=None) -> list[str]:
    examples = task.splits["test"]
    return [generator(params or carried.params, [examples[i]], [row])[0] for i in range(len(WORDS))]

  return one_by_one
