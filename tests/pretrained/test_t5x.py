"""T5X checkpoints, made here from the format's description: an index in msgpack, and a zarr array a tensor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from flax import serialization, traverse_util

from mtx.errors import UserError
from mtx.pretrained.model import open_model
from mtx.pretrained.t5x import Stored, hugging_face
from mtx.pretrained.tensors import open_tensors

D, HEADS, KV, FF, VOCAB, LAYERS, BUCKETS = 8, 2, 3, 12, 11, 2, 4


def arrays(tied=False, gated=True, dtype=np.float32):
  """The parameters of t5x/examples/t5/network.py, by path."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(dtype)
  found = {"token_embedder/embedding": draw(VOCAB, D)}
  for side, attentions in (("encoder", ("attention",)), ("decoder", ("self_attention", "encoder_decoder_attention"))):
    for n in range(LAYERS):
      layer = f"{side}/layers_{n}"
      for attention in attentions:
        for name in ("query", "key", "value"):
          found[f"{layer}/{attention}/{name}/kernel"] = draw(D, HEADS * KV)
        found[f"{layer}/{attention}/out/kernel"] = draw(HEADS * KV, D)
        norm = attention.replace("encoder_decoder", "cross")
        found[f"{layer}/pre_{norm}_layer_norm/scale"] = draw(D)
      for name in ("wi_0", "wi_1") if gated else ("wi",):
        found[f"{layer}/mlp/{name}/kernel"] = draw(D, FF)
      found[f"{layer}/mlp/wo/kernel"] = draw(FF, D)
      found[f"{layer}/pre_mlp_layer_norm/scale"] = draw(D)
    found[f"{side}/{side}_norm/scale"] = draw(D)
    found[f"{side}/relpos_bias/rel_embedding"] = draw(HEADS, BUCKETS)
  return found if tied else found | {"decoder/logits_dense/kernel": draw(D, VOCAB)}


def scanned(found):
  """The same with layers stacked along axis 1 of encoder/encoder/..., as scalable_t5 has them."""
  stacked = {name: a for name, a in found.items() if "/layers_" not in name}
  for name in [name for name in found if "/layers_0/" in name]:
    side, _, rest = name.split("/", 2)
    layers = [found[f"{side}/layers_{n}/{rest}"] for n in range(LAYERS)]
    stacked[f"{side}/{side}/{rest}"] = np.stack(layers, 1)
  return stacked


def save(folder, found, *, inline=(), bucket=False, step=1000):
  """Writes checkpoint_<step>: arrays in chunks, and the index with their specs."""
  folder = folder / f"checkpoint_{step}"
  leaves = {"state/step": np.int32(step), "state/param_states/decoder/decoder_norm/scale/m": np.zeros(3, np.float32)}
  for path, array in found.items():
    if path in inline:
      leaves[f"target/{path}"] = array
      continue
    name = f"target/{path}".replace("/", ".")
    metadata = {"compressor": {"id": "gzip"}, "shape": list(array.shape),
                "chunks": [max(1, n // 2) for n in array.shape]}  # fmt: skip
    spec = {"driver": "zarr", "dtype": jnp.dtype(array.dtype).name, "metadata": metadata}
    store = spec | {"kvstore": {"driver": "file", "path": str(folder / name)}}
    ts.open(store, create=True, open=True).result().write(array).result()
    place = {"driver": "gcs", "bucket": "t5x-dummy-bucket", "path": f"t5/run/checkpoint_{step}/{name}/"}
    leaves[f"target/{path}"] = spec | {"kvstore": place if bucket else {"driver": "gfile", "path": f"{name}/"}}
  tree = {"version": 3, "optimizer": traverse_util.unflatten_dict(leaves, sep="/")}
  folder.mkdir(exist_ok=True, parents=True)
  (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(tree))
  return folder


def check(read, found):
  for name, array in found.items():
    theirs, transposed = hugging_face(name)
    assert np.array_equal(read[theirs][...], array.T if transposed else array), name
    assert read[theirs].dtype == array.dtype
  assert len(read) == len(found)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_a_step_is_read_under_hugging_faces_names(tmp_path, dtype):
  found = arrays(dtype=dtype)
  folder = save(tmp_path, found)
  read = open_tensors(folder)
  check(read, found)
  assert read.config | {
    "model_type": "t5", "vocab_size": VOCAB, "d_model": D, "d_kv": KV, "d_ff": FF, "num_heads": HEADS,
    "num_layers": LAYERS, "num_decoder_layers": LAYERS, "relative_attention_num_buckets": BUCKETS,
    "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
  } == read.config  # fmt: skip


def test_slices_read_no_other_chunk(tmp_path):
  found = arrays()
  folder = save(tmp_path, found)
  name = "encoder/layers_0/mlp/wo/kernel"  # [12, 8] in chunks [6, 4]; transposed in Hugging Face's T5
  (folder / f"target.{name.replace('/', '.')}" / "1.1").write_bytes(b"no gzip")
  lazy = open_tensors(folder)[hugging_face(name)[0]]
  assert isinstance(lazy, Stored)
  assert np.array_equal(lazy[2:4, 1:9], found[name].T[2:4, 1:9])
  with pytest.raises(UserError, match=f"`{name}` can not be read"):
    lazy[...]


def test_scanned_layers_are_taken_apart(tmp_path):
  found = arrays()
  read = open_tensors(save(tmp_path, scanned(found)))
  check(read, found)
  assert isinstance(read["encoder.block.1.layer.1.DenseReluDense.wi_1.weight"], Stored)
  assert read.config["model_type"] == "t5" and read.config["num_layers"] == LAYERS


def test_tied_ungated_in_the_index_and_from_a_bucket(tmp_path):
  found = arrays(tied=True, gated=False)
  inline = [name for name in found if name.endswith(("scale", "rel_embedding"))]
  read = open_tensors(save(tmp_path, found, inline=inline, bucket=True))
  check(read, found)
  assert read.config["tie_word_embeddings"] and read.config["feed_forward_proj"] == "relu"


def test_scanned_arrays_in_the_index(tmp_path):
  found = arrays()
  stacked = scanned(found)
  check(open_tensors(save(tmp_path, stacked, inline=list(stacked))), found)


@pytest.mark.parametrize(("tied", "layout"), [(True, dict), (False, scanned)], ids=["1.0", "1.1, scanned"])
def test_the_model_computes_what_transformers_t5_does(tmp_path, mesh8, tied, layout):
  """From a step of a run alone: sizes, names, transposes and the scale of a tied head, onto eight devices."""
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  found = arrays(tied=tied, gated=not tied)
  folder = save(tmp_path, layout(found))
  opened = open_model(folder, mesh8)
  assert opened.found.unused == ()
  theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**open_tensors(folder).config)).eval()
  if not tied:  # transformers 5 shares the table even so
    theirs.lm_head.weight = torch.nn.Parameter(torch.zeros(VOCAB, D))
  state = {hugging_face(n)[0]: torch.tensor(a.T if hugging_face(n)[1] else a) for n, a in found.items()}
  more = {f"{side}.embed_tokens.weight": state["shared.weight"] for side in ("encoder", "decoder")}
  more |= {} if "lm_head.weight" in state else {"lm_head.weight": state["shared.weight"]}
  theirs.load_state_dict(state | more)
  rng = np.random.default_rng(1)
  rows = {"task_ids": np.zeros(2, np.int32)}
  for side, length in (("encoder", 6), ("decoder", 4)):
    rows[f"{side}_input_tokens"] = rng.integers(2, VOCAB, (2, length)).astype(np.int32)
    rows[f"{side}_segment_ids"] = np.ones((2, length), np.int32)
    rows[f"{side}_positions"] = np.tile(np.arange(length, dtype=np.int32), (2, 1))
  logits = jax.jit(lambda params, rows: opened.blueprint.merge(params)(rows).logits)(opened.params, rows)
  long = lambda side: torch.tensor(rows[f"{side}_input_tokens"], dtype=torch.long)
  with torch.no_grad():
    wanted = theirs(input_ids=long("encoder"), decoder_input_ids=long("decoder")).logits.numpy()
  np.testing.assert_allclose(logits, wanted, rtol=0, atol=2e-4 * np.abs(wanted).max())


def test_relative_positions_in_every_layer_are_umt5(tmp_path):
  found = scanned(arrays())
  for side in ("encoder", "decoder"):
    found[f"{side}/{side}/relpos_bias/rel_embedding"] = np.stack(
      [found.pop(f"{side}/relpos_bias/rel_embedding")] * 2, 1
    )
  read = open_tensors(save(tmp_path, found))
  assert read.config["model_type"] == "umt5"
  assert read["decoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"].shape == (BUCKETS, HEADS)


def test_the_last_step_of_a_run(tmp_path):
  for step in (90, 1000):
    save(tmp_path, {"token_embedder/embedding": np.full((2, 2), step, np.float32)}, step=step)
  (tmp_path / "checkpoint_2000.tmp-1").mkdir()
  assert open_tensors(tmp_path)["shared.weight"][0, 0] == 1000
  assert open_tensors(tmp_path / "checkpoint_90" / "checkpoint")["shared.weight"][0, 0] == 90
  assert open_tensors(tmp_path).config is None


def test_unknown_names_stay(tmp_path):
  found = {"adapter/x": np.ones(2, np.float32), "encoder/layers_0/attention/rotary/kernel": np.ones((2, 3), np.float32)}
  read = open_tensors(save(tmp_path, found))
  assert "adapter/x" in read and len(read) == 2


def test_a_tensor_whose_folder_is_gone(tmp_path):
  folder = save(tmp_path, arrays())
  gone = folder / "target.decoder.decoder_norm.scale"
  gone.rename(tmp_path / "elsewhere")
  with pytest.raises(UserError, match=r"`decoder/decoder_norm/scale` can not be opened"):
    open_tensors(folder)


def test_a_folder_of_another_shape(tmp_path):
  found = {"token_embedder/embedding": np.ones((2, 3), np.float32)}
  folder = save(tmp_path, found)
  index = folder / "checkpoint"
  tree = serialization.msgpack_restore(index.read_bytes())
  spec = tree["optimizer"]["target"]["token_embedder"]["embedding"]
  spec["metadata"]["shape"] = [2, 4]
  index.write_bytes(serialization.msgpack_serialize(tree))
  with pytest.raises(UserError, match=r"has shape \(2, 3\), and the index says \[2, 4\]"):
    open_tensors(folder)
  for path in ("..", "", "/", "../../.."):
    spec["metadata"]["shape"], spec["kvstore"] = [2, 3], {"driver": "file", "path": path}
    index.write_bytes(serialization.msgpack_serialize(tree))
    with pytest.raises(UserError, match="no path in its folder"):
      open_tensors(folder)


def test_a_spec_opens_nothing_but_its_folder(tmp_path):
  folder = save(tmp_path, {"token_embedder/embedding": np.ones((2, 3), np.float32)})
  outside = tmp_path / "outside"
  (folder / "target.token_embedder.embedding").rename(outside)
  (folder / "target.token_embedder.embedding").symlink_to(outside)
  with pytest.raises(UserError, match="no path in its folder"):
    open_tensors(folder)


EMPTY = serialization.msgpack_serialize({"version": 3, "optimizer": {"target": {}}})


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", b"\x81\xa7version\x03", EMPTY])
def test_no_index(tmp_path, data):
  (tmp_path / "checkpoint").write_bytes(data)
  with pytest.raises(UserError, match=r"T5X|parameters"):
    open_tensors(tmp_path)


def test_tensorflows_checkpoint_is_another(tmp_path):
  (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-0"\n')
  with pytest.raises(UserError, match="has no checkpoint; it has checkpoint"):
    open_tensors(tmp_path)
