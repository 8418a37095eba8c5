"""`mtx train` from a pre-trained model: its vocabulary, its parameters, adapters on it, and what the run leaves."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from mtx.pretrained.model import open_model
from mtx.run import main

pytest.importorskip("seqio")
torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
WORDS = "the cat sat on a mat and the dog ran to the door of a house".split()
MANIFEST = """
next:
  files: next.jsonl
  fields: [text]
  target: answer
other:
  files: other.jsonl
  fields: [text]
  target: answer
  heldout: true
"""
GIN = """
train.source = @own
own.path = 'data'
train.run_dir = 'run'
train.cache_dir = 'cache'
train.stages = [@tune/stage()]
train.inputs_length = 24
train.targets_length = 8
train.save_every = 2
evaluation.examples = 2
evaluation.before = False
model.pretrained = 'model'
feed.batch = 8
tune/stage.steps = 4
"""
LORA = """
adapter.pattern = '.*/(q|v)'
adapter.method = @LoRA
LoRA.rank = 2
tune/stage.adapter = @adapter
tune/stage.learning_rates = {'.*/adapter/.*': 1e-2}
"""
MESH = ["--gin.mesh.data=2", "--gin.mesh.fsdp=2", "--gin.mesh.tensor=2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with data, gin files, and a small Llama in bfloat16 with a tokenizer of its own."""
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

  root = tmp_path_factory.mktemp("place")
  (root / "data").mkdir()
  rng = np.random.default_rng(0)
  for name, count in (("next", 30), ("other", 4)):
    texts = [list(rng.choice(WORDS, 5)) for _ in range(count)]
    rows = [{"text": " ".join(words), "answer": words[0]} for words in texts]
    (root / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (root / "data" / "tasks.yaml").write_text(MANIFEST)
  (root / "lora.gin").write_text(GIN + LORA)
  (root / "full.gin").write_text(GIN + "tune/stage.learning_rates = {'decoder/.*': 1e-3}\n")
  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=280, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )  # fmt: skip
  tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
  torch.manual_seed(0)
  config = transformers.LlamaConfig(
    vocab_size=283, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
    bos_token_id=0, eos_token_id=1,
  )  # fmt: skip
  transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(root / "model")
  tokenizer.save(str(root / "model" / "tokenizer.json"))
  settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
  (root / "model" / "tokenizer_config.json").write_text(json.dumps(settings))
  return root


@pytest.fixture
def here(place, monkeypatch):
  monkeypatch.chdir(place)
  monkeypatch.setenv("MTX_CACHE", str(place))
  return place


def train(capsys, *words: str) -> str:
  code = main(["train", *words])
  out, err = capsys.readouterr()
  assert code == 0, err
  return out


def refused(capsys, *words: str) -> str:
  assert main(["train", *words]) == 2
  return capsys.readouterr().err


def arrays(folder, mesh) -> dict[str, np.ndarray]:
  return {path: np.asarray(value) for path, value in open_model(folder, mesh).params.items()}


@pytest.fixture(scope="module")
def adapted(place):
  """A finished run with LoRA on the frozen model, on 8 devices; 283 rows stay whole where 2 does not divide them."""
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(place)
    patch.setenv("MTX_CACHE", str(place))
    assert main(["train", "--gin_file=lora.gin", *MESH]) == 0
  return place / "run"


def test_a_frozen_base_stays_what_it_was(here, adapted, mesh1):
  """bfloat16, bit for bit; adapters are float32 and have moved. The data's ids are the model's."""
  opened, base = open_model(adapted, mesh1), arrays(here / "model", mesh1)
  assert opened.family.name == "llama" and opened.tasks == ()
  for path, value in opened.params.items():
    if "/adapter/" in path:
      assert value.dtype == jnp.float32
    else:
      assert value.dtype == jnp.bfloat16
      np.testing.assert_array_equal(np.asarray(value), base[path], err_msg=path)
  assert all(np.abs(opened.params[path]).max() > 0 for path in opened.params if path.endswith("adapter/b"))
  assert "mixture.vocabulary = 'model'" in (adapted / "operative.gin").read_text()
  assert opened.vocabulary.encode("the cat") == open_model(here / "model", mesh1).vocabulary.encode("the cat")


def test_a_run_that_was_stopped_goes_on(here, adapted, mesh1, capsys):
  """From a checkpoint of adapters alone, and the base from its folder: bit-identical to the run that was not."""
  whole = arrays(adapted, mesh1)
  broken = shutil.copytree(adapted, here / "broken")
  shutil.rmtree(broken / "model")
  shutil.rmtree(broken / "tune" / "checkpoints" / "4")
  text = train(capsys, "--gin_file=lora.gin", *MESH, "--gin.train.run_dir=broken")
  assert "tune: going on from step 2" in text
  found = arrays(broken, mesh1)
  assert found.keys() == whole.keys()
  for path, value in whole.items():
    np.testing.assert_array_equal(found[path], value, err_msg=path)
  before = (broken / "model" / "model.json").stat().st_mtime_ns
  assert "complete at step 4" in train(capsys, "--gin_file=lora.gin", *MESH, "--gin.train.run_dir=broken")
  assert (broken / "model" / "model.json").stat().st_mtime_ns > before
  for path, value in arrays(broken, mesh1).items():
    np.testing.assert_array_equal(value, whole[path], err_msg=path)


def test_a_run_is_exported(here, adapted, mesh1, capsys):
  """Merged for transformers, alone for peft, with the tokenizer's files and the model's own settings."""
  assert main(["export", "run", "merged"]) == 0
  assert main(["export", "run", "adapters", "--adapters", "peft"]) == 0
  capsys.readouterr()
  assert (here / "merged" / "tokenizer.json").read_bytes() == (here / "model" / "tokenizer.json").read_bytes()
  model = transformers.LlamaForCausalLM.from_pretrained(here / "merged").eval()
  assert model.dtype == torch.bfloat16 and model.config.eos_token_id == 1
  settings = json.loads((here / "adapters" / "adapter_config.json").read_text())
  assert settings["base_model_name_or_path"] == str(here / "model")
  peft = pytest.importorskip("peft", reason="peft is not installed")
  base = transformers.LlamaForCausalLM.from_pretrained(here / "model", dtype=torch.float32)
  both = peft.PeftModel.from_pretrained(base, here / "adapters").eval()
  tokens = torch.arange(5, 12)[None]
  with torch.no_grad():
    one, other = model.float()(tokens).logits.numpy(), both(tokens).logits.numpy()
  assert np.abs(one - other).max() < 0.02 * np.abs(other).max()  # the merged kernel is bfloat16 again


def test_what_is_trained_becomes_float32(here, mesh1, capsys):
  """Full fine-tuning of the stack in two stages; table and head stay as they were."""
  stages = ["--gin.train.stages=[@tune/stage(), @again/stage()]", "--gin.again/stage.steps=2"]
  rates = ["--gin.again/stage.learning_rates={'head/.*': 1e-3}", "--gin.train.run_dir=full"]
  text = train(capsys, "--gin_file=full.gin", "--gin.mesh.data=8", *stages, *rates)
  assert "tune: starts from model" in text and "again: starts from" not in text
  found, base = arrays(here / "full", mesh1), arrays(here / "model", mesh1)
  assert {value.dtype for value in found.values()} == {np.dtype("float32")}
  for path in ("decoder/layers/mlp/wo/kernel", "head/projection/kernel"):
    assert 0 < np.abs(found[path] - base[path].astype(np.float32)).max() < 0.05, path


@pytest.mark.parametrize(
  ("binding", "message"),
  [
    ("mixture.vocabulary=bytes", "is not that of model (tokenizers)"),
    ("mixture.extra_ids=100", "ids, and the embedding of model 283 rows"),
    ("model.pretrained=modell", "modell is not there"),
    ("model.preset=t5_micro", "exclude each other"),
    ("model.architecture=encdec", "does not run as architecture 'encdec'"),
    ("model.overrides={'d_ff': 64}", "parameter decoder/layers/mlp/wi_0/kernel has shape (2, 16, 32)"),
    ("model.overrides={'d_f': 64}", "has no field 'd_f'"),
  ],
)
def test_what_does_not_fit(here, capsys, binding, message):
  text = refused(capsys, "--gin_file=lora.gin", "--gin.train.run_dir=refused", f"--gin.{binding}")
  assert message in text.replace("\n", " "), text


def test_a_model_without_a_vocabulary(here, capsys, tmp_path):
  shutil.copytree(here / "model", tmp_path / "model")
  (tmp_path / "model" / "tokenizer.json").unlink()
  text = refused(capsys, "--gin_file=lora.gin", f"--gin.model.pretrained={tmp_path / 'model'}")
  assert "has no vocabulary" in text and "`mixture.vocabulary`" in text


def test_neither_preset_nor_folder(here, capsys):
  assert "needs a value" in refused(capsys, "--gin_file=lora.gin", "--gin.model.pretrained=None")
