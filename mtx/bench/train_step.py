"""The MHR training step beside `transformers` T5 with `peft` Poly: same sizes, sites, tokens, optimizer, machine."""

import os
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from statistics import median

import jax
import numpy as np

from mtx.bench.clock import interleaved
from mtx.bench.row import Row, Target, compared, skipped
from mtx.bench.trainer import T5_SMALL, Shape, routed

NAME, UNIT, TARGET = "train_step", "tokens/s", Target(1.2)
PEERS = ("torch", "transformers", "peft")
SITES = ["q", "k", "v", "o", "wi_0", "wi_1", "wo"]  # every projection of every block, as `ADAPTED` selects


def train_step(shape: Shape = T5_SMALL, *, repeats: int = 5) -> Row:
  """Tokens/s of one update, forward to optimizer, base frozen. Every row is full, so padding plays no part."""
  trainer, batch = routed(shape), shape.random_batch()
  contestants: dict[str, Callable[[], object]] = {"ours": lambda: trainer(batch)}
  missing = [name for name in PEERS if find_spec(name) is None]
  if missing:
    why = f"{', '.join(missing)} not installed"
  elif jax.default_backend() != "cpu":
    why = f"the peer runs on CPU and JAX on {jax.default_backend()}; set JAX_PLATFORMS=cpu"
  else:
    why = ""
    contestants["peer"] = peft_poly(shape)
  seconds = interleaved(contestants, repeats)
  rate = {name: shape.tokens / median(runs) for name, runs in seconds.items()}
  if why:
    return skipped(NAME, UNIT, TARGET, why, rate["ours"])
  return compared(
    NAME,
    UNIT,
    rate["ours"],
    rate["peer"],
    TARGET,
    f"{shape}; {shape.skills} skills, {shape.splits} splits, rank {shape.rank} on all projections in blocks; "
    f"peer: transformers T5 + peft Poly, {os.cpu_count()} threads; medians of {repeats} interleaved steps "
    f"({median(seconds['ours']):.2f} s and {median(seconds['peer']):.2f} s)",
  )


def peft_poly(shape: Shape) -> Callable[[], None]:
  """One update of the peer, as its user would write it. No dropout, as ours has none: that is less work for it."""
  import torch
  from peft import PolyConfig, TaskType, get_peft_model
  from transformers import T5Config, T5ForConditionalGeneration

  torch.set_num_threads(os.cpu_count() or 1)
  torch.manual_seed(0)
  c = shape.config()
  sizes = {
    "vocab_size": c.vocab_size,
    "d_model": c.d_model,
    "d_kv": c.d_kv,
    "d_ff": c.d_ff,
    "num_layers": c.encoder_layers,
    "num_decoder_layers": c.decoder_layers,
    "num_heads": c.heads,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": c.tied_head,
    "dropout_rate": c.dropout,
    "decoder_start_token_id": 0,
    "use_cache": False,
  }
  poly = PolyConfig(
    task_type=TaskType.SEQ_2_SEQ_LM,
    poly_type="poly",
    r=shape.rank,
    n_tasks=shape.tasks,
    n_skills=shape.skills,
    n_splits=shape.splits,
    target_modules=SITES,
  )
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations between the peers
    model = get_peft_model(T5ForConditionalGeneration(T5Config(**sizes)), poly)
  model.train()
  trainable = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.AdamW(trainable, lr=1e-3, weight_decay=0.0)
  examples = shape.examples()
  inputs, targets = (torch.tensor(np.stack([e[side] for e in examples])).long() for side in ("inputs", "targets"))
  task_ids, mask = torch.tensor(shape.task_ids()), torch.ones_like(inputs)

  def step() -> None:
    loss = model(input_ids=inputs, attention_mask=mask, labels=targets, task_ids=task_ids).loss
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trainable, 1.0)  # ours clips by default too
    optimizer.step()

  return step
