"""Optimizer: parameter groups by regex, each with its own learning rate; no rule means frozen, without any state."""

import re
from collections.abc import Iterable, Mapping

import gin
import jax
import jax.numpy as jnp
import optax

from mtx.errors import UserError, did_you_mean
from mtx.training.parameters import rule_for

SCHEDULES = ("constant", "linear", "cosine", "rsqrt")
ALGORITHMS = ("adamw", "adafactor")


def schedule(kind: str, peak: float, steps: int, warmup: int) -> optax.Schedule:
  """Linear warm-up to `peak` over `warmup` steps, then the named decay (to zero at `steps` for linear and cosine)."""
  if kind not in SCHEDULES:
    raise UserError(f"binding `optimizer.schedule`: no schedule {kind!r}.", hint=did_you_mean(kind, SCHEDULES))
  rest = max(steps - warmup, 1)
  decays = {
    "constant": optax.constant_schedule(peak),
    "linear": optax.linear_schedule(peak, 0.0, rest),
    "cosine": optax.cosine_decay_schedule(peak, rest),
    # join_schedules asks during warm-up too, with n < 0.
    "rsqrt": lambda n: peak * (max(warmup, 1) / (jnp.maximum(n, 0) + max(warmup, 1))) ** 0.5,
  }
  if not warmup:
    return decays[kind]
  # n+1: the first step already moves.
  ramp = lambda n: peak * (n + 1) / warmup
  return optax.join_schedules([ramp, decays[kind]], [warmup])


@gin.configurable("optimizer", denylist=["shapes", "learning_rates", "steps"])
def optimizer(
  shapes: Mapping[str, jax.ShapeDtypeStruct],
  learning_rates: Mapping[str, float],
  steps: int,
  *,
  algorithm: str = "adamw",
  schedule: str = "linear",
  warmup: int = 0,
  clip: float = 1.0,
  weight_decay: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
  """The update rule of one stage.

  Args:
    shapes: the trainable parameters, path -> shape. Every one must match a rule.
    learning_rates: regex over whole paths -> peak learning rate; the longest pattern that matches counts.
    steps: length of the schedule.
    algorithm: "adamw", or "adafactor" without parameter scaling (Shazeer and Stern 2018, arXiv 1804.04235).
    schedule: "constant", "linear", "cosine" or "rsqrt", after `warmup` steps of linear warm-up.
    clip: global norm over all trainable parameters; 0 = off.
    weight_decay: likewise, decoupled decay; no match = none. Routers should not decay.

  Raises:
    UserError: unknown algorithm or schedule.
  """
  if algorithm not in ALGORITHMS:
    raise UserError(
      f"binding `optimizer.algorithm`: no algorithm {algorithm!r}.", hint=did_you_mean(algorithm, ALGORITHMS)
    )
  decay = weight_decay or {}
  labels, groups = {}, {}
  for path in shapes:
    pattern, decay_pattern = rule_for(learning_rates, path), rule_for(decay, path)
    assert pattern is not None, path
    label = f"{pattern} {decay_pattern}"
    labels[path] = label
    if label not in groups:
      rate = _schedule(schedule, learning_rates[pattern], steps, warmup)
      groups[label] = _rule(algorithm, rate, decay[decay_pattern] if decay_pattern is not None else 0.0)
  parts = [optax.clip_by_global_norm(clip)] if clip else []
  return optax.chain(*parts, optax.partition(groups, labels))


_schedule = schedule  # the binding of the same name hides it above


def _rule(algorithm: str, rate: optax.Schedule, decay: float) -> optax.GradientTransformation:
  if algorithm == "adamw":
    return optax.adamw(rate, weight_decay=decay)
  # multiply_by_parameter_scale off: a router that starts at 1e-3 would otherwise never move. The rate comes last,
  # because optax.adafactor's own decay is not multiplied by it, as AdamW's is.
  return optax.chain(
    optax.adafactor(None, multiply_by_parameter_scale=False, clipping_threshold=1.0),
    optax.add_decayed_weights(-decay),
    optax.scale_by_learning_rate(rate, flip_sign=False),
  )


def check_rules(patterns: Iterable[str], paths: Iterable[str]) -> None:
  """Raises UserError for a pattern that is no regex or that names no parameter."""
  paths = sorted(paths)
  for pattern in patterns:
    try:
      hits = any(re.fullmatch(pattern, p) for p in paths)
    except re.error as e:
      raise UserError(f"binding `stage.learning_rates`: {pattern!r} is no regular expression: {e}.") from e
    if not hits:
      raise UserError(
        f"binding `stage.learning_rates`: {pattern!r} matches no parameter.",
        hint="the parameters are: " + " ".join(paths),
      )
