"""What a job writes: the ids of the vocabulary, whole splits, and what killed jobs leave."""

import functools
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tasks"))
from texts import text_task

from mtx.data.cache import CachedSplit, digest
from mtx.data.jobs import Job
from mtx.data.vocabulary import Vocabulary
from mtx.tasks.task import TextTask
from mtx.tasks.vocabularies import trained

TEXTS = (
  "the cat sat on the mat", "  spaces   and\ttabs\nand lines ", "aaaaaaaaaaaaaaa 1000000 1111111", "naïve ﬁne Ⅳ",
  "日本語 и русский", "e\u0301 \u00a8 \u200b\ufeff", "<extra_id_0> </s> <unk> ▁", "\0 nul", "🙂" * 9, "x" * 3000,
)  # fmt: skip


def _rows(split, reading, *, texts):
  for text in texts:
    yield {"inputs": text, "targets": text[::-1]}


def task_of(texts, name="texts"):
  return TextTask(name, "text", functools.partial(_rows, texts=texts), {"train": len(texts)})


@pytest.fixture(scope="module", params=["sentencepiece", "byte"])
def vocabulary(request, tmp_path_factory):
  if request.param == "byte":
    return Vocabulary("byte")
  words = [f"the cat number {i} sat on mat {i * i}, naïve and fine" for i in range(400)]
  return Vocabulary("sentencepiece", trained(words, 300, dir=tmp_path_factory.mktemp("pieces")), 10)


def test_ids_are_those_of_the_vocabulary(vocabulary, tmp_path):
  Job(task_of(TEXTS), "train", 0, 1, vocabulary, tmp_path / "s", 0)()
  split = CachedSplit(tmp_path / "s")
  for index, text in enumerate(TEXTS):
    assert split[index]["inputs"].tolist() == [*vocabulary.encode(text), vocabulary.eos_id]
    assert split[index]["targets"].tolist() == [*vocabulary.encode(text[::-1]), vocabulary.eos_id]
    assert split[index]["inputs"].dtype == np.int32 and split[index]["text"] == text


def _ids(split, reading):
  yield {"inputs": list(reading.encode("one")), "targets": list(reading.encode("two"))}


def test_what_comes_as_ids_gets_its_text_where_something_is_judged(tmp_path):
  task = TextTask("ids", "text", _ids, {"train": 1, "test": 1})
  found = {}
  for split in task.splits:
    Job(task, split, 0, 1, Vocabulary("byte"), tmp_path / split, 0)()
    [example] = CachedSplit(tmp_path / split)
    found[split] = (example["text"], example["references"])
    assert Vocabulary("byte").decode(example["inputs"]) == "one"
  assert found == {"train": ("", []), "test": ("one", ["two"])}


def test_a_split_of_one_shard_is_whole_when_its_job_is_done(vocabulary, tmp_path):
  ingredients = {"rows": "these", "format": 3}
  Job(text_task("zoo", bad=(2,), train=9), "train", 0, 1, vocabulary, tmp_path / "s", 1, ingredients)()
  manifest = CachedSplit(tmp_path / "s").manifest
  assert manifest["ingredients"] == ingredients and manifest["fingerprint"] == digest(ingredients)
  assert len(manifest["left_out"]) == 1 and [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_job_that_was_killed_can_be_done_again(tmp_path):
  """What it had begun is in nobody's way."""
  program = f"""
    import os, signal
    from pathlib import Path
    from mtx.data.cache import write_split

    def examples():
      yield {{"inputs": [1], "targets": [1], "id": "a", "references": [], "text": ""}}
      os.kill(os.getpid(), signal.SIGKILL)

    write_split(Path({str(tmp_path)!r}) / "s", examples(), fingerprint="f", ingredients={{}})
  """
  done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False, timeout=60, env={**os.environ})
  assert done.returncode == -signal.SIGKILL
  assert not (tmp_path / "s").exists()
  Job(task_of(TEXTS), "train", 0, 1, Vocabulary("byte"), tmp_path / "s", 0)()
  assert len(CachedSplit(tmp_path / "s")) == len(TEXTS)
