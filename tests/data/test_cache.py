import json
import pickle
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from mtx.data.cache import CachedMixture, open_mixture, write_index, write_split
from mtx.errors import UserError


def made(number):
  return [
    {
      "inputs": np.arange(index + 1),
      "targets": np.array([index, 1]),
      "id": f"e{index}",
      "references": ["ä", "b"],
      "text": "naïve",
    }
    for index in range(number)
  ]


def test_examples_come_back_as_they_were(tmp_path):
  split = write_split(tmp_path / "s", made(9), fingerprint="f", ingredients={"source": 1})
  assert len(split) == 9
  for index in (8, 0, 5):
    found = split[index]
    assert found["inputs"].dtype == found["targets"].dtype == np.int32
    assert found["inputs"].tolist() == list(range(index + 1)) and found["targets"].tolist() == [index, 1]
    assert (found["id"], found["references"], found["text"]) == (f"e{index}", ["ä", "b"], "naïve")
  assert split.lengths.tolist() == [[index + 1, 2] for index in range(9)]
  assert split.manifest["tokens"] == {"inputs": 45, "targets": 18}
  assert pickle.loads(pickle.dumps(split))[3]["id"] == "e3"
  with pytest.raises(IndexError):
    split[9]


def test_a_build_that_fails_leaves_nothing(tmp_path):
  def broken():
    yield from made(3)
    raise RuntimeError("disk is full")

  with pytest.raises(RuntimeError):
    write_split(tmp_path / "task" / "train", broken(), fingerprint="f", ingredients={})
  assert list((tmp_path / "task").iterdir()) == []


def test_a_split_that_another_process_built_first_is_kept(tmp_path):
  write_split(tmp_path / "s", made(2), fingerprint="f", ingredients={})
  assert len(write_split(tmp_path / "s", made(5), fingerprint="f", ingredients={})) == 2
  assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_cache_can_be_moved(cache_dir, mixture, tmp_path):
  shutil.copytree(cache_dir, tmp_path / "elsewhere")
  moved = open_mixture(tmp_path / "elsewhere", "four_tasks")
  assert moved.fingerprint == mixture.fingerprint
  example = moved.tasks[2].splits["train"][11]
  assert example["id"] == mixture.tasks[2].splits["train"][11]["id"]
  assert str(tmp_path) in str(moved.tasks[2].splits["train"].folder)


def test_the_fingerprint_covers_rates_and_tasks(mixture):
  other = CachedMixture(mixture.name, mixture.tasks, (0.25,) * 4, mixture.vocabulary)
  fewer = CachedMixture(mixture.name, mixture.tasks[:2], mixture.rates[:2], mixture.vocabulary)
  assert len({mixture.fingerprint, other.fingerprint, fewer.fingerprint}) == 3


def test_an_unknown_mixture_names_the_near_ones(cache_dir):
  with pytest.raises(UserError, match=r"no mixture 'four_task'[^`]*did you mean `four_tasks`"):
    open_mixture(cache_dir, "four_task")


def test_a_cache_of_another_format_is_refused(mixture, tmp_path):
  split = write_split(tmp_path / "s", made(2), fingerprint="f", ingredients={})
  path = tmp_path / "s" / "manifest.json"
  path.write_text(json.dumps({**split.manifest, "format": 99}))
  with pytest.raises(UserError, match="has cache format 99"):
    len(type(split)(tmp_path / "s"))
  (tmp_path / "odd.json").write_text("{}")
  with pytest.raises(UserError, match="not the index of a cached mixture"):
    open_mixture(tmp_path, "odd")


def test_a_folder_that_is_gone_is_named(cache_dir, mixture, tmp_path):
  write_index(cache_dir, CachedMixture("copied", mixture.tasks, mixture.rates, mixture.vocabulary))
  shutil.copy(cache_dir / "copied.json", tmp_path / "copied.json")
  (cache_dir / "copied.json").unlink()
  gone = open_mixture(tmp_path, "copied").tasks[0].splits["train"]
  with pytest.raises(UserError, match=r"manifest.json is not there, but the cache's index names it"):
    len(gone)


def test_reading_needs_neither_tensorflow_nor_seqio(cache_dir):
  """Cache in, batches out, scores too, in a process where both imports fail."""
  program = f"""
    import sys

    class Blocked:
      def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "seqio", "tensorflow_text", "tensorflow_datasets"):
          raise ImportError(name + " is blocked")

    sys.meta_path.insert(0, Blocked())
    try:
      import seqio
    except ImportError:
      pass
    else:
      raise SystemExit("the block does not hold")
    from mtx.data.cache import open_mixture
    from mtx.data.feed import feed, validation_batches
    from mtx.tasks.metrics import METRICS

    mixture = open_mixture({str(cache_dir)!r}, "four_tasks")
    batches = iter(feed(mixture, architecture="prefix", batch=2, inputs_length=32, targets_length=8))
    print(next(batches)["decoder_input_tokens"].shape[1], METRICS["rouge_l"]([["a b"]], ["a b"]))
    batches.close()
    assert mixture.vocabulary.decode(mixture.vocabulary.encode("plain")) == "plain"
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == ["40", "100.0"]
