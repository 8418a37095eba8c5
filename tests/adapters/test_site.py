"""Injection: a regex over whole paths of projections selects exactly what it says, and changes no output."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mtx.adapters.lora import LoRA
from mtx.adapters.poly import MHR
from mtx.adapters.site import inject, sites
from mtx.data.convert import padded
from mtx.errors import UserError
from mtx.models.build import build
from mtx.training.parameters import blueprint

SELF = [f"self_attention/{p}" for p in "qkvo"]
CROSS = [f"cross_attention/{p}" for p in "qkvo"]
MLP = [f"mlp/{p}" for p in ("wi_0", "wi_1", "wo")]


def injected(config, pattern, method=LoRA, tasks=3):
  """(paths that were hit, blueprint)"""
  hit = []

  def make(rngs):
    model = build(config, rngs=rngs)
    hit[:] = inject(model, tasks, rngs, pattern=pattern, method=method)
    return model

  return hit, blueprint(make)


def test_sites_are_all_projections(tiny):
  """Encoder, decoder, cross-attention and an untied head; norms, embeddings and biases are none."""
  model = nnx.eval_shape(lambda: build(tiny("encdec", tied_head=False), rngs=nnx.Rngs(0)))
  wanted = {f"encoder/layers/{s}" for s in SELF + MLP} | {f"decoder/layers/{s}" for s in SELF + CROSS + MLP}
  assert set(sites(model)) == wanted | {"head/projection"}
  assert set(sites(nnx.eval_shape(lambda: build(tiny("prefix"), rngs=nnx.Rngs(0))))) == {
    f"decoder/layers/{s}" for s in SELF + MLP
  }


@pytest.mark.parametrize(
  "pattern, wanted",
  [
    (
      r".*/self_attention/(q|v)",
      [f"{side}/layers/self_attention/{p}" for side in ("encoder", "decoder") for p in "qv"],
    ),
    (r"decoder/layers/cross_attention/k", ["decoder/layers/cross_attention/k"]),
    (r"head/.*", ["head/projection"]),
    (r"encoder/layers/mlp/wi_0|encoder/layers/mlp/wo", ["encoder/layers/mlp/wi_0", "encoder/layers/mlp/wo"]),
  ],
)
def test_pattern_selects_whole_paths(tiny, pattern, wanted):
  """Exactly the sites named, stacked where the site is stacked; every other parameter is as it was."""
  config = tiny("encdec", tied_head=False)
  hit, model = injected(config, pattern)
  assert sorted(hit) == sorted(wanted)
  plain = blueprint(lambda rngs: build(config, rngs=rngs))
  added = {p: s.shape for p, s in model.shapes.items() if p not in plain.shapes}
  assert set(added) == {f"{site}/adapter/{part}" for site in wanted for part in "ab"}
  assert all(len(shape) == (2 if p.startswith("head") else 3) for p, shape in added.items())
  assert plain.shapes.items() <= model.shapes.items()


@pytest.mark.parametrize("pattern", ["q", r".*/(qq|vv)", r"encoder/layers"])
def test_no_hit_lists_the_sites(tiny, pattern):
  """A part of a path is no match."""
  with pytest.raises(UserError, match=r"adapter.pattern.*selects no projection") as error:
    injected(tiny("causal"), pattern)
  assert pattern in error.value.message
  assert all(f"decoder/layers/{site}" in error.value.hint for site in SELF + MLP)


def test_a_pattern_that_is_no_regex(tiny):
  with pytest.raises(UserError, match=r"adapter.pattern.*\(q.*no regular expression"):
    injected(tiny("causal"), "(q")


def test_splits_that_do_not_divide_a_site(tiny):
  """d_model 16 and 24 inner: the error names the binding, the site's size and the choices."""
  with pytest.raises(UserError, match=r"MHR.splits.*3 does not divide.*16 x 24") as error:
    injected(tiny("causal"), ".*/q", partial(MHR, splits=3))
  assert error.value.hint == "valid choices: 1, 2, 4, 8"


@pytest.mark.parametrize("method", [LoRA, partial(MHR, splits=2, skills=3, rank=2)], ids=["LoRA", "MHR"])
def test_injection_changes_no_output(tiny, examples, weights, method):
  """With B at its start, which is zero, the same base gives bitwise the same logits with adapters and without."""
  config = tiny("causal")
  hit, model = injected(config, ".*/(q|wo)", method)
  plain = blueprint(lambda rngs: build(config, rngs=rngs))
  params = weights(model)
  batch = padded(examples(3), "causal", 8, 5, [0, 1, 2], rows=3)
  logits = jax.jit(lambda params, batch: model.merge(params)(batch).logits)
  without = jax.jit(lambda params, batch: plain.merge(params)(batch).logits)
  base = {p: v for p, v in params.items() if p in plain.shapes}
  start = {p: jnp.zeros_like(v) if p.endswith("adapter/b") else v for p, v in params.items()}
  assert sum(p.endswith("adapter/b") for p in params) == len(hit) == 2
  np.testing.assert_array_equal(logits(start, batch), without(base, batch))
  assert np.abs(logits(params, batch) - without(base, batch)).max() > 0.1
