import json
import logging
import shutil
from itertools import islice

import numpy as np
import pytest
from tiny_checkout import task, write

from mtx.data.build import build_mixture
from mtx.data.feed import feed, validation_batches
from mtx.errors import UserError
from mtx.tasks.mixture import mixture as join
from mtx.tasks.source import seqio
from mtx.tasks.superni import prompt
from mtx.tasks.superni import superni as provider

SMALL = {"vocabulary_size": 60, "inputs_length": 512}
QUIET = {"log": lambda line: None}
REVERSE, PLURAL, RHYME = "task1_reverse", "task2_plural_forms", "task3_rhyme"


def superni(path: str, *, vocabulary: str | None = None, vocabulary_size: int = 8192, **settings):
  """The checkout as a registered source."""
  return join([provider(path, **settings)], vocabulary=vocabulary, vocabulary_size=vocabulary_size)


def words(text: str) -> int:
  return len(text.split())


def example(name: str, split: str, position: int = 0) -> dict:
  dataset = seqio.get_mixture_or_task(name).get_dataset(None, split, shuffle=False)
  return next(islice(dataset.as_numpy_iterator(), position, None))


# What Tk-Instruct's collator makes of a task; every space and line break counts.
WHOLE = (
  "Definition: Turn the word round.\n\n"
  " Positive Example 1 -\nInput: moon.\n Output: noom.\n\n"
  " Positive Example 2 -\nInput: is it far?\n Output: far it is.\n\n"
  "Now complete the following example -\nInput: word7.\nOutput: "
)


def test_the_encoding_is_tk_instructs():
  assert prompt(task(REVERSE, 1), "word7 ", count=words, inputs_length=100) == WHOLE


def test_parts_of_the_encoding_can_be_left_out():
  made = prompt(task(REVERSE, 1), "word7", count=words, inputs_length=100, definition=False, positives=1)
  assert made == " Positive Example 1 -\nInput: moon.\n Output: noom.\n\n" + WHOLE[WHOLE.index("Now") :]
  made = prompt(task(REVERSE, 1), "Ends here!", count=words, inputs_length=100, positives=0)
  assert made == WHOLE[: WHOLE.index(" Positive")] + WHOLE[WHOLE.index("Now") :].replace("word7.", "Ends here!")


def test_positive_examples_are_added_while_all_fits():
  tokens = lambda length: prompt(task(REVERSE, 1), "word7", count=words, inputs_length=length)
  assert tokens(words(WHOLE) + 1) == WHOLE
  first = WHOLE[: WHOLE.index(" Positive Example 2")] + WHOLE[WHOLE.index("Now") :]
  assert tokens(words(WHOLE)) == first and tokens(words(first) + 1) == first
  none = WHOLE[: WHOLE.index(" Positive")] + WHOLE[WHOLE.index("Now") :]
  assert tokens(words(first)) == none
  # What is too long even so stays whole: the feed cuts, counts or refuses it.
  assert tokens(3) == none


def test_tasks_and_mixtures_are_registered(checkout):
  source = superni(str(checkout), **SMALL)
  train, heldout = (seqio.MixtureRegistry.get(name) for name in (source.train, source.heldout))
  assert [each.name for each in train.tasks] == [REVERSE, PLURAL]
  assert [each.name for each in heldout.tasks] == [RHYME]
  assert [train.get_rate(each) for each in train.tasks] == [50, 20]
  assert source.categories == {REVERSE: "Text Manipulation", PLURAL: "Grammar", RHYME: "Poetry"}
  assert source.metrics[RHYME] == ("rouge_l", "exact_match_normalized", "exact_match")
  superni(str(checkout), examples=30, **SMALL)
  train = seqio.MixtureRegistry.get(source.train)
  assert [train.get_rate(each) for each in train.tasks] == [30, 20]


def test_splits_are_disjoint_and_test_is_the_first_hundred(checkout, tmp_path):
  source = superni(str(checkout), examples=30, **SMALL)
  reverse, plural = build_mixture(source, source.train, tmp_path / "cache", **QUIET).tasks
  (rhyme,) = build_mixture(source, source.heldout, tmp_path / "cache", **QUIET).tasks
  ids = lambda split: [split[i]["id"] for i in range(len(split))]
  assert list(rhyme.splits) == ["test"]
  assert ids(rhyme.splits["test"]) == [f"{RHYME}-{i:03}" for i in range(100)]
  for cached, sizes in ((reverse, (30, 10)), (plural, (20, 10))):
    train, validation = (set(ids(cached.splits[split])) for split in ("train", "validation"))
    assert (len(train), len(validation)) == sizes and not train & validation


def test_which_instances_stay_does_not_depend_on_their_order(checkout, tmp_path):
  def ids():
    source = superni(str(checkout), examples=25, **SMALL)
    split = build_mixture(source, source.train, tmp_path / "cache", **QUIET).tasks[0].splits["train"]
    return sorted(split[i]["id"] for i in range(len(split)))

  before = ids()
  content = task(REVERSE, 60)
  content["Instances"].reverse()
  write(checkout, REVERSE, content)
  assert ids() == before


def test_the_target_is_one_of_the_references_and_all_are_kept(checkout, tmp_path):
  source = superni(str(checkout), examples=50, **SMALL)
  mixture = build_mixture(source, source.train, tmp_path / "cache", **QUIET)
  split = mixture.tasks[0].splits["train"]
  chosen = set()
  for i in range(len(split)):
    found = split[i]
    number = int(found["id"][-3:])
    assert found["references"] == [f"first{number}", f"second{number}"]
    target = mixture.vocabulary.decode(found["targets"])
    assert target in found["references"]
    chosen.add(target.startswith("first"))
    assert found["text"] == WHOLE.replace("word7", f"word{number}")
  assert chosen == {True, False}  # both kinds occur: it is a draw, by id


def test_seqio_evaluates_against_all_references(checkout):
  superni(str(checkout), **SMALL)
  rhyme = seqio.TaskRegistry.get(RHYME)
  item = example(RHYME, "test", 3)
  target = rhyme.postprocess_fn("first3", example=item, is_target=True)
  prediction = rhyme.postprocess_fn("second3", example=item, is_target=False)
  assert (target, prediction) == (["first3", "second3"], "second3")
  found = {}
  for metric in rhyme.metric_fns:
    found |= metric([target], [prediction])
  assert found == {"rouge_l": pytest.approx(100), "exact_match_normalized": 100, "exact_match": 100}


def test_two_checkouts_in_one_process_do_not_mix(checkout, tmp_path):
  other = tmp_path / "other"
  shutil.copytree(checkout, other)
  content = task(REVERSE, 60)
  content["Definition"] = ["Spell it backwards"]
  write(other, REVERSE, content)
  texts = []
  for root in (checkout, other, checkout):
    source = superni(str(root), **SMALL)
    texts.append(build_mixture(source, source.train, tmp_path / "cache", **QUIET).tasks[0].splits["train"][0]["text"])
  assert texts[0] == texts[2] and "Turn the word round" in texts[0] and "Spell it backwards" in texts[1]


def test_a_prompt_setting_makes_the_cache_stale_by_name(checkout, tmp_path):
  source = superni(str(checkout), **SMALL)
  build_mixture(source, source.train, tmp_path / "cache", **QUIET)
  said = []
  source = superni(str(checkout), positives=1, **SMALL)
  build_mixture(source, source.train, tmp_path / "cache", log=said.append)
  assert said[0] == ("cache is stale: rows.positives 2 -> 1: building task1_reverse train and 3 more again")
  write(checkout, REVERSE, task(REVERSE, 61))
  source = superni(str(checkout), positives=1, vocabulary=str(source.vocabulary.sentencepiece_model_file))
  said.clear()
  build_mixture(source, source.train, tmp_path / "cache", log=said.append)
  assert any(line.startswith("cache is stale: rows.file ") for line in said)


def without(content: dict, field: str) -> dict:
  return {name: value for name, value in content.items() if name != field}


def bad_instance(instance) -> dict:
  content = task(REVERSE, 60)
  content["Instances"][41] = instance
  return content


BAD_FILES = [
  ('{"Definition": ["x"],\n "Categories" ["y"]}', r"tasks/task1_reverse.json is not JSON: line 2, column 15"),
  ("[1, 2]", "tasks/task1_reverse.json holds a list, not an object"),
  (
    without(task(REVERSE, 3), "Definition"),
    r"tasks/task1_reverse.json: field 'Definition' is missing \(fields: Categories, Positive Examples",
  ),
  ({**task(REVERSE, 3), "Instances": []}, "tasks/task1_reverse.json: field 'Instances' is empty"),
  (
    {**task(REVERSE, 3), "Positive Examples": [{"input": "a"}]},
    "tasks/task1_reverse.json: positive example 0 has no field 'output'",
  ),
]
BAD_INSTANCES = [
  ({"id": "a", "input": "b"}, r"instance 41 has no field 'output' \(fields: id, input\)"),
  ({"output": ["b"]}, r"instance 41 has no field 'input' \(fields: output\)"),
  ({"input": "a", "output": []}, r"instance 41 has no field 'output' \(fields: input, output\)"),
  ("text", r"instance 41 has no field 'input' \(it is 'text'\)"),
]


@pytest.mark.parametrize(("content", "message"), BAD_FILES)
def test_a_bad_file_is_named_or_skipped(checkout, caplog, content, message):
  write(checkout, REVERSE, content)
  with pytest.raises(UserError, match=message) as raised:
    superni(str(checkout), **SMALL)
  assert 'superni.on_bad = "skip"' in raised.value.hint
  with caplog.at_level(logging.WARNING):
    source = superni(str(checkout), on_bad="skip", **SMALL)
  assert set(source.categories) == {PLURAL, RHYME}
  assert "left out: tasks/task1_reverse.json" in caplog.text


@pytest.mark.parametrize(("instance", "message"), BAD_INSTANCES)
def test_a_bad_instance_is_named_or_skipped(checkout, tmp_path, caplog, instance, message):
  write(checkout, REVERSE, bad_instance(instance))
  with pytest.raises(UserError, match=r"tasks/task1_reverse\.json: " + message) as raised:
    superni(str(checkout), **SMALL)
  assert 'superni.on_bad = "skip"' in raised.value.hint
  with caplog.at_level(logging.WARNING):
    source = superni(str(checkout), on_bad="skip", **SMALL)
  assert "tasks/task1_reverse.json: 1 of 60 instances left out" in caplog.text
  assert seqio.MixtureRegistry.get(source.train).get_rate(seqio.TaskRegistry.get(REVERSE)) == 49
  assert sum(1 for _ in seqio.TaskRegistry.get(REVERSE).get_dataset(None, "train", shuffle=False)) == 49


def test_a_folder_that_is_no_checkout_is_named(checkout, tmp_path, monkeypatch):
  with pytest.raises(UserError, match=r"superni\.path is '.*gone': there is no such folder"):
    superni(str(tmp_path / "gone"))
  monkeypatch.delenv("MTX_DATA", raising=False)
  with pytest.raises(
    UserError, match=r"'gone': there is no .*\n  .* in \$MTX_DATA too: it is not set\n  give the folder"
  ):
    superni("gone")
  monkeypatch.setenv("MTX_DATA", str(tmp_path))
  with pytest.raises(UserError, match=rf"'gone': .*\n  nor is it in \$MTX_DATA, {tmp_path}\n"):
    superni("gone")
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match=r"superni\.path is '.*empty': it holds no tasks/\*\.json"):
    superni(str(tmp_path / "empty"))
  (checkout / "splits/default/test_tasks.txt").unlink()
  with pytest.raises(UserError, match=r"it has no splits/default/test_tasks\.txt"):
    superni(str(checkout), **SMALL)


def test_a_split_that_names_a_task_without_a_file(checkout, caplog):
  listing = checkout / "splits/default/train_tasks.txt"
  listing.write_text("task1_revers\n\ntask2_plural-forms\n")
  message = r"train_tasks\.txt: task 'task1_revers' has no file tasks/task1_revers\.json\n.*`task1_reverse`"
  with pytest.raises(UserError, match=message):
    superni(str(checkout), **SMALL)
  with caplog.at_level(logging.WARNING):
    source = superni(str(checkout), on_bad="skip", **SMALL)
  assert set(source.categories) == {PLURAL, RHYME}
  assert "1 tasks of train_tasks.txt have no file" in caplog.text


def test_other_bad_settings_are_named(checkout, tmp_path):
  with pytest.raises(UserError, match=r"superni\.on_bad is 'ignore'"):
    superni(str(checkout), on_bad="ignore")
  with pytest.raises(UserError, match=r"gone\.model is not there"):
    superni(str(checkout), vocabulary=str(tmp_path / "gone.model"))
  with pytest.raises(UserError, match="a unigram vocabulary of 9 pieces can not be trained"):
    superni(str(checkout), vocabulary_size=9)


def test_real_tasks_become_well_filled_batches(shared, tmp_path):
  """A few real tasks through everything: packed rows nearly full, inputs as long as the paper's."""
  root = tmp_path / "checkout"
  (root / "tasks").mkdir(parents=True)
  (root / "splits/default").mkdir(parents=True)
  listed = {
    split: (shared / f"superni/splits/default/{split}_tasks.txt").read_text().split() for split in ("train", "test")
  }
  for split, number in (("train", 6), ("test", 2)):
    names = listed[split][:: max(1, len(listed[split]) // number)][:number]
    (root / f"splits/default/{split}_tasks.txt").write_text("\n".join(names))
    for name in names:
      shutil.copy(shared / f"superni/tasks/{name}.json", root / "tasks")
  source = superni(str(root), vocabulary_size=2000, inputs_length=1024, examples=60)
  train = build_mixture(source, source.train, tmp_path / "cache", **QUIET)
  heldout = build_mixture(source, source.heldout, tmp_path / "cache", **QUIET)
  assert [len(each.splits["train"]) for each in train.tasks] == [60] * 6
  assert [len(each.splits["test"]) for each in heldout.tasks] == [100] * 2
  for cached in train.tasks:
    found = cached.splits["train"][0]
    assert found["text"].startswith("Definition: ") and found["text"].endswith("\nOutput: ")
    assert " Positive Example 1 -\nInput: " in found["text"]
    text = train.vocabulary.decode(found["inputs"])
    assert text.split()[:4] == found["text"].split()[:4]
  batches = iter(feed(train, architecture="encdec", batch=16, inputs_length=1024, targets_length=128))
  fill = np.mean([(batch["encoder_segment_ids"] > 0).mean() for batch in islice(batches, 32)])
  batches.close()
  assert fill >= 0.9
  rows = sum(
    int((batch["encoder_segment_ids"].max(axis=1) > 0).sum())
    for batch in validation_batches(
      heldout, architecture="encdec", split="test", batch=32, inputs_length=256, targets_length=64, limit=20
    )
  )
  assert rows == 40


def test_instances_without_ids_get_unique_ones(checkout):
  content = task(REVERSE, 60)
  for instance in content["Instances"][:20]:
    del instance["id"]
  content["Instances"][30]["id"] = content["Instances"][31]["id"]
  write(checkout, REVERSE, content)
  superni(str(checkout), examples=60, **SMALL)
  dataset = [
    json.loads(json.dumps(each["id"].decode()))
    for split in ("train", "validation")
    for each in seqio.TaskRegistry.get(REVERSE).get_dataset(None, split, shuffle=False).as_numpy_iterator()
  ]
  assert len(dataset) == len(set(dataset)) == 60
