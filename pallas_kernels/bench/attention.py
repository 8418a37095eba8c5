"""Attention as T5 has it, beside dense forms, XLA's, cuDNN's, and jax's own kernels."""

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pallas_kernels.attention import api
from pallas_kernels.attention.bias import Buckets
from pallas_kernels.attention.spec import AttentionSpec
from pallas_kernels.bench.case import Case, Contestant, Goal, differentiated, direction

TOKENS, HEADS, SIZE = 16384, 12, 64
LENGTHS = (512, 1024, 2048, 4096, 8192)
KERNELS = {"tpu": "mosaic_tpu", "gpu": "triton"}


def cases() -> Iterator[Case]:
  """All lines of the table."""
  for length in LENGTHS:
    for backward in (False, True):
      yield biased(length, backward)
  for backward in (False, True):
    yield plain(4096, backward)
    for feature in ("segments", "prefix", "bias"):
      yield dearer(4096, feature, backward)
  for backward in (False, True):
    yield chunked(512, backward, Goal(1 / 1.1, "xla"))
    yield chunked(8192, backward, Goal(10, "xla", memory=True), heads=1)


def biased(length: int, backward: bool) -> Case:
  """T5's encoder: learned bias, all see all."""
  rows = TOKENS // length
  ours = {
    name: Contestant(differentiated(partial(_ours, impl=name), backward), platform, kernel=True)
    for platform, name in KERNELS.items()
  }
  dense = lambda implementation: differentiated(partial(_dense, implementation=implementation), backward)
  peers = {
    "xla, dense bias": Contestant(dense("xla")),
    "cudnn, dense bias": Contestant(dense("cudnn"), "gpu"),
    "jax flash, dense bias": Contestant(differentiated(_jax_flash, backward), "tpu"),
  }
  if find_spec("tokamax"):
    peers["tokamax, dense bias"] = Contestant(differentiated(_tokamax, backward), "gpu")
  long = length >= 2048
  against_cudnn = Goal(1.5 if backward else 1.2, "cudnn, dense bias")
  goals = (Goal(3, "xla, dense bias"), against_cudnn, *(() if backward else (Goal(0.35),))) if long else ()
  return Case(
    f"attention {length}, T5 bias, {direction(backward)}",
    partial(_arguments, rows, length, HEADS, HEADS, SIZE),
    _flops(rows, length, HEADS, SIZE, backward),
    ours | peers,
    KERNELS,
    {"gpu": goals, "tpu": goals[:1]},
  )


def plain(length: int, backward: bool) -> Case:
  """Head size 128, causal, grouped heads, no bias: others' kernels are taken where they are the best."""
  rows, heads, shared, size = TOKENS // length, 32, 8, 128
  causal = lambda q, k, v, _, impl: api.attention(q, k, v, AttentionSpec(causal=True, scale=size**-0.5), impl=impl)
  with_impl = lambda impl: differentiated(partial(causal, impl=impl), backward)
  contestants = {name: Contestant(with_impl(name), platform, kernel=True) for platform, name in KERNELS.items()}
  contestants |= {
    "dispatch": Contestant(with_impl(None)),
    "xla": Contestant(with_impl("xla")),
    "splash": Contestant(with_impl("splash"), "tpu"),
    "cudnn": Contestant(with_impl("cudnn"), "gpu"),
    "jax pallas": Contestant(differentiated(_jax_triton, backward), "gpu"),
  }
  return Case(
    f"attention {length}, head size 128, causal, no bias, {direction(backward)}",
    partial(_arguments, rows, length, heads, shared, size),
    _flops(rows, length, heads, size, backward) / 2,
    contestants,
    {"tpu": "dispatch", "gpu": "dispatch"},
    {"gpu": (Goal(0.95, "cudnn"),), "tpu": (Goal(0.95, "splash"),)},
  )


def chunked(length: int, backward: bool, goal: Goal, heads: int = HEADS) -> Case:
  """What the CPU pays for memory that is linear in the length, and gets."""
  rows = max(1, 1024 // length)
  run = lambda impl: Contestant(differentiated(partial(_ours, impl=impl), backward), "cpu")
  arguments = partial(_arguments, rows, length, heads, heads, SIZE)
  return Case(
    f"attention {length} on a CPU, T5 bias, float32, {direction(backward)}",
    lambda: jax.tree.map(lambda x: x.astype(jnp.float32), arguments()),
    _flops(rows, length, heads, SIZE, backward),
    {name: run(name) for name in ("xla_chunked", "xla")},
    {"cpu": "xla_chunked"},
    {"cpu": (goal,)},
  )


def dearer(length: int, feature: str, backward: bool) -> Case:
  """What one feature costs over the same kernel without it."""
  rows = TOKENS // length
  causal = feature == "prefix"  # which is about nothing else

  def run(q, k, v, table, *, impl, with_it):
    spec = AttentionSpec(causal=causal)
    if with_it and feature == "segments":
      ids = jnp.ones(q.shape[:2], jnp.int32)  # one segment: the same work
      spec = AttentionSpec(ids, ids)
    elif with_it and feature == "prefix":
      spec = AttentionSpec(prefix_lengths=jnp.zeros(q.shape[0], jnp.int32), causal=True)
    elif with_it:
      spec = AttentionSpec(bias=Buckets(table, True, 128))
    return api.attention(q, k, v, spec, impl=impl)

  each = lambda impl, with_it: differentiated(partial(run, impl=impl, with_it=with_it), backward)
  contestants = {}
  for platform, name in KERNELS.items():
    contestants[name] = Contestant(each(name, True), platform, kernel=True)
    contestants[f"{name} without"] = Contestant(each(name, False), platform, kernel=True)
  bound = 1 / (1.15 if feature == "bias" else 1.05)
  return Case(
    f"attention {length}, with {feature}, {direction(backward)}",
    partial(_arguments, rows, length, HEADS, HEADS, SIZE),
    _flops(rows, length, HEADS, SIZE, backward) / (2 if causal else 1),
    contestants,
    KERNELS,
    {platform: (Goal(bound, f"{name} without"),) for platform, name in KERNELS.items()},
  )


def _flops(rows: int, length: int, heads: int, size: int, backward: bool) -> float:
  """Two products forward, five backward (scores again, dv, dp, dq, dk)."""
  return (7 if backward else 2) * 2.0 * rows * heads * length * length * size


def _arguments(rows: int, length: int, heads: int, shared: int, size: int):
  """q, k, v, table."""
  keys = jax.random.split(jax.random.key(0), 4)
  of = lambda key, n: jax.random.normal(key, (rows, length, n, size), jnp.bfloat16)
  q, k, v = (of(key, n) for key, n in zip(keys, (heads, shared, shared), strict=False))
  return q * size**-0.5, k, v, jax.random.normal(keys[3], (32, heads), jnp.float32)


def _ours(q, k, v, table, *, impl):
  return api.attention(q, k, v, AttentionSpec(bias=Buckets(table, True, 128)), impl=impl)


def _written_out(q, k, table) -> Array:
  bias = AttentionSpec(bias=Buckets(table, True, 128)).dense_bias(q.shape[1], k.shape[1])
  assert bias is not None
  return bias.astype(q.dtype)


def _dense(q, k, v, table, *, implementation):
  bias = _written_out(q, k, table)
  return jax.nn.dot_product_attention(q, k, v, bias, scale=1.0, implementation=implementation)


def _jax_flash(q, k, v, table):
  from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, flash_attention

  bias = _written_out(q, k, table)
  first = lambda x: jnp.swapaxes(x, 1, 2)
  block = min(512, q.shape[1])
  sizes = BlockSizes(
    **{name: block if "block" in name and name != "block_b" else 1 for name in BlockSizes.__annotations__}
  )
  whole = jnp.broadcast_to(bias, (q.shape[0], *bias.shape[1:]))
  return first(flash_attention(first(q), first(k), first(v), whole, sm_scale=1.0, block_sizes=sizes))


def _jax_triton(q, k, v, _):
  from jax.experimental.pallas.ops.gpu.attention import mha

  repeat = q.shape[2] // k.shape[2]
  k, v = (jnp.repeat(x, repeat, axis=2) for x in (k, v))
  return mha(q, k, v, None, sm_scale=float(np.sqrt(1 / q.shape[3])), causal=True)


def _tokamax(q, k, v, table):
  import tokamax

  bias = _written_out(q, k, table)
  return tokamax.dot_product_attention(q, k, v, bias=bias, scale=1.0)
