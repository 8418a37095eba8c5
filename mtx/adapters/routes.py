"""Which skills each task uses, read off the routers."""

import numpy as np
from jaxtyping import Float

from mtx.adapters.poly import mixture


def routing(params, axes) -> Float[np.ndarray, "task split skill"] | None:
  """Mixing weights of every task, averaged over sites and layers; None if nothing is routed.

  Args:
    params, axes: parameters and their logical axes by path (`mtx.training.parameters`).
  """
  routers = [np.asarray(mixture(v)) for p, v in sorted(params.items()) if axes[p] == ("task", "split", "skill")]
  if not routers:
    return None
  return np.mean([r.reshape(-1, *r.shape[-3:]).mean(0) for r in routers], axis=0)
