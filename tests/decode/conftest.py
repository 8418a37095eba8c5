"""Random models of `transformers` beside ours with the same weights."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from mtx.data.convert import prompts
from mtx.models.build import build
from mtx.models.families.known import family_of
from mtx.training.parameters import blueprint


@dataclass
class Peer:
  """One model twice. Prompts of unequal length, every id from 3 on."""

  theirs: Any
  model: Any
  params: dict
  architecture: str
  examples: list

  def prompts(self, order=None, length: int = 9):
    chosen = [self.examples[i] for i in (range(len(self.examples)) if order is None else order)]
    tasks = [0] * len(chosen)
    return prompts(chosen, self.architecture, length, 8, tasks, eos_id=-1, start_id=1 if self.decoder else 0)

  @property
  def decoder(self) -> bool:
    return self.architecture != "encdec"

  def generate(self, length: int, **options):
    """Their outputs without prompt or start token, int[rows, at most length]; options as of GenerationConfig."""
    import torch

    batch = self.prompts()
    side = "decoder" if self.decoder else "encoder"
    tensor = lambda name: torch.tensor(np.asarray(batch[f"{side}_{name}"]), dtype=torch.long)
    with torch.no_grad():
      found = self.theirs.generate(
        input_ids=tensor("input_tokens"),
        attention_mask=(tensor("segment_ids") > 0).long(),
        max_new_tokens=length,
        return_dict_in_generate=True,
        output_scores=True,
        **({"num_beams": 1, "do_sample": False} | options),
      )
    width = batch["decoder_input_tokens"].shape[1] if self.decoder else 1
    return found.sequences[:, width:].numpy(), found


def peer(theirs, architecture: str, count: int = 5) -> Peer:
  import torch

  torch.manual_seed(0)
  with torch.no_grad():
    for name, p in theirs.named_parameters():
      p.normal_(1.0, 0.2) if "norm" in name else p.normal_(0.0, 1.0 if "embed" in name or "shared" in name else 0.5)
  hf = theirs.config.to_dict()
  family = family_of(hf)
  config = family.config(hf)
  config.architecture = architecture
  state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
  family.settle(config, state)
  model = blueprint(lambda rngs: build(config, rngs=rngs))
  params = {}
  for name in family.names(config):
    shape, stacked = model.shapes[name.ours].shape, "{layer}" in name.theirs
    if stacked:
      layers = [name.read(state[name.theirs.format(layer=i)], shape[1:]) for i in range(shape[0])]
    params[name.ours] = jnp.asarray(np.stack(layers) if stacked else name.read(state[name.theirs], shape))
  assert params.keys() == model.shapes.keys()
  rng = np.random.default_rng(1)
  lengths = [9, 3, 7, 5, 1][:count]
  examples = [{"inputs": rng.integers(3, config.vocab_size, n).astype(np.int32)} for n in lengths]
  return Peer(theirs, model, params, architecture, examples)


@pytest.fixture(scope="session")
def t5_peer():
  pytest.importorskip("torch", reason="PyTorch is not installed")
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  import torch

  config = transformers.T5Config(
    vocab_size=48, d_model=16, d_kv=12, num_heads=2, d_ff=32, num_layers=2, num_decoder_layers=2,
    relative_attention_num_buckets=8, relative_attention_max_distance=16, feed_forward_proj="gated-gelu",
    decoder_start_token_id=0, eos_token_id=None, tie_word_embeddings=False,
  )  # fmt: skip
  theirs = transformers.T5ForConditionalGeneration(config).eval()
  theirs.lm_head.weight = torch.nn.Parameter(torch.zeros(48, 16))  # transformers 5 shares the table even so
  return peer(theirs, "encdec")


@pytest.fixture(scope="session")
def llama_peer():
  pytest.importorskip("torch", reason="PyTorch is not installed")
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  config = transformers.LlamaConfig(
    vocab_size=48, hidden_size=16, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=32,
    num_hidden_layers=2, eos_token_id=None, bos_token_id=1, pad_token_id=0,
  )  # fmt: skip
  return peer(transformers.LlamaForCausalLM(config).eval(), "causal")


@pytest.fixture(scope="session", params=["t5", "llama"])
def any_peer(request):
  return request.getfixturevalue(f"{request.param}_peer")
