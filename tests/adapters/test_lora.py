"""LoRA's start; what it computes is compared with `peft` in test_peft_parity."""

import numpy as np
from flax import nnx

from mtx.adapters.lora import LoRA


def test_initial_values():
  """B is zero, A uniform within 1/sqrt(din), as kaiming_uniform(a=sqrt 5) draws it."""
  lora = LoRA(20, 12, ("embed", "heads"), tasks=3, rngs=nnx.Rngs(0), rank=200)
  a = np.asarray(lora.a[...])
  assert a.shape == (20, 200) and lora.b.shape == (200, 12)
  assert not np.asarray(lora.b[...]).any()
  assert 0.98 * 20**-0.5 < np.abs(a).max() <= 20**-0.5
  assert abs(a.std() - (3 * 20) ** -0.5) < 0.02 * 20**-0.5
