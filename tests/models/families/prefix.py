"""A decoder run as prefix decoder: inputs see each other in both directions, targets are causal."""

import inspect

import jax
import numpy as np
from parity import TOLERANCE, Pair, features

from mtx.models.build import build
from mtx.training.parameters import blueprint

INPUTS = (6, 2, 5, 1)  # tokens of each row that see each other


def check_prefix(pair: Pair) -> None:
  """The same parameters as a prefix decoder.

  Without inputs it is the causal model. With them: what a token of the inputs changes, and what one after them, lies
  where it must; teacher forcing and decoding agree; and logits are those of transformers under the same mask, where
  its model takes a mask of queries and keys (BLOOM works its positions out of a mask of tokens).
  """
  config = pair.config.copy_and_resolve_references()
  config.architecture = "prefix"
  model = blueprint(lambda rngs: build(config, rngs=rngs))
  assert model.shapes == pair.model.shapes
  run = jax.jit(lambda params, batch: model.merge(params)(batch).logits)
  batch, arguments = features(pair, "right")
  tokens, real = batch["decoder_input_tokens"], batch["decoder_segment_ids"] > 0
  place = np.arange(tokens.shape[1])
  inside = (place < np.array(INPUTS)[:, None]).astype(np.int32)
  logits = lambda inside, tokens=tokens: np.asarray(
    run(pair.params, batch | {"decoder_input_tokens": tokens, "decoder_causal_attention": inside})
  )

  causal = pair._teacher(pair.params, batch)[0][1]
  np.testing.assert_allclose(logits(np.zeros_like(inside))[real], np.asarray(causal)[real], rtol=0, atol=1e-4)

  full = logits(inside)
  scale = np.abs(full[real]).max()
  for at, changes in ((INPUTS[0] - 1, 0), (INPUTS[0], INPUTS[0])):  # the first position that tells
    other = tokens.copy()
    other[0, at] = (other[0, at] + 1) % config.vocab_size
    moved = np.abs(logits(inside, other)[0] - full[0]).max(-1)
    assert (moved[changes:] > 1e-3 * scale).all() and (moved[:changes] < 1e-5 * scale).all()

  if "position_ids" in inspect.signature(pair.theirs.forward).parameters:
    seen = (place <= place[:, None]) | ((inside[:, :, None] > 0) & (inside[:, None, :] > 0))
    blocked = lambda seen: pair.torch.tensor(np.where(seen & real[:, None, :], 0.0, -1e9).astype(np.float32))[:, None]
    near = seen & (place[:, None] - place < config.window) if config.window else seen
    mask = blocked(near)
    if config.window and hasattr(pair.hf, "layer_types"):  # one for each kind of layer
      mask = {"full_attention": blocked(seen), "sliding_attention": mask}
    wanted = pair.theirs(**arguments | {"attention_mask": mask}).logits.detach().numpy()[real]
    np.testing.assert_allclose(full[real], wanted, rtol=0, atol=TOLERANCE * np.abs(wanted).max())

  prompts = {name: batch[name][:1, : INPUTS[0]] for name in batch if name.startswith("decoder_")}
  prompts |= {"decoder_causal_attention": inside[:1, : INPUTS[0]], "task_ids": batch["task_ids"][:1]}
  after = tokens[:1, INPUTS[0] :]
  first, cache = jax.jit(lambda p, prompts: model.merge(p).prefill(prompts, after.shape[1]))(pair.params, prompts)
  rest, _ = jax.jit(lambda p, cache: model.merge(p).extend(after, cache))(pair.params, cache)
  decoded = np.concatenate([np.asarray(first)[:, None], np.asarray(rest)], axis=1)[0]
  np.testing.assert_allclose(decoded, full[0, INPUTS[0] - 1 :], rtol=0, atol=1e-4 * scale)
