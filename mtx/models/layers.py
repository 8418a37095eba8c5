"""Projection, norm, embedding, dropout: the leaves of every model. Adapters hang on `Dense` and nowhere else."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, PRNGKeyArray
from ml_collections import ConfigDict

from mtx.models.context import Context
from mtx.parallel.activations import gathered, laid

Axes = tuple[str | None, ...]
# What a layer keeps for its backward pass (`jax.ad_checkpoint.checkpoint_name`). The rest, attention weights foremost,
# is computed again from these: that takes less time than writing and reading it, and half of the memory.
SAVED = ("projection", "low_rank")


def param(init, shape: tuple[int, ...], axes: Axes, rngs: nnx.Rngs) -> nnx.Param:
  """A float32 parameter that carries its logical axes; `mtx.parallel.rules` turns them into shardings."""
  return nnx.Param(init(rngs.params(), shape, jnp.float32), axes=axes)


class Dense(nnx.Module):
  """y = x W (+ b), plus whatever the adapter adds. The only projection class, and the only hook.

  An adapter is called for what it adds, `adapter(x, ctx)`; one that has `project(x, kernel, ctx)` computes x W as well.
  """

  def __init__(self, din: int, dout: int, axes: Axes, *, std: float, rngs: nnx.Rngs, bias: bool = False):
    self.kernel = param(nnx.initializers.normal(std), (din, dout), axes, rngs)
    self.bias = param(nnx.initializers.zeros, (dout,), axes[1:], rngs) if bias else None
    self.din, self.dout, self.axes = din, dout, axes
    # A plain None would be static, and a later assignment would raise.
    self.adapter: nnx.Module | None = nnx.data(None)

  def __call__(self, x: Float[Array, "batch length din"], ctx: Context) -> Float[Array, "batch length dout"]:
    kernel = gathered(self.kernel[...].astype(x.dtype), self.axes)
    project = getattr(self.adapter, "project", None)
    y = x @ kernel if project is None else project(x, kernel, ctx)
    if self.bias is not None:
      y = y + self.bias[...].astype(x.dtype)
    if self.adapter is not None and project is None:
      y = y + self.adapter(x, ctx).astype(x.dtype)
    return checkpoint_name(laid(y, self.axes[-1]), "projection")


class RMSNorm(nnx.Module):
  """x / rms(x) * (scale + offset), in float32 (Zhang and Sennrich 2019, arXiv 1910.07467; no mean, no bias)."""

  def __init__(self, dims: int, *, epsilon: float, rngs: nnx.Rngs, offset: float = 0.0):
    init = nnx.initializers.constant(1.0 - offset)
    self.scale = param(init, (dims,), ("norm",), rngs)
    self.epsilon, self.offset = epsilon, offset

  def __call__(self, x: Float[Array, "*shape dims"]) -> Float[Array, "*shape dims"]:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
    return (y * (self.scale[...] + self.offset)).astype(x.dtype)


class LayerNorm(nnx.Module):
  """(x - mean) / std * scale + bias, computed in float32 (Ba et al. 2016, arXiv 1607.06450)."""

  def __init__(self, dims: int, *, epsilon: float, rngs: nnx.Rngs):
    self.scale = param(nnx.initializers.ones, (dims,), ("norm",), rngs)
    self.bias = param(nnx.initializers.zeros, (dims,), ("norm",), rngs)
    self.epsilon = epsilon

  def __call__(self, x: Float[Array, "*shape dims"]) -> Float[Array, "*shape dims"]:
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
    return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


def norm(config: ConfigDict, rngs: nnx.Rngs, dims: int | None = None) -> RMSNorm | LayerNorm:
  """The config's norm over `dims`; None: over d_model."""
  dims = dims or config.d_model
  if config.norm == "layer":
    return LayerNorm(dims, epsilon=config.norm_epsilon, rngs=rngs)
  return RMSNorm(dims, epsilon=config.norm_epsilon, offset=config.norm_offset, rngs=rngs)


class Embedding(nnx.Module):
  """Token table; the same Variable serves as the output head when the head is tied."""

  def __init__(self, vocab_size: int, d_model: int, *, std: float, rngs: nnx.Rngs):
    self.table = param(nnx.initializers.normal(std), (vocab_size, d_model), ("vocab", "embed"), rngs)

  def __call__(self, tokens: Int[Array, "batch length"], dtype) -> Float[Array, "batch length d_model"]:
    return laid(gathered(self.table[...], ("vocab", "embed"))[tokens].astype(dtype), None)

  def attend(self, x: Float[Array, "batch length d_model"]) -> Float[Array, "batch length vocab"]:
    """Logits against the table."""
    return laid(x @ gathered(self.table[...].astype(x.dtype), ("vocab", "embed")).T, "vocab")


def dropout(x: Float[Array, "*shape"], rate: float, key: PRNGKeyArray | None) -> Float[Array, "*shape"]:
  """Inverted dropout; `key=None` or rate 0 is the identity. Randomness is an argument: module state would freeze
  inside `lax.scan` and repeat one mask for ever."""
  if key is None or rate == 0.0:
    return x
  keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
  return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)
