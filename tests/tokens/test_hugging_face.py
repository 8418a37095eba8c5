"""Folders of families: ids equal those of transformers, special ids are what generation uses."""

import io
import json
import pickle
from dataclasses import replace

import folders
import pytest
import sentencepiece

from mtx.data.vocabulary import Vocabulary
from mtx.errors import UserError
from mtx.tokens.sentencepieces import read_llama2c

FAMILIES = ("gpt2", "llama3", "qwen", "t5", "bart")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """folder(family): made once."""
  root = tmp_path_factory.mktemp("families")
  made = {name: getattr(folders, name)(root / name) for name in FAMILIES}
  return made.__getitem__


def bpe_pieces() -> bytes:
  """A model of Llama 2's kind: BPE with bytes, no padding, text as it is."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([text for text in folders.CORPUS if text.strip()]),
    model_writer=model,
    model_type="bpe",
    vocab_size=420,
    byte_fallback=True,
    unk_id=0,
    bos_id=1,
    eos_id=2,
    pad_id=-1,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    minloglevel=2,
  )
  return model.getvalue()


def llama2(folder, model: bytes, **settings):
  """A folder with a `.model` alone."""
  named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}
  settings = {
    "tokenizer_class": "LlamaTokenizer",
    "legacy": False,
    "chat_template": folders.LLAMA2,
    **named,
    **settings,
  }
  config = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2}
  folders.write(folder, None, tokenizer_config=settings, config=config)
  (folder / "tokenizer.model").write_bytes(model)
  return folder


def written(vocabulary, ids):
  return [vocabulary.written(token) for token in ids]


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_and_text_equal_those_of_transformers(folder, family):
  transformers = pytest.importorskip("transformers")
  ours, theirs = Vocabulary.open(folder(family)), transformers.AutoTokenizer.from_pretrained(str(folder(family)))
  assert ours.kind == "tokenizers" and ours.size == len(theirs)
  begin = ours.opens_id if ours.closes_inputs else ours.start_id
  for text in folders.TEXTS:
    ids = ours.encode(text)
    assert ids == theirs(text, add_special_tokens=False)["input_ids"], text
    whole = ([] if begin is None else [begin]) + ids + ([ours.eos_id] if ours.closes_inputs else [])
    assert whole == theirs(text)["input_ids"], text
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.decode(whole) == theirs.decode(whole, skip_special_tokens=True)


@pytest.mark.parametrize(
  ("family", "start", "pad", "stops", "closes", "opens"),
  [
    ("gpt2", None, "<|endoftext|>", ["<|endoftext|>"], False, None),
    ("llama3", "<|begin|>", "<|eot|>", ["<|eot|>", "<|end|>"], False, None),
    ("qwen", None, "<|endoftext|>", ["<|im_end|>"], False, None),
    ("t5", "<pad>", "<pad>", ["</s>"], True, None),
    ("bart", "</s>", "<pad>", ["</s>"], True, "<s>"),
  ],
)
def test_special_ids_are_what_the_family_uses(folder, family, start, pad, stops, closes, opens):
  vocabulary = Vocabulary.open(folder(family))
  name = lambda token: None if token is None else vocabulary.written(token)
  assert (name(vocabulary.start_id), name(vocabulary.pad_id), name(vocabulary.opens_id)) == (start, pad, opens)
  assert written(vocabulary, vocabulary.eos_ids) == stops and vocabulary.eos_id == vocabulary.eos_ids[0]
  assert vocabulary.closes_inputs is closes
  assert vocabulary.start("encdec") == (vocabulary.pad_id if start is None else vocabulary.start_id)


def test_decoding_stops_at_any_eos_and_leaves_special_tokens_out(folder):
  vocabulary = Vocabulary.open(folder("llama3"))
  ids = vocabulary.encode("the cat")
  head = vocabulary.encode("<|head|>")
  assert len(head) == 1
  for stop in vocabulary.eos_ids:
    assert vocabulary.decode([vocabulary.start_id, *head, *ids, stop, *ids]) == "the cat"
  assert vocabulary.decode([*ids, vocabulary.size + 9, -1]) == "the cat"
  text = "naïve 😀\n 9"
  assert b"".join(vocabulary.spell(token) for token in vocabulary.encode(text)).decode() == text
  assert vocabulary.spell(head[0]) is None and vocabulary.spell(vocabulary.size) is None


def test_sentinels_of_the_file_are_found(folder):
  vocabulary = Vocabulary.open(folder("t5"))
  assert (vocabulary.extra_ids, vocabulary.sentinels) == (0, 7)
  assert vocabulary.written(vocabulary.size - 1) == "<extra_id_0>"
  more = Vocabulary.open(folder("t5"), extra_ids=3)
  assert (more.size, more.sentinels) == (vocabulary.size + 3, 3)
  assert Vocabulary.open(folder("gpt2")).sentinels == 0


def test_a_vocabulary_goes_to_other_processes_and_into_an_index(folder, tmp_path):
  vocabulary = Vocabulary.open(folder("llama3"))
  moved = tmp_path / "vocabularies" / "a.model"
  moved.parent.mkdir()
  moved.write_bytes(vocabulary.path.read_bytes())
  inside = replace(vocabulary, path=moved)
  entry = json.loads(json.dumps(inside.to_json(tmp_path)))
  for other in (pickle.loads(pickle.dumps(vocabulary)), Vocabulary.from_json(entry, tmp_path)):
    assert other.fingerprint == vocabulary.fingerprint and hash(other)
    assert other.encode(folders.TEXTS[0]) == vocabulary.encode(folders.TEXTS[0])
    assert (other.special, other.eos_ids, other.chat_template) == (
      vocabulary.special,
      vocabulary.eos_ids,
      folders.LLAMA3,
    )
  other_stop = replace(vocabulary, special=replace(vocabulary.special, eos_ids=vocabulary.eos_ids[:1]))
  assert other_stop.fingerprint != vocabulary.fingerprint


def test_llama2_pieces_equal_transformers(tmp_path, shared):
  """Its own BPE, and the one that tok512.bin holds. A text that begins with a space keeps it, as SentencePiece does."""
  transformers = pytest.importorskip("transformers")
  for name, model in (("own", bpe_pieces()), ("tok512", read_llama2c(shared / "stories260k" / "tok512.bin"))):
    path = llama2(tmp_path / name, model)
    ours, theirs = Vocabulary.open(path), transformers.AutoTokenizer.from_pretrained(str(path))
    assert (ours.kind, ours.size, ours.start_id, ours.eos_ids, ours.pad_id) == (
      "sentencepiece",
      len(theirs),
      1,
      (2,),
      2,
    )
    for text in folders.TEXTS:
      if not text.startswith(" "):
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"], text
        assert [1, *ours.encode(text)] == theirs(text)["input_ids"]
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True)


def test_chats_in_pieces_equal_transformers(tmp_path):
  """Special tokens in a rendered template are single ids, those that the settings add too."""
  transformers = pytest.importorskip("transformers")
  model = bpe_pieces()
  size = sentencepiece.SentencePieceProcessor(model_proto=model).GetPieceSize()
  names = {0: "<unk>", 1: "<s>", 2: "</s>", size: "<|im_start|>", size + 1: "<|im_end|>", size + 2: "<tool>"}
  flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
  added = {str(i): {"content": text, "special": text != "<tool>", **flags} for i, text in names.items()}
  chatml = {"added_tokens_decoder": added, "eos_token": "<|im_end|>", "chat_template": folders.CHATML}
  for name, settings in (("llama2", {}), ("chatml", chatml)):
    path = llama2(tmp_path / name, model, **settings)
    ours, theirs = Vocabulary.open(path), transformers.AutoTokenizer.from_pretrained(str(path))
    assert ours.size == len(theirs)
    turns = [("user", "the cat 12"), ("assistant", " sum of "), ("user", "<tool> dog\n" if settings else "dog\n")]
    for count in range(1, 4):
      messages = [{"role": role, "content": text} for role, text in turns[:count]]
      for prompt in (False, True):
        ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt)["input_ids"]
        assert ours.chat_ids(turns[:count], prompt) == (ids[1:] if ids[0] == ours.start_id else ids)
  assert ours.eos_ids == (size + 1, 2)
  assert ours.decode([*ours.encode("the cat"), size + 2, size, *ours.encode("dog")]) == "the cat<tool>dog"


def test_settings_decide_what_stands_around_a_text(folder, tmp_path):
  path = folders.llama3(tmp_path / "closed")
  settings = json.loads((path / "tokenizer_config.json").read_text())
  folders.write(path, None, tokenizer_config={**settings, "add_bos_token": False, "add_eos_token": True})
  vocabulary = Vocabulary.open(path)
  assert vocabulary.start_id is None and vocabulary.closes_inputs
  (path / "generation_config.json").unlink()
  assert len(Vocabulary.open(path).eos_ids) == 1


def test_byt5_has_no_file(tmp_path):
  folders.write(tmp_path, None, tokenizer_config={"tokenizer_class": "ByT5Tokenizer", "extra_ids": 125})
  vocabulary = Vocabulary.open(tmp_path)
  assert vocabulary == Vocabulary("byte", extra_ids=125) and vocabulary.size == 384
  transformers = pytest.importorskip("transformers")
  theirs = transformers.ByT5Tokenizer()
  for text in folders.TEXTS:
    assert [*vocabulary.encode(text), 1] == theirs(text)["input_ids"]


def test_what_can_not_be_opened_is_named(folder, tmp_path):
  with pytest.raises(UserError, match="has no vocabulary"):
    Vocabulary.open(tmp_path)
  (tmp_path / "vocab.json").write_text("{}")
  with pytest.raises(UserError, match="save_pretrained"):
    Vocabulary.open(tmp_path)
  (tmp_path / "tokenizer.json").write_text('{"model": 3}')
  with pytest.raises(UserError, match=r"tokenizer\.json is not a tokenizer\.json"):
    Vocabulary.open(tmp_path)
  (tmp_path / "tokenizer.json").write_bytes((folder("gpt2") / "tokenizer.json").read_bytes())
  with pytest.raises(UserError, match="no file says which token ends a text"):
    Vocabulary.open(tmp_path)
  (tmp_path / "tokenizer_config.json").write_text("[1")
  with pytest.raises(UserError, match=r"tokenizer_config\.json can not be read"):
    Vocabulary.open(tmp_path)
  (tmp_path / "tokenizer_config.json").write_text("[1]")
  with pytest.raises(UserError, match=r"tokenizer_config\.json is no JSON object"):
    Vocabulary.open(tmp_path)
  with pytest.raises(UserError, match=r"gone\.json is not there"):
    Vocabulary.open(tmp_path / "gone.json")
  with pytest.raises(UserError, match=r"its special tokens are not known"):
    _ = Vocabulary("tokenizers", folder("gpt2") / "tokenizer.json").eos_id
