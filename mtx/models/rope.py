"""Rotary positions: pairs of a head's dimensions turned by an angle that grows with the position."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int

Frequencies = Float64[np.ndarray, " pairs"]
Turn = tuple[Float[Array, "batch length pairs"], Float[Array, "batch length pairs"]]  # cosines and sines


def frequencies(theta: float, dims: int, scaling: Mapping[str, Any] | None = None) -> Frequencies:
  """Radians a position, for each of dims/2 pairs (Su et al. 2021, arXiv 2104.09864), scaled for longer contexts.

  Args:
    scaling: None, or `kind`, a name in SCALINGS, with that function's arguments; and, where it has them, `magnitude`,
      what cosines and sines are multiplied by, and `longest`, the most tokens that a row may have.
  """
  plain = theta ** -(np.arange(0, dims, 2) / dims)
  if scaling is None:
    return plain
  settings = {name: value for name, value in scaling.items() if name not in ("magnitude", "longest")}
  return SCALINGS[settings.pop("kind")](plain, **settings)


def _linear(plain: Frequencies, *, factor: float) -> Frequencies:
  """Position interpolation (Chen et al. 2023, arXiv 2306.15595)."""
  return plain / factor


def _llama3(plain: Frequencies, *, factor: float, low: float, high: float, original: int) -> Frequencies:
  """Llama 3.1: wavelengths over original/low are stretched, those under original/high kept; between them is a ramp."""
  wavelength = 2 * math.pi / plain
  kept = np.clip((original / wavelength - low) / (high - low), 0, 1)
  return (1 - kept) * plain / factor + kept * plain


def _yarn(plain: Frequencies, *, factor: float, original: int, fast: float, slow: float, truncate: bool) -> Frequencies:
  """YaRN (Peng et al. 2023, arXiv 2309.00071): pairs that turn more than `fast` times in `original` positions are
  kept, those that turn less than `slow` times are stretched; between them is a ramp over the pairs' numbers."""
  turning = lambda times: math.log(original / (times * 2 * math.pi)) / -math.log(plain[1])
  low, high = turning(fast), turning(slow)
  if truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, 2 * len(plain) - 1)
  stretched = np.clip((np.arange(len(plain)) - low) / (high - low if high != low else 0.001), 0, 1)
  return stretched * plain / factor + (1 - stretched) * plain


def _longrope(plain: Frequencies, *, short: Sequence[float], long: Sequence[float]) -> Frequencies:
  """LongRoPE (Ding et al. 2024, arXiv 2402.13753) up to the original context: each pair has a factor of its own.

  Rows over the original context take `long` factors, for all of their positions: keys in a cache would have to be
  turned again where a row grows over it. So rows end there (`longest`), and `long` is only kept for export.
  """
  del long
  return plain / np.asarray(short)


SCALINGS: dict[str, Callable[..., Frequencies]] = {
  "linear": _linear,
  "llama3": _llama3,
  "longrope": _longrope,
  "yarn": _yarn,
}


def turn(positions: Int[Array, "batch length"], per_position: Frequencies, magnitude: float = 1.0) -> Turn:
  """Cosines and sines of every position times `magnitude`, float32."""
  angles = positions[..., None].astype(jnp.float32) * jnp.asarray(per_position, jnp.float32)
  return jnp.cos(angles) * magnitude, jnp.sin(angles) * magnitude


def rotate(x: Float[Array, "batch length heads d_kv"], by: Turn) -> Float[Array, "batch length heads d_kv"]:
  """Turns pairs (i, i + n/2) of the first n = 2 * pairs dimensions of each head; the others pass."""
  cos, sin = (part[:, :, None, :] for part in by)
  pairs = cos.shape[-1]
  a, b, rest = (part.astype(jnp.float32) for part in jnp.split(x, [pairs, 2 * pairs], axis=-1))
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1).astype(x.dtype)
