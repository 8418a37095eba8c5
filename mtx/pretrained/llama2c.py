"""llama2.c's model.bin (its first format, without a magic number) and tokenizer.bin.

Format: https://github.com/karpathy/llama2.c, export.py:legacy_export, little endian. Seven int32, dim, hidden_dim,
layers, heads, kv_heads, vocab (negative: the head has a table of its own), seq_len; then float32 arrays one after the
other, each for all layers: token table, attention norms, wq, wk, wv, wo, feed-forward norms, w1, w2, w3, last norm, two
RoPE tables that nothing needs, and the head unless tied. Matrices are [out, in].
"""

import math
import struct
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from mtx.errors import UserError
from mtx.pretrained.lazy import Lazy, Made, Tensors

HEADER = struct.Struct("<7i")
LAYER = "model.layers.{layer}"
# Our name for every array that has one a layer, in the file's order.
STACKED = {
  "attention_norm": f"{LAYER}.input_layernorm.weight",
  "wq": f"{LAYER}.self_attn.q_proj.weight",
  "wk": f"{LAYER}.self_attn.k_proj.weight",
  "wv": f"{LAYER}.self_attn.v_proj.weight",
  "wo": f"{LAYER}.self_attn.o_proj.weight",
  "ffn_norm": f"{LAYER}.post_attention_layernorm.weight",
  "w1": f"{LAYER}.mlp.gate_proj.weight",
  "w2": f"{LAYER}.mlp.down_proj.weight",
  "w3": f"{LAYER}.mlp.up_proj.weight",
}
LONGEST_PIECE = 1 << 16


def _sizes(path: Path) -> dict[str, int] | None:
  """What the header says, or None where it is not one."""
  with path.open("rb") as file:
    head = file.read(HEADER.size)
  if len(head) < HEADER.size:
    return None
  names = ("dim", "hidden", "layers", "heads", "kv_heads", "vocab", "length")
  sizes = dict(zip(names, HEADER.unpack(head), strict=True))
  d, heads, kv = sizes["dim"], sizes["heads"], sizes["kv_heads"]
  if min(d, sizes["hidden"], sizes["layers"], heads, kv, abs(sizes["vocab"]), sizes["length"]) < 1:
    return None
  return None if d % heads or heads % kv or d // heads % 2 else sizes


def _layout(sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
  """Shapes in the file's order; those of layers without the leading axis."""
  d, hidden, vocab = sizes["dim"], sizes["hidden"], abs(sizes["vocab"])
  width = d // sizes["heads"]
  kv = width * sizes["kv_heads"]
  matrices = {"wq": (d, d), "wk": (kv, d), "wv": (kv, d), "wo": (d, d), "w1": (hidden, d), "w2": (d, hidden)}
  layers = {name: matrices.get(name, (d,)) for name in STACKED} | {"w3": (hidden, d)}
  rope = {"rope_cos": (sizes["length"], width // 2), "rope_sin": (sizes["length"], width // 2)}
  head = {"head": (vocab, d)} if sizes["vocab"] < 0 else {}
  return {"table": (vocab, d), **layers, "norm": (d,), **rope, **head}


def _bytes(sizes: dict[str, int]) -> int:
  stacked = {name: sizes["layers"] for name in STACKED}
  return HEADER.size + 4 * sum(stacked.get(n, 1) * math.prod(s) for n, s in _layout(sizes).items())


def is_llama2c(path: Path) -> bool:
  """Whether the header's sizes give the file's size."""
  sizes = _sizes(path) if path.is_file() else None
  return sizes is not None and _bytes(sizes) == path.stat().st_size


def open_llama2c(path: Path) -> Tensors:
  """A model under the names that Hugging Face's Llama has, with a config.

  Rotary pairs lie side by side in the file, (x[2i], x[2i + 1]), and half a head apart in Hugging Face's Llama: the rows
  of wq and wk are put in that order.

  Raises:
    UserError: the header is none, or its sizes do not give the file's size.
  """
  sizes = _sizes(path)
  if sizes is None:
    raise UserError(f"{path} is no llama2.c model: its header makes no sense.",
                    hint="of llama2.c's formats the first is read (export.py --version 0)")  # fmt: skip
  if _bytes(sizes) != path.stat().st_size:
    raise UserError(
      f"{path} has {path.stat().st_size} bytes; a llama2.c model with its header, {sizes}, has {_bytes(sizes)}.",
      hint="copy the file again; of llama2.c's formats the first is read",
    )
  raw = np.memmap(path, "<f4", mode="r", offset=HEADER.size)
  arrays: dict[str, Lazy] = {}
  plain = {"table": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
  start = 0
  for name, shape in _layout(sizes).items():
    copies = sizes["layers"] if name in STACKED else 1
    stop = start + copies * math.prod(shape)
    whole = raw[start:stop].view(np.ndarray).reshape(copies, *shape)
    start = stop
    for layer in range(copies):
      if name in STACKED:
        heads = {"wq": sizes["heads"], "wk": sizes["kv_heads"]}.get(name, 0)
        array = whole[layer]
        ours: Lazy = Made(shape, "<f4", lambda a=array, h=heads: halves(a, h)) if heads else array  # type: ignore[misc]
        arrays[STACKED[name].format(layer=layer)] = ours
      elif name in plain:
        arrays[plain[name]] = whole[0]
  config = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": abs(sizes["vocab"]),
    "hidden_size": sizes["dim"],
    "intermediate_size": sizes["hidden"],
    "num_hidden_layers": sizes["layers"],
    "num_attention_heads": sizes["heads"],
    "num_key_value_heads": sizes["kv_heads"],
    "head_dim": sizes["dim"] // sizes["heads"],
    "max_position_embeddings": sizes["length"],
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": sizes["vocab"] > 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
  }
  return Tensors(path, arrays, config=config)


def halves(matrix: Float32[np.ndarray, "out in"], heads: int) -> Float32[np.ndarray, "out in"]:
  """Rows of every head: first those of even place, then those of odd place."""
  out, width = matrix.shape
  return matrix.reshape(heads, out // heads // 2, 2, width).transpose(0, 2, 1, 3).reshape(out, width)


def read_pieces(path: str | Path) -> list[tuple[bytes, float]]:
  """(bytes, score) of every piece of a tokenizer.bin: int32 longest piece; then float32 score, int32 length, bytes.

  Ids 0 to 2 are unknown, BOS and EOS, 3 to 258 the bytes, written <0x00> and so on; what follows is made by merging
  pairs, highest score first. A piece that begins a text is as written, with a space for SentencePiece's mark.

  Raises:
    UserError: it is not there, truncated, or a length is out of range.
  """
  path = Path(path)
  if not path.is_file():
    raise UserError(f"{path} is not a file.", hint="expected llama2.c's tokenizer.bin")
  data = path.read_bytes()
  pieces: list[tuple[bytes, float]] = []
  longest = int.from_bytes(data[:4], "little", signed=True)
  at = 4
  while at < len(data):
    score, length = struct.unpack_from("<fi", data, at) if at + 8 <= len(data) else (math.nan, -1)
    if not 0 <= length <= min(longest, LONGEST_PIECE) or at + 8 + length > len(data):
      raise UserError(f"{path}: piece {len(pieces)} at byte {at} is not one.", hint="is it llama2.c's tokenizer.bin?")
    pieces.append((data[at + 8 : at + 8 + length], score))
    at += 8 + length
  if not pieces:
    raise UserError(f"{path} has no pieces.", hint="expected llama2.c's tokenizer.bin")
  return pieces
