"""The ids of a text, put together from those of its lines, are SentencePiece's own."""

import functools
import json
import random

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

from mtx.data.vocabulary import Vocabulary
from mtx.tasks.superni import prompt
from mtx.tasks.vocabularies import trained
from mtx.tokens.lines import encoder, separable

MODELS = ("mtx_t5style_en_8k", "mtx_t5style_multi_16k", "seqio_test", "maxtext_default_32k")
TRAPS = (
  "the", "naïve", "iii", "(iii)", "aaaaaaa", "banana", "12345", "a▁b", "▁", "\u200b", "\u00a0x", "e\u0301", "\u0301a",
  "\u00a8", "ﬁ", "日本語", "тест", "🙂", "<unk>", "</s>", "x" * 40, "\t", "\r", "  ", "\0", "word. Another",
)  # fmt: skip


def model(shared, name):
  return (shared / "tokenizers" / f"{name}.model").read_bytes()


@functools.cache
def both(content):
  """(our encoder, SentencePiece)"""
  theirs = sentencepiece.SentencePieceProcessor(model_proto=content)
  return encoder(theirs, content), theirs


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_those_of_the_whole_text(shared, name):
  ours, theirs = both(model(shared, name))
  assert separable(proto.ModelProto.FromString(model(shared, name)))
  rng = random.Random(0)
  for _ in range(1500):
    text = "".join(rng.choice(TRAPS) + rng.choice(" \n\n") * rng.randint(0, 2) for _ in range(rng.randint(0, 12)))
    assert ours(text).tolist() == theirs.encode(text), repr(text)


def test_ids_of_real_prompts_are_those_of_the_whole_text(shared):
  ours, theirs = both(model(shared, MODELS[0]))
  for path in sorted((shared / "superni" / "tasks").glob("*.json"))[::15]:
    task = json.loads(path.read_text())
    for instance in task["Instances"][:30]:
      text = prompt(task, instance["input"], count=len, inputs_length=10**6)
      assert ours(text).tolist() == theirs.encode(text)


@pytest.mark.parametrize("word", ["eee", "-----", "zzzzz"])
def test_words_whose_segmentations_tie_are_left_to_the_whole_text(shared, word):
  """What stands before such a word decides, by rounding: alone it may fall otherwise."""
  ours, theirs = both(model(shared, MODELS[0]))
  alone = theirs.encode(word)
  texts = [f"{'Some more words stand here. ' * repeats}\n{word}" for repeats in range(60)]
  assert any(theirs.encode(text)[-len(alone) :] != alone for text in texts)
  for text in texts:
    assert ours(text).tolist() == theirs.encode(text)


def test_a_line_is_encoded_once(shared, monkeypatch):
  content = model(shared, MODELS[0])
  theirs = sentencepiece.SentencePieceProcessor(model_proto=content)
  asked, encode = [], theirs.encode
  monkeypatch.setattr(theirs, "encode", lambda text: asked.append(text) or encode(text))
  ours = encoder(theirs, content)
  for number in range(3):
    ours(f"Say what follows.\nInput: {number}")
  assert asked == ["Say what follows.", "Input: 0", "Input: 1", "Input: 2"]


def changed(shared, change):
  found = proto.ModelProto.FromString(model(shared, MODELS[0]))
  change(found)
  return found


@pytest.mark.parametrize(
  "change",
  [
    lambda m: setattr(m.normalizer_spec, "name", "identity"),  # keeps line ends
    lambda m: setattr(m.normalizer_spec, "name", "rules of my own"),
    lambda m: setattr(m.normalizer_spec, "remove_extra_whitespaces", False),
    lambda m: setattr(m.normalizer_spec, "add_dummy_prefix", False),
    lambda m: setattr(m.trainer_spec, "treat_whitespace_as_suffix", True),
    lambda m: setattr(m.trainer_spec, "model_type", proto.TrainerSpec.WORD),
    lambda m: m.pieces.add(piece="of▁the", score=-1.0),
    lambda m: setattr(next(p for p in m.pieces if p.piece == "▁"), "piece", "▁qqq"),
  ],
)
def test_other_models_encode_whole_texts(shared, change):
  found = changed(shared, change)
  assert not separable(found)
  content = found.SerializeToString()
  ours, theirs = both(content)
  for text in ("of the\nof the", "one\n two", " x \n\n y "):
    assert ours(text).tolist() == theirs.encode(text)


@pytest.mark.parametrize("size", [60, 300])
def test_every_kind_of_vocabulary_gives_the_array_of_its_ids(size, tmp_path):
  path = trained([f"the cat number {i} sat\non mat {i * i}" for i in range(300)], size, dir=tmp_path)
  for vocabulary in (
    Vocabulary("sentencepiece", path, 3),
    Vocabulary("byte"),
    Vocabulary("digits"),
    Vocabulary("digits", path),
  ):
    for text in ("the cat\nsat 12 34\nthe cat\n", "", "\n"):
      found = vocabulary.encode_array(text)
      assert found.dtype == "int32" and found.tolist() == vocabulary.encode(text)
