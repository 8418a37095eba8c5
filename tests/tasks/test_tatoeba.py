import json

import pytest

from mtx.errors import UserError
from mtx.tasks.task import Reading
from mtx.tasks.tatoeba import tatoeba


def write(root, *pairs):
  lines = [json.dumps(dict(zip(("lang", "text", "eng"), pair, strict=False)), ensure_ascii=False) for pair in pairs]
  (root / "tatoeba_test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
  return str(root)


def rows(task, *splits, reading=None):
  return [row for split in splits or task.splits for row in task.rows(split, reading or Reading())]


def test_a_pair_is_translated_both_ways(tmp_path):
  collection = tatoeba(write(tmp_path, ("deu", " Hallo ", "Hello"), ("cmn", "你好", "Hello")))
  assert [task.name for task in collection.train] == [
    "tatoeba_deu_eng", "tatoeba_eng_deu", "tatoeba_cmn_eng", "tatoeba_eng_cmn"
  ]  # fmt: skip
  assert [task.language for task in collection.train] == ["en", "de", "en", "zh"]
  assert {task.metrics for task in collection.train} == {("chrf", "bleu")}
  assert [rows(task) for task in collection.train] == [
    [{"inputs": "Translate German to English: Hallo", "targets": "Hello"}],
    [{"inputs": "Translate English to German: Hello", "targets": "Hallo"}],
    [{"inputs": "Translate Chinese to English: 你好", "targets": "Hello"}],
    [{"inputs": "Translate English to Chinese: Hello", "targets": "你好"}],
  ]


def test_splits_depend_on_the_english_sentence_alone(tmp_path):
  pairs = [(lang, f"{lang} {n}", f"Sentence {n}") for lang in ("deu", "fra") for n in range(400)]
  german, _, french, _ = tatoeba(write(tmp_path, *pairs)).train
  sizes = dict(german.splits)
  assert sizes == french.splits and sum(sizes.values()) == 400
  assert 20 <= sizes["test"] <= 60 and 8 <= sizes["validation"] <= 35
  split_of = lambda task: {row["targets"]: split for split in task.splits for row in task.rows(split, Reading())}
  splits = split_of(german)
  assert split_of(french) == splits
  assert split_of(tatoeba(write(tmp_path, *pairs[399::-1])).train[0]) == splits
  shouted = tatoeba(write(tmp_path, *[(lang, text, english.upper()) for lang, text, english in pairs])).train[0]
  assert {english.capitalize(): split for english, split in split_of(shouted).items()} == splits


def test_the_release(shared):
  collection = tatoeba(str(shared / "tatoeba"), heldout_languages=["swh", "tel"])
  assert (len(collection.train), len(collection.heldout)) == (64, 4)
  assert {task.language for task in collection.heldout} == {"en", "sw", "te"}
  tested, learned, total = set(), set(), 0
  for task in collection.train + collection.heldout:
    for split, count in task.splits.items():
      found = rows(task, split)
      assert len(found) == count
      if task.name.endswith("_eng"):
        total += count
        (learned if split == "train" else tested).update(row["targets"] for row in found)
  assert total == 30_800 and not tested & learned
  assert all(0.05 < task.splits["test"] / sum(task.splits.values()) < 0.15 for task in collection.train)


def test_languages_are_chosen(tmp_path):
  path = write(tmp_path, ("deu", "a", "b"), ("fra", "c", "d"))
  assert len(tatoeba(path, languages=["fra"]).train) == 2 and tatoeba(path, languages=[]).train == ()
  with pytest.raises(UserError, match=r"tatoeba\.languages: 'de' is not known\n.*`deu`"):
    tatoeba(path, languages=["fra", "de"])
  with pytest.raises(UserError, match=r"tatoeba\.heldout_languages: 'spa' is not known"):
    tatoeba(path, heldout_languages=["spa"])


def test_bad_lines_are_named_or_skipped(tmp_path):
  path = write(tmp_path, ("deu", "a", "b"), ("deu", "c"), ("deu", " ", "d"), ("deu", "e", "f"))
  task = tatoeba(path).train[0]
  assert sum(task.splits.values()) == 2
  with pytest.raises(UserError, match=r"tatoeba_test\.jsonl:2: no field 'eng' \(fields: lang, text\)"):
    rows(task)
  reading = Reading(budget=2)
  rows(task, "train", reading=reading)
  assert reading.bad[1] == (f"{tmp_path.name}/tatoeba_test.jsonl:3", "field 'text' is empty")
  (tmp_path / "tatoeba_test.jsonl").write_bytes(b'{"lang": "deu", "text": "\xe4", "eng": "b"}\n{"lang"\n')
  with pytest.raises(UserError, match=r"tatoeba_test\.jsonl:1: not UTF-8 at column 26"):
    rows(task)


def test_a_bad_line_counts_for_its_language_alone(tmp_path):
  path = write(tmp_path, ("fra", "a", "b"), ("fra", "c"), ("deu", "e", "f"))
  with (tmp_path / "tatoeba_test.jsonl").open("a") as file:
    file.write('{"lang"\n{"lang": 3, "text": "a", "eng": "b"}\n{"lang": "ita", "text": ""}\n')
  counted = {}
  for task in tatoeba(path).train:
    reading = Reading(budget=9)
    rows(task, "train", reading=reading)
    counted[task.name] = [place.rpartition(":")[2] for place, _ in reading.bad]
  lost = ["4", "2", "5", "6"]  # its own, and those of no language that there is
  assert counted == {"tatoeba_fra_eng": lost, "tatoeba_eng_fra": lost, "tatoeba_deu_eng": [], "tatoeba_eng_deu": []}


def test_what_is_missing_is_named(tmp_path):
  with pytest.raises(UserError, match=r"tatoeba\.path is '.*': it holds no tatoeba_test\.jsonl\*"):
    tatoeba(str(tmp_path))
  with pytest.raises(UserError, match=r"tatoeba\.path is '.*gone': there is no such folder"):
    tatoeba(str(tmp_path / "gone"))
  with pytest.raises(UserError, match=r"tatoeba_test\.jsonl: field 'lang' is 'german', which is no code of ISO 639-3"):
    tatoeba(write(tmp_path, ("german", "a", "b")))
