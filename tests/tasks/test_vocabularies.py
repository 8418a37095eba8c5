import json
import pickle

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mtx.errors import UserError
from mtx.tasks import vocabularies
from mtx.tasks.encode import encoded
from mtx.tasks.task import Reading, TextTask

TEXTS = ["sort list : 3 1 2", "reverse string : a b c", "lookup key? x9y->z, (q) it's"] * 3


def test_training_is_deterministic_and_done_once(tmp_path):
  first = vocabularies.trained(TEXTS, 60, dir=tmp_path / "one")
  second = vocabularies.trained(TEXTS, 60, dir=tmp_path / "two")
  assert first.read_bytes() == second.read_bytes()
  (path,) = (tmp_path / "one").iterdir()
  before = path.stat().st_mtime_ns
  vocabularies.trained(iter(TEXTS), 60, dir=tmp_path / "one")
  assert path.stat().st_mtime_ns == before
  vocabularies.trained([*TEXTS, "more"], 60, dir=tmp_path / "one")
  vocabularies.trained(TEXTS, 61, dir=tmp_path / "one")
  assert len(list((tmp_path / "one").iterdir())) == 3


@pytest.mark.parametrize("model_type", vocabularies.MODEL_TYPES)
def test_the_layout_is_t5s(tmp_path, model_type):
  vocabulary = vocabularies.sentencepiece(vocabularies.trained(TEXTS, 60, model_type, tmp_path))
  assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id, vocabulary.bos_id) == (0, 1, 2, -1)


def test_a_word_vocabulary_has_one_id_for_each_word(tmp_path):
  vocabulary = vocabularies.sentencepiece(vocabularies.trained(TEXTS, 60, "word", tmp_path))
  words = sorted({word for text in TEXTS for word in text.split()})
  assert vocabulary.vocab_size == len(words) + 3
  for text in TEXTS:
    assert len(vocabulary.encode(text)) == len(text.split())
    assert vocabulary.decode(vocabulary.encode(text)) == text
  assert vocabulary.encode("sort unheard")[1] == vocabulary.unk_id


def test_long_and_odd_text_is_learned_from_too(tmp_path):
  """The trainer skips sentences over its limit, and those with a NUL, without a word."""
  texts = ["plain words " * 1000 + "zebra", "a\0quagga", "okapi" * 1500]
  vocabulary = vocabularies.sentencepiece(vocabularies.trained(texts, 60, "word", tmp_path))
  assert vocabulary.unk_id not in vocabulary.encode("plain zebra quagga")


def test_no_text_is_unknown_to_a_large_vocabulary(tmp_path):
  """Scripts and signs that the training text lacks come back as they were."""
  words = [f"{a}{b}{c} {c}{a}" for a in "abcdefghijklmn" for b in "opqrstuvwxyz" for c in "aeiouy"]
  vocabulary = vocabularies.sentencepiece(vocabularies.trained(words, vocabularies.BYTES_FROM, dir=tmp_path))
  for text in ("這件物品用氣泡紙包裝了", "snake_case {x} ~ ☃", "ไม่รู้"):
    ids = vocabulary.encode(text)
    assert vocabulary.unk_id not in ids and vocabulary.decode(ids) == text


def test_what_does_not_fit_is_named(tmp_path):
  with pytest.raises(UserError, match="vocabulary type 'bpe' is not known\n  types: unigram, word"):
    vocabularies.trained(TEXTS, 60, "bpe", tmp_path)
  with pytest.raises(UserError, match="there is no text"):
    vocabularies.trained(["", " \n"], 60, dir=tmp_path)
  with pytest.raises(UserError, match=r"gone\.model is not there"):
    vocabularies.sentencepiece(tmp_path / "gone.model")
  (tmp_path / "text.model").write_text("text")
  with pytest.raises(UserError, match=r"text\.model is not a SentencePiece model"):
    vocabularies.sentencepiece(tmp_path / "text.model")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
  """A folder of Hugging Face: byte-level pieces, no start token, a chat template."""
  folder = tmp_path_factory.mktemp("qwen")
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  tokenizer.train_from_iterator(
    TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
  )
  tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
  tokenizer.save(str(folder / "tokenizer.json"))
  settings = {"eos_token": "<|im_end|>", "chat_template": CHATML}
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))
  return folder


CHATML = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def test_any_vocabulary_is_one_of_seqio(qwen, shared):
  import seqio
  import tensorflow as tf

  names = [qwen, qwen / "tokenizer.json", shared / "tokenizers" / "maxtext_default_32k.model", "digits-3"]
  for name in names:
    vocabulary = vocabularies.opened(name, extra_ids=5)
    ours = vocabularies.unwrapped(vocabulary)
    assert isinstance(vocabulary, seqio.Vocabulary) and (vocabulary.vocab_size, vocabulary.extra_ids) == (ours.size, 5)
    assert (vocabulary.eos_id, vocabulary.bos_id, vocabulary.unk_id) == (ours.eos_id, ours.start_id, ours.unk_id)
    for text in [*TEXTS[:3], "naïve 123 ☃", ""]:
      ids = vocabulary.encode(text)
      assert ids == ours.encode(text)
      assert vocabulary.encode_tf(tf.constant(text)).numpy().tolist() == ids
      tokens = tf.constant([[*ids, ours.eos_id, *ids]], tf.int32)
      assert vocabulary.decode_tf(tokens).numpy().tolist() == [ours.decode(ids).encode()]
      assert vocabulary.decode_tf(tokens[0]).numpy() == ours.decode(ids).encode()
      assert vocabulary.decode(tokens[0]) == ours.decode(ids)
    copy = pickle.loads(pickle.dumps(vocabulary))
    assert copy == vocabulary and hash(copy) == hash(vocabulary)
    assert vocabulary != vocabularies.opened(name, extra_ids=6) and vocabulary != seqio.ByteVocabulary(5)


def test_seqios_own_classes_are_used_where_they_fit(tmp_path):
  import seqio

  path = vocabularies.trained(TEXTS, 60, dir=tmp_path)
  assert vocabularies.opened(path, 3) == seqio.SentencePieceVocabulary(str(path), 3)
  assert vocabularies.opened("bytes", 3) == seqio.ByteVocabulary(3)
  assert vocabularies.unwrapped(seqio.ByteVocabulary()) is None
  assert (
    vocabularies.writing(seqio.ByteVocabulary()) == vocabularies.T5
    and vocabularies.sentinels(seqio.ByteVocabulary(9)) == 9
  )
  with pytest.raises(UserError, match=r"vocabulary .*gone\.model is not there"):
    vocabularies.opened(tmp_path / "gone.model")


def test_a_seqio_task_tokenises_with_a_folder(qwen):
  """Through SeqIO's own preprocessors, in its pipeline."""
  import seqio
  import tensorflow as tf

  vocabulary = vocabularies.opened(qwen)
  feature = seqio.Feature(vocabulary, add_eos=True, dtype=tf.int32)
  rows = tf.data.Dataset.from_tensor_slices({"inputs": TEXTS[:2], "targets": TEXTS[1:3]})
  features = {"inputs": feature, "targets": feature}
  tokens = seqio.preprocessors.append_eos(seqio.preprocessors.tokenize(rows, features), features)
  for made, text in zip(tokens.as_numpy_iterator(), TEXTS, strict=False):
    assert made["inputs"].tolist() == [*vocabulary.encode(text), vocabulary.eos_id]


def rows(split, reading):
  """Of a task: a pair, and a conversation."""
  del split, reading
  yield {"inputs": "sort list", "targets": "3 1 2"}
  yield {"turns": [("user", "sort"), ("assistant", "list"), ("user", "more"), ("assistant", "3 1")]}


def test_examples_are_written_as_the_family_writes_them(qwen):
  """A line's end and no EOS after inputs; a conversation by its template, of which answers count."""
  ours = vocabularies.unwrapped(vocabularies.opened(qwen))
  task = TextTask("pairs", "pairs", rows, {"train": 2})
  pair, chat = encoded(task, "train", Reading(ours.encode, ours.size), ours.eos_id, writing=ours.writing)
  assert pair["inputs"].tolist() == ours.encode("sort list\n")
  assert pair["targets"].tolist() == [*ours.encode("3 1 2"), ours.eos_id]
  assert chat["inputs"].tolist() == ours.chat_ids([("user", "sort")], add_generation_prompt=True)
  assert ours.decode(chat["targets"]) == "list" and chat["references"] == ["3 1"] and chat["text"] == "sort"
  said = chat["targets"][chat["weights"] > 0].tolist()
  assert said == [*ours.encode("list"), ours.eos_id, *ours.encode("3 1"), ours.eos_id]
  assert {chat["inputs"].dtype, chat["targets"].dtype, chat["weights"].dtype} == {np.dtype("int32"), np.dtype("uint8")}
  opened = ours.writing._replace(opens_id=7, closes_inputs=True, chat=None)
  pair, chat = encoded(task, "train", Reading(ours.encode, ours.size), ours.eos_id, writing=opened)
  assert pair["inputs"].tolist() == [7, *ours.encode("sort list"), ours.eos_id] and pair["targets"][0] == 7
  assert chat["inputs"].tolist() == [*ours.encode("sort"), ours.eos_id]
