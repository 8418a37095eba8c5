"""Model FLOPs, counted from sizes: compilers count the body of a scan once, so their figure is no use here."""

from ml_collections import ConfigDict

from mtx.models.config import kv_heads


def forward_per_row(config: ConfigDict, inputs_length: int, targets_length: int) -> float:
  """FLOPs of one forward pass over one row (2 per multiply-add), padding included.

  Projections and logits exactly, attention scores as the full rectangle, adapters and element-wise work not counted.
  """
  c = config
  inner, shared, d = c.heads * c.d_kv, kv_heads(c) * c.d_kv, c.d_model
  attention = lambda queries, keys: 4 * d * (queries * inner + keys * shared) + 4 * queries * keys * inner
  mlp = lambda tokens: 2 * (3 if c.gated else 2) * tokens * d * c.d_ff
  logits = lambda tokens: 2 * tokens * d * c.vocab_size
  if c.architecture != "encdec":
    n = inputs_length + targets_length
    return c.decoder_layers * (attention(n, n) + mlp(n)) + logits(n)
  i, t = inputs_length, targets_length
  encoder = c.encoder_layers * (attention(i, i) + mlp(i))
  decoder = c.decoder_layers * (attention(t, t) + attention(t, i) + mlp(t))
  return encoder + decoder + logits(t)


def training_per_row(config: ConfigDict, inputs_length: int, targets_length: int, *, frozen_base: bool) -> float:
  """FLOPs one training step needs a row: forward, activation gradients and, unless the base is frozen, its weight
  gradients. Rematerialisation is not work the model requires and is not counted."""
  return (2 if frozen_base else 3) * forward_per_row(config, inputs_length, targets_length)
