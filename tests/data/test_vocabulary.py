import hashlib

import pytest

from mtx.data.vocabulary import Vocabulary
from mtx.errors import UserError

TEXTS = ["Sort the numbers 3 1 2.", "naïve café – “quotes”", "", "  two  spaces\nand a line "]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  from mtx.tasks.vocabularies import trained

  texts = ["sort the numbers : three one two", "translate the word", "which word is odd", "naïve café 12"] * 5
  return trained(texts, 30, dir=tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("extra_ids", [0, 7])
@pytest.mark.parametrize("kind", ["sentencepiece", "byte"])
def test_ids_equal_those_of_seqio(model, kind, extra_ids):
  import seqio

  if kind == "byte":
    ours, theirs = Vocabulary("byte", extra_ids=extra_ids), seqio.ByteVocabulary(extra_ids)
  else:
    ours = Vocabulary("sentencepiece", model, extra_ids)
    theirs = seqio.SentencePieceVocabulary(str(model), extra_ids)
  assert (ours.size, ours.pad_id, ours.eos_id) == (theirs.vocab_size, theirs.pad_id, theirs.eos_id)
  for text in TEXTS:
    ids = ours.encode(text)
    assert ids == list(theirs.encode(text))
    assert ours.decode(ids) == theirs.decode(ids)


def test_decoding_stops_at_eos_and_leaves_padding_out():
  vocabulary = Vocabulary("byte", extra_ids=4)
  ids = vocabulary.encode("héllo")
  assert vocabulary.decode([0, *ids[:3], 0, *ids[3:], 1, *ids, 0, 0]) == "héllo"
  assert vocabulary.decode([*ids, vocabulary.size - 1, vocabulary.size + 40]) == "héllo"
  assert vocabulary.decode([]) == ""


def test_json_keeps_the_path_relative_to_the_cache(model):
  root = model.parent
  vocabulary = Vocabulary("sentencepiece", model, 3)
  entry = vocabulary.to_json(root)
  assert entry == {"kind": "sentencepiece", "path": model.name, "extra_ids": 3}
  assert Vocabulary.from_json(entry, root).fingerprint == vocabulary.fingerprint
  assert vocabulary.fingerprint != Vocabulary("sentencepiece", model).fingerprint


def test_what_is_no_vocabulary_is_named(tmp_path):
  (tmp_path / "text.model").write_text("not a model")
  with pytest.raises(UserError, match=r"text\.model is not a SentencePiece model"):
    Vocabulary("sentencepiece", tmp_path / "text.model").encode("a")
  with pytest.raises(UserError, match=r"gone\.model is not there"):
    Vocabulary("sentencepiece", tmp_path / "gone.model")
  with pytest.raises(UserError, match="kind 'wordpiece' is not known"):
    Vocabulary("wordpiece")


def test_fingerprints_are_those_of_earlier_caches(model):
  """An index without special ids stays readable, and nothing in a cache is built again."""

  def earlier(content: bytes, extra_ids: int) -> str:
    return hashlib.blake2b(content + str(extra_ids).encode(), digest_size=16).hexdigest()

  assert Vocabulary("byte", extra_ids=4).fingerprint == earlier(b"byte", 4)
  assert Vocabulary("sentencepiece", model, 3).fingerprint == earlier(model.read_bytes(), 3)
  assert Vocabulary("digits").fingerprint != Vocabulary("byte").fingerprint
  entries = [
    {"kind": "byte", "path": None, "extra_ids": 4},
    {"kind": "sentencepiece", "path": model.name, "extra_ids": 3},
  ]
  for entry in entries:
    vocabulary = Vocabulary.from_json(entry, model.parent)
    assert vocabulary.to_json(model.parent) == entry
    assert (vocabulary.start_id, vocabulary.pad_id, vocabulary.eos_ids, vocabulary.unk_id) == (0, 0, (1,), 2)
    assert vocabulary.closes_inputs and vocabulary.opens_id is None and vocabulary.writing.chat is None
