"""llama2.c's files: the published model of 260 thousand parameters, computed by numpy from Hugging Face's names."""

import json
import struct

import numpy as np
import pytest

from mtx.errors import UserError
from mtx.pretrained.llama2c import HEADER, halves, read_pieces
from mtx.pretrained.tensors import open_tensors


@pytest.fixture
def stories(shared):
  return shared / "stories260k"


def greedy(tensors, config, steps):
  """Tokens after BOS by Hugging Face's Llama: rotary pairs half a head apart, no cache."""
  weight = {name: np.asarray(tensors[name][...], np.float64) for name in tensors}
  heads, kv, width = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]

  def norm(x, w):
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + config["rms_norm_eps"]) * w

  def rotate(x):
    angles = np.arange(len(x))[:, None] * config["rope_theta"] ** (-np.arange(0, width, 2) / width)
    cos, sin = (np.concatenate([f(angles)] * 2, -1)[:, None] for f in (np.cos, np.sin))
    return x * cos + np.concatenate([-x[..., width // 2 :], x[..., : width // 2]], -1) * sin

  tokens = [1]
  for _ in range(steps):
    x = weight["model.embed_tokens.weight"][tokens]
    for n in range(config["num_hidden_layers"]):
      layer = {name.split(f"layers.{n}.")[1]: w for name, w in weight.items() if f"layers.{n}." in name}
      h = norm(x, layer["input_layernorm.weight"])
      q, k, v = ((h @ layer[f"self_attn.{p}_proj.weight"].T).reshape(len(x), -1, width) for p in "qkv")
      q, k, v = rotate(q), np.repeat(rotate(k), heads // kv, 1), np.repeat(v, heads // kv, 1)
      scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(width)
      scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
      scores = np.exp(scores - scores.max(-1, keepdims=True))
      mixed = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v).reshape(len(x), -1)
      x = x + mixed @ layer["self_attn.o_proj.weight"].T
      h = norm(x, layer["post_attention_layernorm.weight"])
      gate = h @ layer["mlp.gate_proj.weight"].T
      x = x + (gate / (1 + np.exp(-gate)) * (h @ layer["mlp.up_proj.weight"].T)) @ layer["mlp.down_proj.weight"].T
    logits = norm(x[-1], weight["model.norm.weight"]) @ weight["model.embed_tokens.weight"].T
    tokens.append(int(logits.argmax()))
  return tokens


def test_the_published_sample_follows_from_hugging_faces_names(stories):
  tensors = open_tensors(stories)
  expected = json.loads((stories / "expected_greedy.json").read_text())
  assert greedy(tensors, tensors.config, 40) == expected["token_ids"][:41]


def test_pieces_spell_the_published_sample(stories):
  expected = json.loads((stories / "expected_greedy.json").read_text())
  pieces = read_pieces(stories / "tok512.bin")
  spelt = [bytes([i - 3]) if 3 <= i < 259 else pieces[i][0] for i in expected["token_ids"][1:]]
  assert b"".join(spelt).decode().strip() == expected["text"].strip()


def test_tensors_and_config(stories):
  tensors = open_tensors(stories / "stories260K.bin")
  assert tensors.config["num_hidden_layers"] == 5 and tensors.config["tie_word_embeddings"]
  assert "lm_head.weight" not in tensors and len(tensors) == 2 + 5 * 9
  assert tensors["model.layers.4.self_attn.k_proj.weight"].shape == (32, 64)
  assert sum(np.asarray(a[...]).size for a in tensors.values()) == (stories.joinpath("stories260K.bin").stat().st_size
                                                                   - HEADER.size) // 4 - 2 * 512 * 4  # fmt: skip


def test_rows_of_even_place_come_first():
  rows = np.arange(12, dtype=np.float32)[:, None]
  assert halves(rows, 2)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]


def test_pieces(stories):
  pieces = read_pieces(stories / "tok512.bin")
  assert len(pieces) == 512 and pieces[3][0] == b"<0x00>" and pieces[258][0] == b"<0xFF>"
  assert pieces[0][0] == b"<unk>" and max(len(piece) for piece, _ in pieces) == 7


def model(sizes=(4, 6, 2, 2, 1, 5, 3), change=0, untied=False):
  d, hidden, layers, heads, kv, vocab, length = sizes
  head = (d, hidden, layers, heads, kv, -vocab if untied else vocab, length)
  width = d // heads
  layer = 2 * d + 2 * d * d + 2 * kv * width * d + 3 * hidden * d
  numbers = vocab * d * (1 + untied) + layers * layer + d + length * width
  return struct.pack("<7i", *head) + np.arange(numbers + change, dtype=np.float32).tobytes()


def test_an_untied_head_is_last(tmp_path):
  (tmp_path / "model.bin").write_bytes(model(untied=True))
  tensors = open_tensors(tmp_path)
  assert not tensors.config["tie_word_embeddings"] and tensors["lm_head.weight"].shape == (5, 4)
  assert tensors["lm_head.weight"][-1, -1] == len(model(untied=True)) // 4 - 8


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size_is_refused(tmp_path, change):
  (tmp_path / "model.bin").write_bytes(model(change=change))
  with pytest.raises(UserError, match=r"a llama2.c model with its header"):
    open_tensors(tmp_path / "model.bin")


@pytest.mark.parametrize("head", [(0,) * 7, (4, 6, 2, 3, 1, 5, 3), (-4, 6, 2, 2, 1, 5, 3), (0x616B3432,) * 7, ()])
def test_headers_that_make_no_sense(tmp_path, head):
  (tmp_path / "model.bin").write_bytes(struct.pack(f"<{len(head)}i", *head))
  with pytest.raises(UserError, match=r"llama2.c"):
    open_tensors(tmp_path / "model.bin")


@pytest.mark.parametrize("data", [b"", b"\x07\0\0\0", b"\x07\0\0\0" + bytes(7), struct.pack("<ifi", 7, 0, 8) + bytes(8),
                                  struct.pack("<ifi", 7, 0, 5) + bytes(4), struct.pack("<ifi", 7, 0, -1)])  # fmt: skip
def test_pieces_that_are_none(tmp_path, data):
  (tmp_path / "tokenizer.bin").write_bytes(data)
  with pytest.raises(UserError, match=r"tokenizer.bin"):
    read_pieces(tmp_path / "tokenizer.bin")
