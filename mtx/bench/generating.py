"""Greedy decoding beside `transformers.generate`: the same weights, prompts and tokens, in the same run."""

import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mtx.bench.clock import interleaved
from mtx.bench.row import Row, Target, compared, skipped
from mtx.data.convert import prompts
from mtx.decode.loop import make_decode
from mtx.decode.settings import Settings
from mtx.models.families.known import families
from mtx.parallel.mesh import AXES
from mtx.pretrained.model import open_model

UNIT, TARGET = "tokens/s", Target(2.0)
PEERS = ("torch", "transformers")
BATCH, INPUTS, OUTPUTS = 16, 128, 64
SHAPES = {
  "generate_t5": ("T5Config", "T5ForConditionalGeneration", families()["t5"].presets["flan_t5_small"]),
  "generate_llama": (
    "LlamaConfig",
    "LlamaForCausalLM",
    {
      "vocab_size": 32000,
      "hidden_size": 512,
      "intermediate_size": 1376,
      "num_hidden_layers": 8,
      "num_attention_heads": 8,
      "num_key_value_heads": 8,
    },
  ),
}


def generating(name: str, *, sizes: dict[str, Any] | None = None, repeats: int = 5) -> Row:
  """Tokens/s of 64 greedy tokens after 128 for 16 prompts, the prompts' own computation counted.

  Args:
    name: of SHAPES.
    sizes: fields of the config that differ from it.
  """
  if missing := [peer for peer in PEERS if find_spec(peer) is None]:
    return skipped(name, UNIT, TARGET, f"{', '.join(missing)} not installed: the weights are theirs")
  if jax.default_backend() != "cpu":
    return skipped(name, UNIT, TARGET, f"the peer runs on CPU and JAX on {jax.default_backend()}")
  peer, ours, shape = contestants(name, sizes or {})
  same = (peer() == ours()).mean()
  seconds = interleaved({"ours": ours, "peer": peer}, repeats)
  rate = {each: BATCH * OUTPUTS / median(runs) for each, runs in seconds.items()}
  detail = (
    f"{shape}; {BATCH} prompts, {INPUTS} in, {OUTPUTS} out, float32; {same:.1%} of tokens equal; peer: generate, "
    f"{os.cpu_count()} threads; medians of {repeats} interleaved runs "
    f"({median(seconds['ours']):.2f} s and {median(seconds['peer']):.2f} s)"
  )
  return compared(name, UNIT, rate["ours"], rate["peer"], TARGET, detail)


def contestants(name: str, sizes: dict[str, Any]) -> tuple[Callable[[], np.ndarray], Callable[[], np.ndarray], str]:
  """(the peer, ours, their shape): each returns the tokens that it made, [batch, outputs]."""
  import torch
  import transformers

  torch.set_num_threads(os.cpu_count() or 1)
  torch.manual_seed(0)
  config_class, model_class, shape = SHAPES[name]
  config = getattr(transformers, config_class)(**{**shape, **sizes}, eos_token_id=None, pad_token_id=0)
  config.decoder_start_token_id = 0
  theirs = getattr(transformers, model_class)(config).eval()
  mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), AXES)
  with TemporaryDirectory() as folder, warnings.catch_warnings():
    warnings.simplefilter("ignore")
    theirs.save_pretrained(folder)
    opened = open_model(Path(folder), mesh)
  inputs = np.random.default_rng(0).integers(3, config.vocab_size, (BATCH, INPUTS)).astype(np.int32)
  architecture = opened.config.architecture
  examples = [{"inputs": row} for row in inputs]
  # Prompts are whole rows of tokens for both: no start token, no padding.
  batch = prompts(examples, architecture, INPUTS, OUTPUTS, [0] * BATCH, eos_id=-1, start_id=None)
  decode = make_decode([opened.blueprint], mesh, Settings(eos_ids=(), temperature=0.0))
  limits = np.full(BATCH, OUTPUTS)

  def ours() -> np.ndarray:
    return np.asarray(decode([opened.params], [batch], limits, None).tokens[:, 0])

  ids = torch.tensor(inputs).long()
  mask = torch.ones_like(ids)

  def peer() -> np.ndarray:
    with torch.no_grad():
      made = theirs.generate(
        input_ids=ids, attention_mask=mask, min_new_tokens=OUTPUTS, max_new_tokens=OUTPUTS, do_sample=False, num_beams=1
      )
    return made[:, -OUTPUTS:].numpy()

  c = opened.config
  layers = f"{c.encoder_layers} + {c.decoder_layers}" if architecture == "encdec" else str(c.decoder_layers)
  return peer, ours, f"d_model {c.d_model}, {c.heads} heads, d_ff {c.d_ff}, {layers} layers, {c.vocab_size:,} tokens"
