"""Decoding by the kernels for it says what decoding by XLA says, on one device and on many."""

from functools import partial

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtx.data.convert import prompts
from mtx.decode.greedy import make_greedy
from mtx.decode.loop import make_decode
from mtx.decode.settings import Settings
from mtx.decode.speculative import make_speculative
from mtx.errors import UserError
from mtx.models.attention import attention_backends
from mtx.models.build import build
from mtx.parallel.rules import place
from mtx.training.parameters import blueprint
from pallas_kernels.attention import decode_tpu, decode_triton

INPUTS, STEPS, ROWS = 9, 16, 4
PLAIN = {"relative_buckets": 0, "attention_scale": 0.25, "tied_head": False, "d_kv": 16}
MODELS = {
  "t5": {"architecture": "encdec", "tied_head": False, "d_kv": 16},
  "llama": {"architecture": "causal", "heads": 4, "kv_heads": 2, "rope_theta": 10000.0, **PLAIN},
  "bloom": {"architecture": "causal", "alibi": True, "norm": "layer", **PLAIN},
  "windowed prefix": {
    "architecture": "prefix",
    "window": 4,
    "window_layers": (1, 0),
    "attention_soft_cap": 5.0,
    **PLAIN,
  },
}


def decoding(config, impl: str | None):
  """A blueprint whose decoding steps are computed by `impl`."""
  gin.clear_config()
  if impl is not None:
    gin.bind_parameter("attention.decode_impl", impl)
  return blueprint(lambda rngs: build(config, rngs=rngs))


@pytest.fixture
def calls(monkeypatch):
  """Which kernels were traced, by name."""
  found = []
  for module in (decode_tpu, decode_triton):
    real = module.in_cache
    monkeypatch.setattr(
      module, "in_cache", lambda *given, real=real, name=module.NAME: found.append(name) or real(*given)
    )
  return found


@pytest.mark.parametrize("family", MODELS)
def test_greedy_token_for_token(family, tiny, weights, examples, mesh1, calls):
  """Rows padded to one length, 16 steps."""
  config = tiny(**MODELS[family])
  batch = prompts(examples(ROWS, inputs=INPUTS), config.architecture, INPUTS, STEPS, [0] * ROWS)
  said = {}
  for impl in (None, "decode_tpu", "decode_triton"):
    model = decoding(config, impl)
    said[impl] = np.asarray(make_greedy(model, mesh1, eos_id=-1)(weights(model), batch, STEPS))
  assert {*calls} == {decode_tpu.NAME, decode_triton.NAME}
  assert len(np.unique(said[None])) > 5 and said[None].shape == (ROWS, STEPS)
  np.testing.assert_array_equal(said["decode_tpu"], said[None])
  np.testing.assert_array_equal(said["decode_triton"], said[None])
