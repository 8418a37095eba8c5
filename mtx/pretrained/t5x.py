"""T5X checkpoints: an index in Flax's msgpack, and a zarr array a tensor, read by TensorStore.

Format: google-research/t5x, t5x/checkpoints.py. A step is a folder

    checkpoint_<step>/checkpoint                                           msgpack of {"version": 3, "optimizer": {...}}
    checkpoint_<step>/target.encoder.layers_0.attention.query.kernel/      zarr, in gzip chunks

whose index is the tree of the train state; leaves of "target", the parameters, are TensorStore specs {"driver",
"kvstore", "metadata"} or, where they were not partitioned, the arrays themselves. A spec's path may name the bucket
that it was written to: only its last part counts, so a copied folder is whole. Optimizer state is not read.

Names and layouts of the T5 models are those of t5x/examples/t5/network.py and scalable_t5/network.py. The latter stacks
layers along axis 1 (`param_scan_axis`) of `encoder/encoder/...`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts
from flax import serialization

from mtx.errors import UserError
from mtx.pretrained.lazy import Lazy, Tensors

INDEX, SPEC = "checkpoint", {"driver", "kvstore", "metadata"}
DAMAGED = "copy the folder of the step again"
SCAN_AXIS = 1
ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
# module of a layer -> (place in Hugging Face's list of the layer's parts, for encoder and for decoder; name there)
PARTS: dict[str, tuple[int | None, int | None, str]] = {
  "attention": (0, None, "SelfAttention"),
  "pre_attention_layer_norm": (0, None, "layer_norm"),
  "self_attention": (None, 0, "SelfAttention"),
  "pre_self_attention_layer_norm": (None, 0, "layer_norm"),
  "encoder_decoder_attention": (None, 1, "EncDecAttention"),
  "pre_cross_attention_layer_norm": (None, 1, "layer_norm"),
  "mlp": (1, 2, "DenseReluDense"),
  "pre_mlp_layer_norm": (1, 2, "layer_norm"),
}


class Stored:
  """A TensorStore as a lazy array; transposing it or taking a layer reads nothing.

  Args:
    place: file and tensor, for messages.
  """

  def __init__(self, store: ts.TensorStore, place: str):
    self._store, self._place = store, place
    self.shape, self.dtype = tuple(store.shape), np.dtype(store.dtype.numpy_dtype)

  def __getitem__(self, index: Any) -> np.ndarray:
    try:
      return np.asarray(self._store[index].read().result())
    except (ValueError, OSError) as error:
      raise UserError(f"{self._place} can not be read: {str(error)[:200]}", hint=DAMAGED) from error

  @property
  def T(self) -> "Stored":
    return Stored(self._store.T, self._place)

  def layer(self, index: int) -> "Stored":
    return Stored(self._store[(slice(None),) * SCAN_AXIS + (index,)], self._place)


def is_t5x(file: Path) -> bool:
  """Whether a file is the index of a step: TensorFlow's are called `checkpoint` too, and are text."""
  if file.name != INDEX or not file.is_file():
    return False
  with file.open("rb") as opened:
    return not opened.read(64).startswith(b"model_checkpoint_path")


def find(folder: Path) -> Path | None:
  """The index of a step's folder, or of the last step in the folder of a run."""
  steps = [p for p in folder.glob("checkpoint_*") if re.fullmatch(r"checkpoint_\d+", p.name) and is_t5x(p / INDEX)]
  steps.sort(key=lambda p: int(p.name.partition("_")[2]))
  places = [folder, *reversed(steps)]
  return next((p / INDEX for p in places if is_t5x(p / INDEX)), None)


def open_t5x(path: Path) -> Tensors:
  """Parameters of a T5X T5, under the names that Hugging Face's T5 has, with a config that follows from their shapes.

  A tensor that no T5 of T5X has keeps its path in the train state.

  Raises:
    UserError: the index is damaged, or an array is missing or contradicts it; names the tensor.
  """
  arrays, taken = dict[str, Lazy](), dict[str, str]()
  for name, array in _unstacked(dict(_targets(path))):
    theirs, transposed = hugging_face(name)
    if theirs in taken:
      raise UserError(f"{path}: `{taken[theirs]}` and `{name}` are both {theirs}.", hint=DAMAGED)
    taken[theirs] = name
    arrays[theirs] = array.T if transposed else array
  return Tensors(path, arrays, config=_config(arrays))


def _targets(path: Path) -> Iterator[tuple[str, Any]]:
  """(path under "target", lazy array) of every parameter."""
  try:
    state = serialization.msgpack_restore(path.read_bytes())
    target = state["optimizer"]["target"] if "version" in state else state["target"]
    leaves = list(_leaves(target))
  except Exception as error:  # msgpack, Flax and numpy each have their own for damaged bytes
    raise UserError(f"{path} is not the index of a T5X checkpoint: {ascii(str(error))[:120]}.", hint=DAMAGED) from error
  if not leaves:
    raise UserError(f"{path} has no parameters under `target`.", hint="give the folder of a training checkpoint")
  for name, leaf in leaves:
    yield name, _open(path, name, leaf) if isinstance(leaf, Mapping) else np.asarray(leaf)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    if isinstance(value, Mapping) and not set(value) >= SPEC:
      yield from _leaves(value, f"{prefix}{key}/")
    elif value is not None:
      yield f"{prefix}{key}", value


def _open(path: Path, name: str, spec: Mapping[str, Any]) -> Stored:
  """Opens an array by the last part of its spec's path and by nothing else that the index says."""
  kvstore = spec["kvstore"]
  written = kvstore.get("path", spec.get("path")) if isinstance(kvstore, Mapping) else None
  last = str(written or "").rstrip("/").rpartition("/")[2]
  folder = path.parent / last
  if last in ("", ".", "..") or folder.resolve().parent != path.parent.resolve():
    raise UserError(f"{path}: the spec of `{name}` has no path in its folder: {written!r}.", hint=DAMAGED)
  try:
    store = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder.resolve())}}
    opened = Stored(ts.open(store, open=True, read=True).result(), f"{path}: `{name}`")
  except ValueError as error:
    raise UserError(f"{path}: `{name}` can not be opened in {folder}: {str(error)[:120]}", hint=DAMAGED) from error
  declared = spec["metadata"].get("shape") if isinstance(spec["metadata"], Mapping) else None
  if declared is None or tuple(declared) != opened.shape:
    raise UserError(f"{path}: `{name}` has shape {opened.shape}, and the index says {declared}.", hint=DAMAGED)
  return opened


def _unstacked(arrays: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """Layers that a scan stacked, encoder/encoder/attention, as encoder/layers_0/attention and so on."""
  for name, array in arrays.items():
    side = re.match(r"(encoder/encoder|decoder/decoder)/", name)
    if side is None or len(array.shape) <= SCAN_AXIS:
      yield name, array
      continue
    for index in range(array.shape[SCAN_AXIS]):
      one = array.layer(index) if isinstance(array, Stored) else array.take(index, SCAN_AXIS)
      yield f"{side[1].partition('/')[0]}/layers_{index}/{name[side.end() :]}", one


def hugging_face(name: str) -> tuple[str, bool]:
  """(name in Hugging Face's T5, whether it is transposed there); unknown names stay as they are."""
  plain = {
    "token_embedder/embedding": ("shared.weight", False),
    "decoder/logits_dense/kernel": ("lm_head.weight", True),
  }
  if name in plain:
    return plain[name]
  if found := re.fullmatch(r"(encoder|decoder)/\1_norm/scale", name):
    return f"{found[1]}.final_layer_norm.weight", False
  if found := re.fullmatch(r"(encoder|decoder)/(?:layers_(\d+)/)?relpos_bias/rel_embedding", name):
    return f"{found[1]}.block.{found[2] or 0}.layer.0.SelfAttention.relative_attention_bias.weight", True
  found = re.fullmatch(r"(encoder|decoder)/layers_(\d+)/(\w+)(?:/(\w+))?/(kernel|scale)", name)
  encoder, decoder, module = PARTS.get(found[3], (None, None, "")) if found else (None, None, "")
  place = None if found is None else encoder if found[1] == "encoder" else decoder
  if found is None or place is None or (found[4] is None) != (found[5] == "scale"):
    return name, False
  inner = f".{ATTENTION.get(found[4], found[4])}" if found[4] else ""
  return f"{found[1]}.block.{found[2]}.layer.{place}.{module}{inner}.weight", found[5] == "kernel"


def _config(arrays: Mapping[str, Lazy]) -> dict[str, Any] | None:
  """What shapes say of a T5; None for another model.

  They do not say an activation, nor the reach of relative positions: a gated one is taken for T5 1.1's, and 128 is what
  all of T5X's examples have.
  """
  bias, query, wi = (
    f"encoder.block.0.layer.{part}.weight"
    for part in ("0.SelfAttention.relative_attention_bias", "0.SelfAttention.q", "1.DenseReluDense.wi")
  )
  gate = wi.replace(".wi.", ".wi_0.")
  if not {"shared.weight", bias, query} <= set(arrays) or not (wi in arrays or gate in arrays):
    return None
  layers: Callable[[str], int] = lambda side: sum(
    bool(re.fullmatch(rf"{side}\.block\.\d+\.layer\.0\.layer_norm\.weight", name)) for name in arrays
  )
  vocabulary, width = arrays["shared.weight"].shape
  buckets, heads = arrays[bias].shape
  return {
    # umT5 has a table of relative positions in every layer.
    "model_type": "umt5" if bias.replace("block.0", "block.1") in arrays else "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "vocab_size": vocabulary,
    "d_model": width,
    "d_kv": arrays[query].shape[0] // heads,
    "d_ff": arrays[gate if gate in arrays else wi].shape[0],
    "num_heads": heads,
    "num_layers": layers("encoder"),
    "num_decoder_layers": layers("decoder"),
    "relative_attention_num_buckets": buckets,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu" if gate in arrays else "relu",
    "layer_norm_epsilon": 1e-6,
    "tie_word_embeddings": "lm_head.weight" not in arrays,
    "is_encoder_decoder": True,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
  }
