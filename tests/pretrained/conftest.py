"""Folders of small random models as transformers writes them."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
  """saved(name): the folder of a model of transformers, all of whose parameters are random. ByT5 has its vocabulary."""
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  root = tmp_path_factory.mktemp("saved")
  t5 = dict(d_model=16, d_kv=12, num_heads=2, d_ff=32, num_layers=2, num_decoder_layers=3)
  llama = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
  gpt2 = dict(n_embd=16, n_head=2, n_layer=2, n_positions=32)
  neox = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
  made = {
    "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=48, **t5)),
    "byt5": lambda: transformers.T5ForConditionalGeneration(
      transformers.T5Config(vocab_size=387, feed_forward_proj="gated-gelu", **t5)
    ),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=61, **llama)),
    "llama_bf16": lambda: transformers.LlamaForCausalLM(
      transformers.LlamaConfig(vocab_size=61, tie_word_embeddings=True, **llama)
    ).to(torch.bfloat16),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=48, **gpt2)),
    "neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(vocab_size=48, **neox)),
    "phi3": lambda: transformers.Phi3ForCausalLM(
      transformers.Phi3Config(vocab_size=48, pad_token_id=0, bos_token_id=1, eos_token_id=2, **llama)
    ),
  }

  def folder(name: str) -> Path:
    place = root / name
    if not place.exists():
      torch.manual_seed(0)
      model = made[name]()
      with torch.no_grad():
        for parameter in model.parameters():
          parameter.normal_(1.0 if parameter.ndim == 1 else 0.0, 0.2)
      model.save_pretrained(place)
      if name == "byt5":
        settings = {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 125}
        (place / "tokenizer_config.json").write_text(json.dumps(settings))
    return place

  return folder
