"""Opening a model in every form, keeping it in our own, and handing it to transformers bit for bit."""

import json
import shutil

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from mtx.adapters.lora import LoRA
from mtx.adapters.poly import MHR
from mtx.adapters.site import inject, injections
from mtx.data.vocabulary import Vocabulary
from mtx.errors import UserError
from mtx.models.build import build
from mtx.pretrained.export import export, fitting
from mtx.pretrained.model import find_model, open_model
from mtx.pretrained.native import Card, write_native
from mtx.training.parameters import blueprint

TOLERANCE = 2e-4  # of the largest logit


def batch(encdec: bool, vocab: int = 48, task: int = 0) -> dict[str, np.ndarray]:
  """One row of tokens that are nobody's padding."""
  rng = np.random.default_rng(0)
  made = {"task_ids": np.full(1, task, np.int32)}
  for side, length in (("encoder", 7), ("decoder", 5)) if encdec else (("decoder", 7),):
    made[f"{side}_input_tokens"] = rng.integers(5, vocab, (1, length)).astype(np.int32)
    made[f"{side}_segment_ids"] = np.ones((1, length), np.int32)
    made[f"{side}_positions"] = np.arange(length, dtype=np.int32)[None]
  return made | {"decoder_causal_attention": np.zeros_like(made["decoder_segment_ids"])}


def ours(opened, rows) -> np.ndarray:
  """Logits of a model that was opened."""
  found = jax.jit(lambda params, rows: opened.blueprint.merge(params)(rows).logits)(opened.params, rows)
  return np.asarray(found, np.float32)


def theirs(model, rows, **more) -> np.ndarray:
  """Logits of a model of transformers or peft."""
  import torch

  decoder = torch.tensor(rows["decoder_input_tokens"], dtype=torch.long)
  inputs = {"input_ids": decoder}
  if "encoder_input_tokens" in rows:
    encoder = torch.tensor(rows["encoder_input_tokens"], dtype=torch.long)
    inputs = {"input_ids": encoder, "decoder_input_ids": decoder}
  with torch.no_grad():
    return model.eval()(**inputs, **more).logits.float().numpy()


def loaded(folder):
  """What transformers makes of a folder."""
  import transformers

  kind = json.loads((folder / "config.json").read_text())["architectures"][0]
  return getattr(transformers, kind).from_pretrained(folder)


def close(one, other) -> None:
  np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE * np.abs(other).max())


@pytest.mark.parametrize("name", ["t5", "llama"])
def test_logits_are_those_of_transformers(saved, mesh1, name):
  opened = open_model(saved(name), mesh1)
  rows = batch(name == "t5")
  close(ours(opened, rows), theirs(loaded(saved(name)), rows))
  assert opened.family.name == name and opened.tasks == () and opened.vocabulary is None
  assert opened.found.unused == ()


def test_shards_with_an_index(saved, mesh8, mesh1, tmp_path):
  """A model in many files, as transformers writes it, is the model in one file; without one of them it is none."""
  loaded(saved("llama")).save_pretrained(tmp_path / "shards", max_shard_size="5KB")
  files = sorted((tmp_path / "shards").glob("model-*.safetensors"))
  assert len(files) > 3
  one, many = open_model(saved("llama"), mesh1), open_model(tmp_path / "shards", mesh8)
  assert many.params.keys() == one.params.keys()
  for path, value in many.params.items():
    np.testing.assert_array_equal(value, one.params[path], err_msg=path)
  files[1].unlink()
  with pytest.raises(UserError, match=f"{files[1].name} is missing, and model.safetensors.index.json names it"):
    open_model(tmp_path / "shards", mesh8)


@pytest.mark.parametrize("name", ["t5", "byt5", "llama", "llama_bf16", "gpt2"])
def test_import_then_export_is_the_identity(saved, mesh1, tmp_path, name):
  """Bitwise, through our own format, in every dtype; and transformers computes the same from what it is given."""
  opened = open_model(saved(name), mesh1)
  kept = write_native(tmp_path / "kept", Card(**{f: getattr(opened.found, f) for f in Card.__dataclass_fields__}),
                      opened.params)  # fmt: skip
  again = open_model(kept, mesh1)
  assert again.config.to_dict() == opened.config.to_dict() and again.family is opened.family
  given = export(again, tmp_path / "given")
  before, after = (load_file(folder / "model.safetensors") for folder in (saved(name), given))
  assert before.keys() == after.keys()
  for tensor, value in before.items():
    assert value.dtype == after[tensor].dtype and value.tobytes() == after[tensor].tobytes(), tensor
  rows = batch("t5" in name)
  np.testing.assert_array_equal(theirs(loaded(saved(name)), rows), theirs(loaded(given), rows))
  for file in ("generation_config.json", "tokenizer_config.json"):
    if (saved(name) / file).exists():
      assert (given / file).read_text() == (saved(name) / file).read_text()
  assert not list(tmp_path.glob(".*"))


def test_a_decoder_opens_as_prefix(saved, mesh1):
  """The same parameters under another mask: what a token sees ends the likeness."""
  causal, prefix = (open_model(saved("llama"), mesh1, architecture=a) for a in (None, "prefix"))
  assert causal.config.architecture == "causal" and prefix.config.architecture == "prefix"
  rows = batch(False)
  close(ours(causal, rows), ours(prefix, rows))
  rows["decoder_causal_attention"][:, :4] = 1
  changed = np.abs(ours(causal, rows) - ours(prefix, rows)).max(axis=-1)[0]
  assert changed[0] > 0.01
  with pytest.raises(UserError, match="does not run as architecture 'encdec'"):
    find_model(saved("llama"), architecture="encdec")
  with pytest.raises(UserError, match="does not run as architecture 'prefix'"):
    find_model(saved("t5"), architecture="prefix")


def test_shards_lie_where_the_mesh_says(saved, mesh8, mesh1):
  """61 rows do not divide by 2: that axis stays whole on this mesh, the others are split. bfloat16 is kept."""
  opened = open_model(saved("llama_bf16"), mesh8)
  assert all(value.dtype == jnp.bfloat16 for value in opened.params.values())
  table, q = opened.params["head/embedding/table"], opened.params["decoder/layers/self_attention/q/kernel"]
  assert table.sharding.shard_shape(table.shape) == (61, 8)
  assert q.sharding.shard_shape(q.shape) == (2, 8, 8)
  whole = open_model(saved("llama_bf16"), mesh1)
  for path, value in whole.params.items():
    np.testing.assert_array_equal(np.asarray(opened.params[path]), np.asarray(value), err_msg=path)


@pytest.fixture
def adapted(tiny, weights, mesh1):
  """adapted(adapter): an encoder-decoder with adapters, random everywhere, and its card."""

  def make(adapter, tasks):
    config = tiny(relative_buckets=32, relative_max_distance=128)

    def module(rngs: nnx.Rngs):
      model = build(config, rngs=rngs)
      adapter(model, tasks, rngs)
      return model

    model = blueprint(module)
    known = injections(model.merge(model.shapes))
    names = tuple(f"job_{i}" for i in range(tasks))
    return Card(config, vocabulary=Vocabulary("byte"), injections=known, tasks=names), model, weights(model)

  return make


def test_adapters_are_built_again_without_gin(adapted, mesh1, tmp_path):
  """Settings that gin bound in a scope are in the folder, and count whatever gin binds later."""
  bound = "adapter.pattern = '.*/(v|wo)'\nMHR.splits = 2\nadapter.method = @narrow/MHR\nnarrow/MHR.rank = 3\n"
  gin.parse_config(bound + "MHR.skills = 5")
  card, model, params = adapted(inject, 3)
  assert dict(card.injections[0].settings) == {"skills": 5, "splits": 2, "rank": 3}
  write_native(tmp_path / "kept", Card(**{**vars(card), "vocabulary": None}), params)
  gin.clear_config()
  gin.parse_config("MHR.skills = 7")
  again = open_model(tmp_path / "kept", mesh1)
  assert again.tasks == ("job_0", "job_1", "job_2") and again.blueprint.shapes == model.shapes
  for path, value in params.items():
    np.testing.assert_array_equal(again.params[path], value, err_msg=path)


def test_a_model_that_can_not_be_opened_again_is_not_written(adapted, tmp_path):
  method = lambda *sizes, **rest: LoRA(*sizes, rank=2, **rest)
  card, _, params = adapted(lambda m, t, r: inject(m, t, r, pattern=".*/q", method=method), 1)
  with pytest.raises(UserError, match="can not be described"):
    write_native(tmp_path / "kept", card, params)
  assert not (tmp_path / "kept").exists()


def test_a_folder_is_not_overwritten(adapted, mesh1, tmp_path):
  card, _, params = adapted(lambda m, t, r: inject(m, t, r, pattern=".*/q", method=MHR), 2)
  small = Card(**{**vars(card), "vocabulary": None})
  write_native(tmp_path / "kept", small, params)
  with pytest.raises(UserError, match="kept exists already"):
    write_native(tmp_path / "kept", small, params)
  write_native(tmp_path / "kept", Card(**{**vars(small), "tasks": ("x", "y")}), params, overwrite=True)
  assert find_model(tmp_path / "kept").tasks == ("x", "y") and not list(tmp_path.glob(".*"))


def test_a_model_from_scratch_exports_as_a_t5(tiny, weights, mesh1, tmp_path):
  """No family began it, and its config fits one. One with learned positions fits none, and is told why."""
  pytest.importorskip("transformers", reason="transformers is not installed")
  config = tiny(relative_buckets=32, relative_max_distance=128)
  model = blueprint(lambda rngs: build(config, rngs=rngs))
  write_native(tmp_path / "kept", Card(config), weights(model))
  opened = open_model(tmp_path / "kept", mesh1)
  assert opened.family is None
  given = export(opened, tmp_path / "given", dtype="float32")
  rows = batch(True)
  close(theirs(loaded(given), rows), ours(opened, rows))
  with pytest.raises(UserError, match="no family") as error:
    fitting(tiny(absolute_positions=16))
  assert "`absolute_positions` = 0 where this model has 16" in error.value.hint
  with pytest.raises(UserError, match="architecture 'causal'"):
    fitting(tiny("causal"))


def changed(folder, to, **config):
  """A copy of a model with another config."""
  shutil.copytree(folder, to)
  written = json.loads((to / "config.json").read_text())
  (to / "config.json").write_text(json.dumps(written | config))
  return to


@pytest.mark.parametrize(
  ("config", "message"),
  [
    ({"model_type": "lama"}, r"config.json: model_type 'lama' is not supported(.|\n)*`llama`"),
    ({"num_hidden_layers": 1}, r"`model\.layers\.1\..*` is of a layer more than config\.json says"),
    ({"num_hidden_layers": 3}, r"lacks tensors of \d+ parameters(.|\n)*model\.layers\.2\."),
    ({"intermediate_size": 40}, r"`model\.layers\.0\.mlp\..*has shape \(.*wants \(.*40"),
    ({"hidden_act": "tanhh"}, r"'hidden_act' is 'tanhh'"),
  ],
)
def test_a_config_that_contradicts_the_tensors(saved, mesh1, tmp_path, config, message):
  with pytest.raises(UserError, match=message):
    open_model(changed(saved("llama"), tmp_path / "copy", **config), mesh1)


def test_a_tensor_that_no_name_is(saved, mesh1, tmp_path):
  """It is listed, and does no harm."""
  copy = changed(saved("llama"), tmp_path / "copy")
  tensors = load_file(copy / "model.safetensors")
  save_file({**tensors, "score.weight": np.ones((2, 3), np.float32)}, copy / "model.safetensors", {"format": "pt"})
  assert open_model(copy, mesh1).found.unused == ("score.weight",)


def test_a_vocabulary_that_is_too_large(saved, tmp_path):
  copy = changed(saved("byt5"), tmp_path / "copy", vocab_size=300)
  with pytest.raises(UserError, match="the vocabulary has 384 ids, and the embedding 300 rows"):
    find_model(copy)
  assert find_model(saved("byt5")).vocabulary.encode("a") == [100]


def test_what_is_no_model(saved, tmp_path):
  with pytest.raises(UserError, match="nowhere is not there"):
    find_model(tmp_path / "nowhere")
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="empty is empty") as error:
    find_model(tmp_path / "empty")
  assert "model.json of `mtx import`" in error.value.hint
  run = tmp_path / "run"
  run.mkdir()
  (run / "operative.gin").write_text("")
  with pytest.raises(UserError, match="run without a model"):
    find_model(run)
  bare = tmp_path / "bare"
  bare.mkdir()
  shutil.copyfile(saved("t5") / "model.safetensors", bare / "model.safetensors")
  with pytest.raises(UserError, match=r"no config\.json"):
    find_model(bare)
  pickled = tmp_path / "pickled"
  pickled.mkdir()
  shutil.copyfile(saved("t5") / "config.json", pickled / "config.json")
  (pickled / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
  with pytest.raises(UserError, match="is a pickle") as error:
    find_model(pickled)
  assert "safe_serialization=True" in error.value.hint
  (pickled / "config.json").write_text("{")
  with pytest.raises(UserError, match="is not JSON"):
    find_model(pickled)


@pytest.mark.parametrize(
  ("index", "message"),
  [("{", "can not be read"), ("{}", "KeyError"), ('{"format": 99}', "has format 99"), ("[]", "can not be read")],
)
def test_a_damaged_index(tmp_path, index, message):
  (tmp_path / "model.json").write_text(index)
  with pytest.raises(UserError, match=message):
    find_model(tmp_path)


def test_llama2c(shared, mesh1):
  """Sizes and vocabulary of a single file and what lies beside it."""
  opened = open_model(shared / "stories260k" / "stories260K.bin", mesh1)
  assert opened.family.name == "llama" and opened.config.vocab_size == opened.vocabulary.size == 512
