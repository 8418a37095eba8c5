"""Decoding by the kernels for it says what decoding by XLA says, on one device and on many."""

import re

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
from pallas_kernels import ahead
from pallas_kernels.attention import decode_tpu, decode_triton

INPUTS, STEPS, ROWS = 9, 16, 4
PLAIN = {"relative_buckets": 0, "attention_scale": 0.25, "tied_head": False, "d_kv": 16}
MODELS = {
  "t5": {"architecture": "encdec", "tied_head": False, "d_kv": 16},
  "llama": {"architecture": "causal", "heads": 4, "kv_heads": 2, "rope_theta": 10000.0, **PLAIN},
  "bloom": {"architecture": "causal", "alibi": True, **PLAIN},
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


def test_drafts(tiny, weights, examples, mesh1, calls):
  """Several queries, each row at an index of its own: speculative decoding gives the tokens of greedy decoding."""
  config = tiny(**MODELS["llama"])
  batch = prompts(examples(ROWS, inputs=INPUTS), config.architecture, INPUTS, STEPS, [0] * ROWS)
  limits, settings = np.array([STEPS, 5, STEPS, 9]), Settings(eos_ids=(-1,))
  model = decoding(config, None)
  params = weights(model)
  drafter = {
    path: value * (1 + 0.1 * jnp.sin(jnp.arange(value.size)).reshape(value.shape)) for path, value in params.items()
  }
  wanted = make_decode([model], mesh1, settings)([params], [batch], limits, None)
  model = decoding(config, "decode_tpu")
  decode = make_speculative([model], model, mesh1, settings, draft=3)
  found, _ = decode([params, drafter], [batch, batch], limits, None)
  assert calls
  np.testing.assert_array_equal(found.tokens[..., : wanted.tokens.shape[-1]], wanted.tokens)


@pytest.mark.parametrize("impl", ["decode_tpu", "decode_triton"])
def test_mesh_is_nothing(impl, tiny, weights, examples, mesh1, mesh8, calls):
  """Each device runs the kernel on its own rows and heads."""
  config = tiny(**MODELS["t5"])
  batch = prompts(examples(ROWS, inputs=INPUTS), config.architecture, INPUTS, STEPS, [0] * ROWS)
  wanted = make_greedy(decoding(config, None), mesh1, eos_id=-1)
  model = decoding(config, impl)
  params = weights(model)
  shardings = model.shardings(mesh8)
  placed = {p: jax.device_put(v, shardings[p]) for p, v in params.items()}
  found = make_greedy(model, mesh8, eos_id=-1)(placed, place(batch, mesh8), STEPS)
  assert calls
  np.testing.assert_array_equal(found, wanted(params, batch, STEPS))


@pytest.mark.skipif(not ahead.available("v5e"), reason="libtpu is not installed")
@pytest.mark.parametrize("family, d_kv", [("t5", 64), ("llama", 128)])
def test_no_step_copies_a_cache(family, d_kv, tiny, examples):
  """Compiled for a TPU, the loop over steps holds the kernel, and nothing but writes in place makes an array of the
  cache's size."""
  config = tiny(**MODELS[family] | {"d_kv": d_kv, "dtype": "bfloat16"})
  room = 200
  model = decoding(config, "decode_tpu")

  def run(params, batch):
    def one(carry, _):
      logits, cache = carry
      token = logits.argmax(-1).astype(jnp.int32)
      return model.merge(params).decode_step(token, cache), token

    return jax.lax.scan(one, model.merge(params).prefill(batch, room), None, length=4)[1]

  batch = prompts(examples(ROWS, inputs=INPUTS), config.architecture, INPUTS, room, [0] * ROWS)
  text = ahead.compiled_for("v5e", run, model.shapes, batch).as_text()
  assert decode_tpu.NAME in text
  keys = room + 1 + (INPUTS if family == "llama" else 0)
  whole = f"bf16[{config.decoder_layers},{ROWS},2,{keys},{d_kv}]"
  made = [line for line in text.splitlines() if f"= {whole}" in line and "while/body" in line]
  assert made and all(
    re.search(r"} (dynamic-update-slice|bitcast|get-tuple-element|parameter)[(]", line) for line in made
  )


def test_a_wrong_name_is_named():
  gin.bind_parameter("attention.decode_impl", "decode_gpu")
  with pytest.raises(UserError, match=r"binding `attention.decode_impl`: no backend 'decode_gpu'") as wrong:
    attention_backends()
  assert "decode_tpu" in str(wrong.value)
