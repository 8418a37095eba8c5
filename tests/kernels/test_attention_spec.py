"""What an attention spec means, against loops."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.attention.bias import Alibi, Buckets, DenseBias, toeplitz
from pallas_kernels.attention.spec import AttentionSpec


def brute_force(spec, queries, keys, batch):
  """The mask by a loop over batch, query and key."""
  at = lambda x, *index: None if x is None else np.asarray(x)[index]
  allowed = np.ones((batch, 1, queries, keys), bool)
  for b, i, j in itertools.product(range(batch), range(queries), range(keys)):
    query = i + int(np.broadcast_to(np.asarray(spec.offset), (batch,))[b])
    same = spec.query_segments is None or at(spec.query_segments, b, i) == at(spec.key_segments, b, j)
    there = spec.key_lengths is None or j < at(spec.key_lengths, b)
    in_order = not spec.causal or j <= query
    in_order = in_order or (spec.prefix is not None and at(spec.prefix, b, j))
    in_order = in_order or (spec.prefix_lengths is not None and j < at(spec.prefix_lengths, b))
    near = spec.window is None or query - j < spec.window
    allowed[b, 0, i, j] = same and there and in_order and near
  return allowed


def drawn(rng, *, causal, offset, prefix, window, lengths, segments=True):
  keys = np.sort(rng.integers(0, 4, (3, 9)), axis=1).astype(np.int32)
  return AttentionSpec(
    keys[:, 2:7] if segments else None,
    keys if segments else None,
    key_lengths=np.array([0, 4, 9]) if lengths else None,
    prefix=rng.integers(0, 2, (3, 9)).astype(bool) if prefix == "keys" else None,
    prefix_lengths=np.array([0, 3, 9]) if prefix == "lengths" else None,
    offset={"none": 0, "all": jnp.int32(2), "rows": jnp.array([2, 0, 4])}[offset],
    window=window,
    causal=causal,
  )


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("prefix", [None, "keys", "lengths"])
@pytest.mark.parametrize("offset", ["none", "all", "rows"])
@pytest.mark.parametrize("causal", [False, True])
def test_mask_equals_loops(causal, offset, prefix, window):
  spec = drawn(np.random.default_rng(0), causal=causal, offset=offset, prefix=prefix, window=window, lengths=True)
  wanted = brute_force(spec, 5, 9, 3)
  np.testing.assert_array_equal(jax.jit(lambda s: s.allowed(5, 9))(spec), wanted)
  assert wanted.any() and not wanted.all()


@pytest.mark.parametrize("offset", ["none", "all", "rows"])
def test_a_block_is_a_part_of_the_whole(offset):
  """`block` of a spec allows, and adds, what the spec does there."""
  rng = np.random.default_rng(1)
  for prefix in (None, "keys", "lengths"):
    spec = drawn(rng, causal=True, offset=offset, prefix=prefix, window=4, lengths=True)
    whole = np.asarray(spec.allowed(5, 9))
    part = spec.block(jnp.int32(1), 3, jnp.int32(4), 4)
    np.testing.assert_array_equal(part.allowed(3, 4), whole[:, :, 1:4, 4:8])
    table = rng.normal(size=(8, 2)).astype(np.float32)
    for bias in (Buckets(table, True, 16), Alibi(table[0]), DenseBias(rng.normal(size=(2, 5, 9)).astype(np.float32))):
      biased = AttentionSpec(offset=spec.offset, bias=bias)
      dense = np.asarray(biased.dense_bias(5, 9))
      inside = biased.block(jnp.int32(1), 3, jnp.int32(4), 4).dense_bias(3, 4)
      np.testing.assert_array_equal(inside, dense[:, :, 1:4, 4:8])


@pytest.mark.parametrize("queries, keys", [(1, 1), (1, 5), (5, 1), (3, 3), (4, 7), (7, 4)])
def test_toeplitz_equals_its_definition(queries, keys):
  diagonals = np.random.default_rng(2).normal(size=(2, queries + keys - 1)).astype(np.float32)
  wanted = [[diagonals[:, j - i + queries - 1] for j in range(keys)] for i in range(queries)]
  np.testing.assert_array_equal(toeplitz(diagonals, queries), np.moveaxis(np.array(wanted), -1, 0))


def test_dense_bias_equals_its_definition():
  """Of every query and key: the table at the bucket of their difference, or the slope times it."""
  rng = np.random.default_rng(3)
  table, offsets = rng.normal(size=(8, 2)).astype(np.float32), np.array([0, 5, 2])
  relative = np.arange(6)[None, None, :] - np.arange(4)[None, :, None] - offsets[:, None, None]
  for bias in (Buckets(table, False, 16), Buckets(table, True, 16), Alibi(table[0])):
    wanted = np.moveaxis(np.asarray(bias.relative(relative)), 0, 1)
    np.testing.assert_array_equal(AttentionSpec(offset=offsets, bias=bias).dense_bias(4, 6), wanted)


def test_features_name_what_is_asked_for():
  spec = AttentionSpec(key_lengths=jnp.ones(2), offset=jnp.zeros(2, int), bias=Alibi(jnp.ones(2)), soft_cap=3.0)
  assert AttentionSpec().features == ()
  assert spec.features == ("key_lengths", "offset", "offset_by_row", "soft_cap", "bias:Alibi")


def test_segments_come_in_pairs():
  with pytest.raises(ValueError, match="of queries and of keys, or of neither"):
    AttentionSpec(query_segments=jnp.ones((1, 2), int))
