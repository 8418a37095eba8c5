import json
import pickle
import re

import pytest

from mtx.data.vocabulary import Vocabulary
from mtx.errors import UserError
from mtx.tasks.vocabularies import trained
from mtx.tokens.digits import Grouping, named

TEXT = "add 12345 and 9.11, x12y 007 = 1234567!"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  texts = ["add the numbers and then take y from x12y !", "three = four , . x y"] * 5
  folder = tmp_path_factory.mktemp("models")
  return {None: None} | {kind: trained(texts, 60, kind, folder) for kind in ("unigram", "word")}


def test_numbers_are_grouped_from_either_end():
  assert Grouping(1)("120") == ["1", "2", "0"]
  assert Grouping(3, "right")("1234567") == ["1", "234", "567"]
  assert Grouping(3, "left")("1234567") == ["123", "456", "7"]
  assert Grouping(2, "right")("123") == ["1", "23"]
  for grouping in (Grouping(most, align) for most in (1, 2, 3) for align in ("left", "right")):
    for number in ("7", "42", "007", "123456"):
      groups = grouping(number)
      assert "".join(groups) == number and set(groups) <= set(grouping.groups)
      assert sum(len(group) < grouping.most for group in groups) <= 1


@pytest.mark.parametrize("base", [None, "unigram", "word"])
@pytest.mark.parametrize("name", ["digits", "digits-2", "digits-3-left", "digits-3-right"])
def test_text_comes_back_and_numbers_are_whole_groups(models, base, name):
  grouping, _ = named(name)
  vocabulary = Vocabulary("digits", models[base], 4, grouping=grouping)
  ids = vocabulary.encode(TEXT)
  assert vocabulary.decode([*ids, vocabulary.size - 1, vocabulary.eos_id, *ids]) == TEXT
  wanted = [group for number in re.findall("[0-9]+", TEXT) for group in grouping(number)]
  shown = [(vocabulary.spell(token) or b"").decode().strip() for token in ids]
  assert [text for text in shown if text.isdigit()] == wanted
  first = Vocabulary("sentencepiece", models[base]).size if base else 259
  assert all((token >= first) == text.isdigit() or base == "word" for token, text in zip(ids, shown, strict=True))
  groups = len(grouping.groups) * (2 if base == "word" else 1) + (base == "word")
  assert vocabulary.size == first + groups + 4 and max(ids) < vocabulary.size - 4
  assert len({vocabulary.written(token) for token in range(first, vocabulary.size - 4)}) == groups


def test_text_around_numbers_is_encoded_as_by_the_base(models):
  for base in models:
    plain = Vocabulary("sentencepiece", models[base]) if base else Vocabulary("byte")
    vocabulary = Vocabulary("digits", models[base], grouping=Grouping(3))
    text = "take the numbers from"
    assert vocabulary.encode(text) == plain.encode(text)
    assert (vocabulary.start_id, vocabulary.eos_ids, vocabulary.pad_id) == (0, (1,), 0) and vocabulary.closes_inputs


def test_private_characters_are_not_numbers(models):
  vocabulary = Vocabulary("digits", models["unigram"], grouping=Grouping(3))
  assert not any(c.isdigit() for c in vocabulary.decode(vocabulary.encode("add \U000f0003")))


def test_what_decides_ids_is_in_the_fingerprint_and_the_index(models, tmp_path):
  made = [
    Vocabulary("digits", models[base], grouping=Grouping(*each))
    for base in models
    for each in ((1,), (3,), (3, "left"))
  ]
  others = [Vocabulary("byte"), *(Vocabulary("sentencepiece", path) for path in models.values() if path)]
  assert len({vocabulary.fingerprint for vocabulary in [*made, *others]}) == len(made) + len(others)
  for vocabulary in made:
    root = vocabulary.path.parent if vocabulary.path else tmp_path
    entry = json.loads(json.dumps(vocabulary.to_json(root)))
    for other in (Vocabulary.from_json(entry, root), pickle.loads(pickle.dumps(vocabulary))):
      assert other == vocabulary and other.encode(TEXT) == vocabulary.encode(TEXT)


def test_what_is_no_grouping_is_named():
  assert named("bytes") is None and named("digits.model") is None
  with pytest.raises(UserError, match="4 digits a token\n  1 to 3"):
    named("digits-4")
  with pytest.raises(UserError, match="aligned 'up'\n  valid choices: left, right"):
    named("digits-3-up")
