import json
import struct

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

from mtx.data.vocabulary import Vocabulary
from mtx.errors import UserError
from mtx.tokens.sentencepieces import read_llama2c

TEXTS = [
  "Once upon a time, there was  a dog.",
  "naïve café ☃\n\n“x”",
  "",
  " lead",
  "aaaaaaaaaaaaaaaa",
  "Lily's mom said",
]


def as_llama2c_does(pieces: list[tuple[str, float]], text: str) -> list[int]:
  """llama2.c's run.c, `encode`, without its BOS."""
  ids = {piece: token for token, (piece, _) in enumerate(pieces)}
  tokens = [ids[" "]] if text else []
  for character in text:
    tokens += [ids[character]] if character in ids else [byte + 3 for byte in character.encode()]
  while True:
    best, score = None, -1e10
    for i in range(len(tokens) - 1):
      token = ids.get(pieces[tokens[i]][0] + pieces[tokens[i + 1]][0])
      if token is not None and pieces[token][1] > score:
        best, score = (i, token), pieces[token][1]
    if best is None:
      return tokens
    tokens[best[0] : best[0] + 2] = [best[1]]


def read_pieces(path) -> list[tuple[str, float]]:
  content, at, found = path.read_bytes(), 4, []
  while at < len(content):
    score, length = struct.unpack_from("<fi", content, at)
    found.append((content[at + 8 : at + 8 + length].decode(), score))
    at += 8 + length
  return found


def test_llama2c_ids_equal_its_own_algorithm(shared):
  folder = shared / "stories260k"
  vocabulary, pieces = Vocabulary.open(folder), read_pieces(folder / "tok512.bin")
  expected = json.loads((folder / "expected_greedy.json").read_text())
  assert (vocabulary.size, vocabulary.start_id, vocabulary.eos_ids, vocabulary.closes_inputs) == (512, 1, (2,), False)
  for text in [*TEXTS, expected["text"]]:
    assert vocabulary.encode(text) == as_llama2c_does(pieces, text), text
    assert vocabulary.decode(vocabulary.encode(text)) == text
  assert vocabulary.decode(expected["token_ids"]) == expected["text"]
  assert vocabulary == Vocabulary.open(folder / "tok512.bin")
  assert vocabulary.spell(vocabulary.encode("dog")[0]) == b" do"


def test_a_damaged_llama2c_file_is_named(shared, tmp_path):
  whole = (shared / "stories260k" / "tok512.bin").read_bytes()
  for content in (whole[:-1], whole[:9], whole[:3], b"", whole[:8] + b"\xff\xff\xff\x7f" + whole[12:], bytes(200)):
    (tmp_path / "tok.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"tok\.bin is not a tokenizer file of llama2\.c"):
      read_llama2c(tmp_path / "tok.bin")


@pytest.mark.parametrize(
  ("file", "start", "pad", "eos", "closes"),
  [
    ("mtx_t5style_en_8k", 0, 0, 1, True),
    ("seqio_test", 0, 0, 1, True),
    ("maxtext_default_32k", 1, 2, 2, False),
    ("sentencepiece_test_1k", 1, 2, 2, False),
  ],
)
def test_a_layout_tells_the_family(shared, file, start, pad, eos, closes):
  vocabulary = Vocabulary.open(shared / "tokenizers" / f"{file}.model")
  theirs = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary.path))
  assert (vocabulary.start_id, vocabulary.pad_id, vocabulary.eos_ids) == (start, pad, (eos,))
  assert vocabulary.closes_inputs is closes and vocabulary.special is None
  for text in TEXTS:
    assert vocabulary.encode(text) == theirs.encode(text)
    assert vocabulary.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))


def changed(path, to, change):
  model = proto.ModelProto.FromString(path.read_bytes())
  change(model)
  to.write_bytes(model.SerializeToString())
  return Vocabulary.open(to)


def test_gemmas_layout_and_the_sentinels_of_mt5(shared, tmp_path):
  path = shared / "tokenizers" / "mtx_t5style_en_8k.model"

  def gemma(model):  # pad 0, eos 1, bos 2, unk 3
    model.pieces.insert(2, model.SentencePiece(piece="<bos>", type=model.SentencePiece.CONTROL))
    spec = model.trainer_spec
    spec.bos_id, spec.unk_id, spec.bos_piece = 2, 3, "<bos>"

  vocabulary = changed(path, tmp_path / "gemma.model", gemma)
  assert (vocabulary.start_id, vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (2, 0, 1, 3)
  assert not vocabulary.closes_inputs

  def mt5(model):
    for i in reversed(range(5)):
      model.pieces.add(piece=f"▁<extra_id_{i}>", score=-20.0, type=model.SentencePiece.NORMAL)

  vocabulary = changed(path, tmp_path / "mt5.model", mt5)
  assert (vocabulary.size, vocabulary.extra_ids, vocabulary.sentinels) == (8005, 0, 5)
  assert vocabulary.decode([8004, *vocabulary.encode("a dog"), 8000]) == "a dog"

  def endless(model):
    model.trainer_spec.eos_id = -1
    model.pieces[1].type = model.SentencePiece.NORMAL

  with pytest.raises(UserError, match="has no EOS"):
    _ = changed(path, tmp_path / "endless.model", endless).eos_id


def test_t5s_folder_without_a_tokenizer_file(shared, tmp_path):
  """Its `.model`, and as many sentinels as the settings say."""
  (tmp_path / "spiece.model").write_bytes((shared / "tokenizers" / "mtx_t5style_en_8k.model").read_bytes())
  (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 100}))
  (tmp_path / "config.json").write_text(json.dumps({"is_encoder_decoder": True, "decoder_start_token_id": 0}))
  vocabulary = Vocabulary.open(tmp_path)
  assert (vocabulary.size, vocabulary.extra_ids, vocabulary.start_id, vocabulary.eos_ids) == (8100, 100, 0, (1,))
  assert vocabulary.closes_inputs and vocabulary.opens_id is None
