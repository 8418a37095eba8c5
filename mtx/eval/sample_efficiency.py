"""How much data a model needs: learning curves over nested fractions, and the fraction at which one reaches a score.

"Instruction Tuned Models are Quick Learners" (Gupta et al. 2023, arXiv 2306.05539) asks how much downstream data an
instruction-tuned model needs to match another one that is tuned on all of it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gin
import numpy as np
from jaxtyping import Float64
from scipy.optimize import isotonic_regression

from mtx.errors import UserError, did_you_mean

Row = Mapping[str, Any]
ALL = "all tasks"


def learning_curve(
  fractions: Sequence[float], scores: Sequence[float]
) -> tuple[Float64[np.ndarray, " points"], Float64[np.ndarray, " points"]]:
  """(fractions, ascending; scores that never fall): the monotone curve nearest to what was measured, in least squares.

  Raises:
    ValueError: no points, as many scores as fractions are not there, or a fraction twice.
  """
  if not fractions or len(fractions) != len(scores) or len(set(fractions)) < len(fractions):
    raise ValueError(f"a learning curve has one score a fraction: {list(fractions)}, {list(scores)}")
  order = np.argsort(fractions)
  x, y = np.asarray(fractions, np.float64)[order], np.asarray(scores, np.float64)[order]
  return x, np.asarray(isotonic_regression(y).x, np.float64)


def fraction_needed(fractions: Sequence[float], scores: Sequence[float], level: float) -> float:
  """The smallest fraction at which the monotone curve reaches `level`, on straight lines between its points.

  Curves of learning bend down, so the true one lies above the lines: what is returned errs to the high side. Infinity
  where no fraction reaches the level.
  """
  x, y = learning_curve(fractions, scores)
  reached = np.flatnonzero(y >= level)
  if not len(reached):
    return math.inf
  i = int(reached[0])
  if i == 0:
    return float(x[0])
  return float(x[i - 1] + (x[i] - x[i - 1]) * (level - y[i - 1]) / (y[i] - y[i - 1]))


@gin.configurable("data_needed", denylist=["runs"])
def data_needed(
  runs: Mapping[str, Sequence[Row]],
  *,
  reference: str = gin.REQUIRED,
  stages: Sequence[str] = ("tune",),
  metric: str = "exact_match",
  most: float = 2.0,
) -> dict[str, list[dict[str, Any]]]:
  """For `recipe.derive`: what share of the data each arm needs to score as the reference does with all of it.

  Rows have the metric `data_needed` (a fraction) and the setting as method; task and category are a category of tasks,
  or ALL for the mean over tasks. `curve_mean` is the mean score over all fractions above 0.

  Args:
    runs: arm -> result rows of one seed; those of `mtx.eval.tune`, which have `setting` and `fraction`.
    reference: the arm whose score with all data is the level.
    stages, metric: of the rows; each stage has curves of its own.
    most: what stands for "more than there is", so that means and intervals exist.

  Raises:
    UserError: there is no such arm, or it has no such rows.
  """
  if reference not in runs:
    raise UserError(f"binding `data_needed.reference`: {reference!r} is no arm.", hint=did_you_mean(reference, runs))
  curves = {
    arm: _curves([r for r in rows if r["stage"] in stages and r["metric"] == metric]) for arm, rows in runs.items()
  }
  levels = {key: curve[max(curve)] for key, curve in curves[reference].items()}
  if lacking := [stage for stage in stages if stage not in {key[0] for key in levels}]:
    raise UserError(
      f"`data_needed` finds no {metric!r} of stage {lacking[0]!r} in arm {reference!r}.",
      hint=did_you_mean(lacking[0], {str(row["stage"]) for row in runs[reference]}),
    )
  found: dict[str, list[dict[str, Any]]] = {}
  for arm, of_arm in curves.items():
    found[arm] = []
    for (stage, setting, group), curve in of_arm.items():
      level = levels.get((stage, setting, group), math.inf)
      values = {
        "data_needed": min(most, fraction_needed(tuple(curve), tuple(curve.values()), level)),
        "curve_mean": float(np.mean([score for fraction, score in curve.items() if fraction > 0])),
      }
      common = {"stage": stage, "method": setting, "split": "heldout", "task": group, "category": group, "step": 0}
      found[arm] += [{**common, "metric": name, "value": value, "count": len(curve)} for name, value in values.items()]
  return found


def _curves(rows: Sequence[Row]) -> dict[tuple[str, str, str], dict[float, float]]:
  """(stage, setting, category or ALL) -> fraction -> mean over tasks. No data at all belongs to all settings."""
  scores: dict[tuple[str, str, str], dict[float, list[float]]] = {}
  settings: dict[str, dict[str, None]] = {}
  for row in rows:
    if row.get("fraction"):
      settings.setdefault(row["stage"], {})[row["setting"]] = None
  for row in rows:
    if "fraction" in row:
      for setting in [row["setting"]] if row["fraction"] else settings.get(row["stage"], {}):
        for group in (row["category"], ALL):
          curve = scores.setdefault((row["stage"], setting, group), {})
          curve.setdefault(float(row["fraction"]), []).append(float(row["value"]))
  return {
    key: {fraction: float(np.mean(values)) for fraction, values in sorted(of.items())} for key, of in scores.items()
  }
