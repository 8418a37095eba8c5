"""Settings say what is wrong with them, and stops know every way a text can end."""

import gin
import jax.numpy as jnp
import pytest

from mtx.data.vocabulary import Vocabulary
from mtx.decode.lengths import bucket
from mtx.decode.settings import Settings
from mtx.decode.stops import ends, for_vocabulary, trimmed
from mtx.errors import UserError


@pytest.mark.parametrize(
  "values",  # the first of them is named
  [
    {"length": 0},
    {"top_k": -1},
    {"temperature": -0.1},
    {"top_p": 0.0},
    {"top_p": 1.5},
    {"min_p": 2.0},
    {"repetition_penalty": 0.0},
    {"early_stopping": "sometimes"},
    {"stop": ("",)},
    {"top_p": 0.9},  # and no temperature
    {"samples": 3},
    {"samples": 3, "beams": 2},
    {"temperature": 1.0, "beams": 2},
  ],
)
def test_wrong_values_are_named(values):
  with pytest.raises(UserError, match=rf"decode\.{next(iter(values))} is"):
    Settings(**values)


def test_gin_binds_them_and_they_are_static():
  """Lists from gin become tuples, so that a program can be compiled for them."""
  gin.parse_config("decode.temperature = 0.7\ndecode.stop = ['a', 'b']")
  assert Settings().temperature == 0.7
  assert hash(Settings()) == hash(Settings(temperature=0.7, stop=("a", "b")))
  assert Settings(temperature=0.2).temperature == 0.2


def test_buckets_are_few():
  assert [bucket(n) for n in (1, 16, 17, 128, 129, 257)] == [16, 16, 32, 128, 256, 384]
  assert len({bucket(n) for n in range(1, 1025)}) == 4 + 7


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
  """A SentencePiece vocabulary in which "."" and what follows can be one token."""
  import sentencepiece

  path = tmp_path_factory.mktemp("pieces") / "pieces"
  texts = iter(["the end. yes", "an end. no", "the end.yes and no.yes", "ends.yes"] * 50)
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=texts, model_prefix=str(path), vocab_size=40, hard_vocab_limit=False,
    split_by_unicode_script=False, model_type="bpe", pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    character_coverage=1.0, minloglevel=2,
  )  # fmt: skip
  return Vocabulary("sentencepiece", path.with_suffix(".model"))


def test_stops_inside_a_token_and_over_several(pieces):
  """Every token that contains the text ends a row, and so does the text's own sequence of tokens."""
  settings = for_vocabulary(Settings(stop=(".", "end")), pieces)
  containing = {i for i in range(pieces.size) if (text := pieces.spell(i)) and (b"." in text or b"end" in text)}
  assert any(len(pieces.spell(i)) > 1 for i in containing if b"." in pieces.spell(i))
  singles = {ids[0] for ids in settings.stop_ids if len(ids) == 1}
  assert containing <= singles
  assert tuple(pieces.encode("end")) in settings.stop_ids
  assert settings.eos_ids == pieces.eos_ids
  assert trimmed("to the end. yes", settings) == "to the "
  assert trimmed("nothing", settings) == "nothing"


def test_ends():
  settings = Settings(eos_ids=(9, 8), stop_ids=((5,), (1, 2, 3), (4, 2)))
  assert settings.longest_stop == 3
  windows = jnp.array([[0, 0, 9], [0, 0, 8], [5, 5, 5], [1, 2, 3], [1, 4, 2], [9, 5, 7], [2, 3, 1], [-1, -1, 0]])
  assert ends(windows, settings).tolist() == [True] * 5 + [False] * 3
