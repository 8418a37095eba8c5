import errno
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tasks"))
from texts import text_task

from mtx.data import records
from mtx.data.cache import (
  OPEN_FILES,
  CachedMixture,
  CachedSplit,
  finish_split,
  open_mixture,
  write_index,
  write_shard,
  write_split,
)
from mtx.data.jobs import Job, run_here
from mtx.data.vocabulary import Vocabulary
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


def test_a_split_without_examples_is_whole(tmp_path):
  split = write_split(tmp_path / "s", [], fingerprint="f", ingredients={}, left_out=[("file:1", "broken")])
  assert len(split) == 0 and split.lengths.shape == (0, 2)
  assert split.manifest["left_out"] == [["file:1", "broken"]] and split.manifest["longest"]["inputs"] == 0


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


def test_shards_read_as_one_sequence(tmp_path):
  """Whoever writes which part, in whatever order: example i is the same as in a split of one shard."""
  whole = write_split(tmp_path / "whole", made(11), fingerprint="f", ingredients={})
  for shard in (2, 0, 1):
    write_shard(tmp_path / "s", shard, 3, made(11)[shard::3])
  split = finish_split(tmp_path / "s", 3, fingerprint="f", ingredients={})
  assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "whole"]
  assert split.lengths.tolist() == whole.lengths.tolist()
  assert [split[i]["id"] for i in range(11)] == [whole[i]["id"] for i in range(11)]
  assert split.manifest["tokens"] == whole.manifest["tokens"]


def test_optional_fields_come_back(tmp_path):
  example = made(1)[0] | {"options": ["a", "b"], "weights": np.array([0, 1], np.uint8)}
  found = write_split(tmp_path / "s", [example], fingerprint="f", ingredients={})[0]
  assert found["options"] == ["a", "b"]
  assert found["weights"].dtype == np.uint8 and found["weights"].tolist() == [0, 1]


def test_a_build_goes_on_from_the_shards_that_are_there(tmp_path):
  write_shard(tmp_path / "s", 0, 2, made(6)[0::2])

  def never():
    raise AssertionError("written twice")
    yield

  write_shard(tmp_path / "s", 0, 2, never())
  write_shard(tmp_path / "s", 1, 2, made(6)[1::2])
  assert len(finish_split(tmp_path / "s", 2, fingerprint="f", ingredients={})) == 6


def test_two_builders_at_once_leave_one_whole_split(tmp_path):
  """Real processes, a barrier, the same folder: all succeed, and what is left is what one of them would leave."""
  context = multiprocessing.get_context("spawn")
  barrier = context.Barrier(3)
  builders = [context.Process(target=_build, args=(tmp_path / "s", barrier)) for _ in range(3)]
  for builder in builders:
    builder.start()
  for builder in builders:
    builder.join()
  assert [builder.exitcode for builder in builders] == [0, 0, 0]
  assert [path.name for path in tmp_path.iterdir()] == ["s"]
  split = CachedSplit(tmp_path / "s")
  assert [split[i]["id"] for i in range(200)] == [f"e{i}" for i in range(200)]


def _build(folder, barrier):
  barrier.wait()
  for shard in range(4):
    write_shard(folder, shard, 4, made(200)[shard::4])
  finish_split(folder, 4, fingerprint="f", ingredients={})


def test_workers_write_what_one_process_writes(tmp_path):
  """Splits of one task in one job, the shards of a large one each in their own, in any order."""
  tasks = [text_task("zoo_a", train=9, validation=3), text_task("zoo_b", bad=(2,), train=11)]

  def built(folder, workers):
    jobs = [
      Job(task, split, shard, shards, Vocabulary("byte"), folder / task.name / split, 1)
      for task, shards in zip(tasks, (1, 2), strict=True)
      for split in task.splits
      for shard in range(shards)
    ]
    done = {(job.folder, job.shard) for job in run_here(jobs, workers)}
    assert len(done) == len(jobs) == 4
    splits = [finish_split(job.folder, job.shards, fingerprint="f", ingredients={}) for job in jobs[:3]]
    return [
      (split.manifest["left_out"], split.manifest["files"], [split[i]["id"] for i in range(len(split))])
      for split in splits
    ]

  assert built(tmp_path / "two", 2) == built(tmp_path / "one", 1)
  assert not list(tmp_path.glob("*/*/.*"))


@pytest.mark.parametrize("read", ["an example", "lengths"])
@pytest.mark.parametrize("damage", ["cut", "gone", "changed in the numbers", "changed in a record"])
def test_a_damaged_file_is_named(tmp_path, damage, read):
  write_split(tmp_path / "s", made(9), fingerprint="f", ingredients={})
  path = tmp_path / "s" / "examples-00000.array_record"
  content = bytearray(path.read_bytes())
  if damage == "gone":
    path.unlink()
  else:
    numbers = CachedSplit(tmp_path / "s").lengths.tobytes()
    content[content.index(numbers if damage.endswith("numbers") else b"e3")] ^= 1
    path.write_bytes(content[:-4] if damage == "cut" else content)
  split = CachedSplit(tmp_path / "s")
  if (damage, read) == ("changed in a record", "lengths"):
    assert split.lengths.tolist() == [[index + 1, 2] for index in range(9)]
    return
  reason = "does not match its checksum" if "changed" in damage else r"it has \d+ of \d+ bytes"
  with pytest.raises(UserError, match=rf"examples-00000\.array_record is damaged: .*{reason}\n  delete the folder"):
    split.lengths if read == "lengths" else split[0]


def test_a_damaged_manifest_is_named(tmp_path):
  write_split(tmp_path / "s", made(2), fingerprint="f", ingredients={})
  path = tmp_path / "s" / "manifest.json"
  path.write_text(path.read_text()[:40])
  with pytest.raises(UserError, match=r"manifest.json is damaged"):
    len(CachedSplit(tmp_path / "s"))


def test_a_full_disk_is_said(tmp_path, monkeypatch):
  """What had been written stays; nothing half-written appears."""
  write_shard(tmp_path / "s", 0, 2, made(6)[0::2])

  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(records, "ArrayRecordWriter", full)
    with pytest.raises(UserError, match="s can not be written: the disk is full"):
      write_shard(tmp_path / "s", 1, 2, made(6)[1::2])
  write_shard(tmp_path / "s", 1, 2, made(6)[1::2])
  assert len(finish_split(tmp_path / "s", 2, fingerprint="f", ingredients={})) == 6


def test_a_read_only_folder_is_said(tmp_path, monkeypatch):
  def refused(path, *_):
    raise PermissionError(errno.EACCES, "Permission denied", str(path))

  monkeypatch.setattr(os, "mkdir", refused)  # root, as whom containers run tests, may write everywhere
  with pytest.raises(UserError, match=r"s can not be written: Permission denied\n.*train.cache_dir"):
    write_split(tmp_path / "s", made(2), fingerprint="f", ingredients={})
  with pytest.raises(UserError, match=r"s can not be written: Permission denied\n.*train.cache_dir"):
    write_shard(tmp_path / "s", 0, 2, made(2))


def test_few_files_are_open_however_many_splits_are_read(tmp_path, monkeypatch):
  splits = [write_split(tmp_path / f"s{i}", made(1), fingerprint="f", ingredients={}) for i in range(OPEN_FILES + 40)]
  before = len(os.listdir("/proc/self/fd"))
  assert [split[0]["id"] for split in splits] == ["e0"] * len(splits)
  assert len(os.listdir("/proc/self/fd")) - before <= OPEN_FILES


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
    from mtx.tasks.metrics import mean_score

    mixture = open_mixture({str(cache_dir)!r}, "four_tasks")
    batches = iter(feed(mixture, architecture="prefix", batch=2, inputs_length=32, targets_length=8))
    print(next(batches)["decoder_input_tokens"].shape[1], mean_score("rouge_l", [["a b"]], ["a b"]))
    batches.close()
    assert mixture.vocabulary.decode(mixture.vocabulary.encode("plain")) == "plain"
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=False
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == ["40", "100.0"]
