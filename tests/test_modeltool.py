"""`mtx import` and `mtx export`: what they write, what they say, and how they refuse."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from mtx.pretrained.model import open_model
from mtx.run import main


@pytest.fixture(scope="module")
def place(tmp_path_factory):
  """A folder with a small T5 with ByT5's vocabulary, Poly adapters for it, and a small Llama."""
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  peft = pytest.importorskip("peft", reason="peft is not installed")
  root = tmp_path_factory.mktemp("place")
  torch.manual_seed(0)
  t5 = transformers.T5Config(vocab_size=384, d_model=16, d_kv=8, num_heads=2, d_ff=32, num_layers=2)
  model = transformers.T5ForConditionalGeneration(t5)
  model.save_pretrained(root / "t5")
  settings = {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 125}
  (root / "t5" / "tokenizer_config.json").write_text(json.dumps(settings))
  poly = peft.PolyConfig(r=2, n_tasks=2, n_skills=3, n_splits=2, target_modules=["q"])
  peft.get_peft_model(model, poly).save_pretrained(root / "poly")
  (root / "poly" / "tasks.json").write_text(json.dumps(["left", "right"]))
  llama = transformers.LlamaConfig(
    vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
  )
  transformers.LlamaForCausalLM(llama).to(torch.bfloat16).save_pretrained(root / "llama")
  return root


@pytest.fixture
def mtx(place, monkeypatch, capsys):
  """Runs a command in the place; returns (exit code, all that was said)."""
  monkeypatch.chdir(place)

  def run(*words: str) -> tuple[int, str]:
    code = main(list(words))
    said = capsys.readouterr()
    return code, said.out + said.err

  return run


def test_a_checkpoint_is_only_checked(mtx, place):
  code, text = mtx("import", "t5")
  assert code == 0
  assert "t5, encdec" in text and "float32" in text and "byte, 384 ids" in text and "written" not in text


def test_import_and_export(mtx, place):
  code, text = mtx("import", "llama", "--out", "kept/llama", "--architecture", "prefix")
  assert code == 0, text
  assert "llama, prefix" in text and "bfloat16" in text
  index = json.loads((place / "kept" / "llama" / "model.json").read_text())
  assert index["source"]["path"] == str(place / "llama") and "jax" in index["source"]["versions"]
  code, text = mtx("export", "kept/llama", "given")
  assert code == 0 and "runs it as a causal one" in text
  before, after = (load_file(place / name / "model.safetensors") for name in ("llama", "given"))
  assert all(value.tobytes() == after[name].tobytes() for name, value in before.items())
  code, text = mtx("export", "kept/llama", "wide", "--dtype", "float32")
  assert code == 0
  assert json.loads((place / "wide" / "config.json").read_text())["dtype"] == "float32"
  wide = load_file(place / "wide" / "model.safetensors")
  for name, value in before.items():
    np.testing.assert_array_equal(wide[name], value.astype(np.float32), err_msg=name)


def test_adapters_of_peft(mtx, place, mesh1):
  code, text = mtx("import", "t5", "--adapter", "poly", "--out", "routed")
  assert code == 0, text
  assert 'MHR {"rank": 2, "skills": 3, "splits": 2}' in text and "2: left, right" in text
  opened = open_model(place / "routed", mesh1)
  table = load_file(place / "poly" / "adapter_model.safetensors")
  name = "base_model.model.encoder.block.1.layer.0.SelfAttention.q.poly_lora_A"
  np.testing.assert_array_equal(opened.params["encoder/layers/self_attention/q/adapter/a"][1], table[name])
  code, text = mtx("export", "routed", "again", "--adapters", "peft")
  assert code == 0, text
  written = load_file(place / "again" / "adapter_model.safetensors")
  assert written.keys() == table.keys()
  assert all(value.tobytes() == written[name].tobytes() for name, value in table.items())
  assert json.loads((place / "again" / "tasks.json").read_text()) == ["left", "right"]
  code, text = mtx("export", "routed", "right", "--adapters", "merged", "--task", "right")
  assert code == 0, text


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (("import", "nothing"), "nothing is not there"),
    (("import", "t5", "--architecture", "causal"), "does not run as architecture 'causal'"),
    (("import", "t5", "--out", "llama"), "--out llama exists already"),
    (("import", "t5", "--adapter", "llama"), "adapter_config.json can not be read"),
    (("import", "t5", "--gin.model.preset=t5_tiny"), "`mtx import` reads no gin"),
    (("export", "t5", "llama"), "llama exists already"),
    (("export", "t5", "new", "--adapters", "peft"), "the model has no adapters"),
    (("export", "t5", "new", "--adapters", "none", "--task", "left"), "goes with --adapters merged"),
  ],
)
def test_what_is_refused(mtx, place, words, message):
  code, text = mtx(*words)
  assert code == 2 and message in text
  assert not (place / "new").exists()
