"""Presets and their overrides, and what is said about names that are none."""

import jax
import pytest
from flax import nnx

from mtx.errors import UserError
from mtx.models.build import build
from mtx.models.sizes import PRESETS, model_config
from mtx.training.parameters import blueprint, count


@pytest.mark.parametrize("preset, millions", [("t5_small", 77), ("t5_base", 248), ("t5_large", 783), ("t5_xl", 2850)])
def test_presets_are_t5_1_1(preset, millions):
  """Parameters of the released T5 1.1 models, in millions, to 1% (their vocabulary has 32128 rows)."""
  config = model_config(preset)
  config.vocab_size = 32128
  assert count(blueprint(lambda rngs: build(config, rngs=rngs)).shapes) == pytest.approx(1e6 * millions, rel=0.01)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds(preset):
  """In every architecture that it has, with a tied head and an untied one; a tied head is one table."""
  for architecture in ("encdec", "causal", "prefix") if PRESETS[preset]().encoder_layers else ("causal", "prefix"):
    for tied in (True, False):
      config = model_config(preset, architecture, {"tied_head": tied})
      config.vocab_size = 131
      model = nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0)))
      shapes = [x.shape for x in jax.tree.leaves(nnx.state(model, nnx.Param))]
      vocabulary = [s for s in shapes if 131 in s and len(s) == 2]
      assert len(vocabulary) == (1 if tied else 2)


def test_the_architecture_follows_from_the_preset():
  assert model_config("t5_tiny").architecture == "encdec"
  assert model_config("llama2_7b").architecture == "causal"


@pytest.mark.parametrize(
  "arguments, message, hint",
  [
    ({"preset": "t5_smal"}, "model.preset.*'t5_smal'", "`t5_small`"),
    ({"preset": "t5_tiny", "architecture": "decoder"}, "model.architecture.*'decoder'", "encdec"),
    ({"preset": "llama2_7b", "architecture": "encdec"}, "model.architecture.*'encdec' of preset", "causal"),
    ({"preset": "t5_tiny", "overrides": {"d_f": 3}}, "model.overrides.*'d_f'", "`d_ff`"),
    ({"preset": "t5_tiny", "overrides": {"d_ff": "big"}}, "model.overrides.*'d_ff'", ""),
    ({"preset": "t5_tiny", "overrides": {"dtype": "float16"}}, "model.overrides.*'float16'", "bfloat16"),
  ],
)
def test_names_that_are_none(arguments, message, hint):
  with pytest.raises(UserError, match=message) as error:
    model_config(**arguments)
  assert hint in error.value.hint
