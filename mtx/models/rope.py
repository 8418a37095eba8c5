"""Rotary positions: pairs of a head's dimensions turned by an angle that grows with the position."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

Frequencies = Float64[np.ndarray, " pairs"]
Turn = tuple[Float[Array, "batch length pairs"], Float[Array, "batch length pairs"]]  # cosines and sines


def frequencies(theta: float, dims: int, scaling: Mapping[str, Any] | None = None) -> Frequencies:
  """Radians a position, for each of dims/2 pairs (Su et al. 2021, arXiv 2104.09864), scaled for longer contexts.

  Args:
    scaling: None, or `kind`, a name in SCALINGS, with that function's arguments.
  """
  plain = theta ** -(np.arange(0, dims, 2) / dims)
  if scaling is None:
    return plain
  settings = dict(scaling)
  return SCALINGS[settings.pop("kind")](plain, **settings)


def _linear(plain: Frequencies, *, factor: float) -> Frequencies:
  """Position interpolation (Chen et al. 2023, arXiv 2306.15595)."""
  return plain / factor


def _llama3(plain: Frequencies, *, factor: float, low: float, high: float, original: int) -> Frequencies:
  """Llama 3.1: wavelengths over original/low are stretched, those under original/high kept; between them is a ramp."""
  wavelength = 2 * math.pi / plain
  kept = np.clip((original / wavelength - low) / (high - low), 0, 1)
  return (1 - kept) * plain / factor + kept * plain


SCALINGS: dict[str, Callable[..., Frequencies]] = {"linear": _linear, "llama3": _llama3}


def turn(positions: Int[Array, "batch length"], per_position: Frequencies) -> Turn:
  """Cosines and sines of every position, float32."""
  angles = positions[..., None].astype(jnp.float32) * jnp.asarray(per_position, jnp.float32)
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "batch length heads d_kv"], by: Turn) -> Float[Array, "batch length heads d_kv"]:
  """Turns pairs (i, i + n/2) of the first n = 2 * pairs dimensions of each head; the others pass."""
  cos, sin = (part[:, :, None, :] for part in by)
  pairs = cos.shape[-1]
  a, b, rest = (part.astype(jnp.float32) for part in jnp.split(x, [pairs, 2 * pairs], axis=-1))
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1).astype(x.dtype)
