"""Frequencies and magnitudes of every scaling, at published settings, are those of transformers."""

import numpy as np
import pytest

from mtx.models.families.family import Reading
from mtx.models.families.rotary import rotary
from mtx.models.rope import SCALINGS, frequencies

# Llama 3.1 8B and 3.2 1B; Qwen 2.5 and YaRN's own Llama 2; DeepSeek's weights of the magnitude; Gemma 3's far layers;
# factors as of Phi 3.5, whose pairs turn slower and slower.
CASES = {
  "llama 3.1": (5e5, 128, dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                               original_max_position_embeddings=8192)),
  "llama 3.2": (5e5, 64, dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
                              original_max_position_embeddings=8192)),
  "yarn": (1e6, 128, dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32768)),
  "yarn 64k": (1e4, 128, dict(rope_type="yarn", factor=16.0, original_max_position_embeddings=4096)),
  "yarn, not rounded": (1e4, 64, dict(rope_type="yarn", factor=16.0, original_max_position_embeddings=4096,
                                      beta_fast=16, beta_slow=2, truncate=False)),
  "yarn, weighted": (1e4, 64, dict(rope_type="yarn", factor=40.0, original_max_position_embeddings=4096,
                                   mscale=1.0, mscale_all_dim=0.7)),
  "linear": (1e6, 256, dict(rope_type="linear", factor=8.0)),
  "longrope": (1e4, 96, dict(rope_type="longrope", original_max_position_embeddings=4096,
                             short_factor=np.linspace(1.0, 1.9, 48).tolist(),
                             long_factor=np.geomspace(1.0, 64.0, 48).tolist())),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(case):
  """To 1e-6, which is float32's precision in theirs."""
  transformers = pytest.importorskip("transformers", reason="transformers is not installed")
  utilities = pytest.importorskip("transformers.modeling_rope_utils", reason="transformers is not installed")
  theta, dims, written = CASES[case]
  kind = written["rope_type"]
  make = transformers.Phi3Config if kind == "longrope" else transformers.LlamaConfig
  hf = make(
    hidden_size=4 * dims,
    num_attention_heads=4,
    max_position_embeddings=131072,
    rope_parameters=written | {"rope_theta": theta},
  )
  wanted, magnitude = utilities.ROPE_INIT_FUNCTIONS[kind](hf)
  ours = rotary(Reading(hf.to_dict()), kinds=tuple(SCALINGS))
  scaling = ours["rope_scaling"]
  np.testing.assert_allclose(frequencies(ours["rope_theta"], dims, scaling), wanted.numpy(), rtol=1e-6)
  np.testing.assert_allclose(scaling.get("magnitude", 1.0), magnitude, rtol=1e-12)
  plain = frequencies(theta, dims)
  assert np.abs(plain / frequencies(theta, dims, scaling) - 1).max() > 0.5


def test_every_scaling_has_a_case():
  assert {written["rope_type"] for _, _, written in CASES.values()} == set(SCALINGS)
