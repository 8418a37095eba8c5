"""From a model's folder to training batches: the cache keeps all of the vocabulary, SeqIO reads the same."""

import shutil
from functools import partial

import folders
import numpy as np
import pytest

from mtx.data.build import build_mixture
from mtx.data.cache import open_mixture
from mtx.data.feed import feed
from mtx.report.examples import show
from mtx.tasks.mixture import mixture
from mtx.tasks.task import Collection, TextTask

TURNS = [("user", "cat"), ("assistant", "dog"), ("user", "more"), ("assistant", "sum")]


def rows(split, reading):
  del split, reading
  for i in range(20):
    yield {"inputs": f"add {i} and {i * 3}", "targets": str(i * 4)}
  yield {"turns": TURNS}


def collection(name: str) -> Collection:
  return Collection(name, train=(TextTask(f"{name}_pairs", "pairs", rows, {"train": 21}),))


@pytest.fixture(scope="module", params=["qwen", "llama3", "bart", "digits-3"])
def cached(request, tmp_path_factory):
  """A mixture in a cache that lies elsewhere now, without the folder that it was built from; and SeqIO's examples."""
  import seqio

  root = tmp_path_factory.mktemp("cached")
  family = getattr(folders, request.param, None)
  given = family(root / "model") if family else request.param
  name = f"tokens_{request.param.replace('-', '_')}"
  source = mixture([partial(collection, name)], vocabulary=str(given))
  built = build_mixture(source, f"{name}_train", root / "cache", workers=1)
  task = seqio.get_mixture_or_task(f"{name}_pairs")
  lengths = {"inputs": 99, "targets": 99}
  theirs = list(task.get_dataset(lengths, "train", shuffle=False, use_cached=False).as_numpy_iterator())
  shutil.move(root / "cache", root / "moved")
  shutil.rmtree(root / "model", ignore_errors=True)
  opened = open_mixture(root / "moved", f"{name}_train")
  assert opened.vocabulary.fingerprint == built.vocabulary.fingerprint
  assert not family or opened.vocabulary.special is not None
  return opened, theirs


def test_the_cache_holds_what_seqio_reads(cached):
  opened, theirs = cached
  split = opened.tasks[0].splits["train"]
  assert len(split) == len(theirs) == 21
  for index, example in enumerate(theirs):
    for field in ("inputs", "targets"):
      np.testing.assert_array_equal(split[index][field], example[field])


def test_batches_begin_and_end_as_the_family_does(cached):
  opened, _ = cached
  vocabulary = opened.vocabulary
  architecture = "encdec" if vocabulary.closes_inputs else "causal"
  made = feed(opened, architecture=architecture, inputs_length=40, targets_length=40, batch=2, pack=True, seed=0)
  batch = next(iter(made))
  first = (batch["decoder_positions"] == 0) & (batch["decoder_segment_ids"] > 0)
  begins, real = batch["decoder_input_tokens"][first], batch["decoder_segment_ids"] > 0
  inputs = {int(example["inputs"][0]) for example in opened.tasks[0].splits["train"]}
  if vocabulary.start_id is None:
    assert set(begins.tolist()) <= inputs
  else:
    assert (begins == vocabulary.start_id).all()
  last = real & np.append(first[:, 1:] | ~real[:, 1:], np.ones((2, 1), bool), axis=1)
  assert first.sum() == last.sum() > 2
  assert (batch["decoder_target_tokens"][last] == vocabulary.eos_id).all()
  answers = batch["decoder_target_tokens"][batch["decoder_loss_weights"] > 0]
  assert vocabulary.decode(answers[:1]) != "" or vocabulary.opens_id == answers[0]


def test_what_is_shown_is_what_stands_in_the_rows(cached, capsys):
  """The first token of a row without a start token is shown too, though nothing predicts it."""
  opened, _ = cached
  architecture = "encdec" if opened.vocabulary.closes_inputs else "prefix"
  show(opened, 2, architecture=architecture, inputs_length=40, targets_length=40, batch=2, pack=True, seed=0, batches=1)
  printed = capsys.readouterr().out
  assert "add " in printed and opened.vocabulary.written(opened.vocabulary.eos_id) in printed
