"""The kernels' bench: a measured case and its goals, and the tuner, on the device at hand."""

import json
from functools import partial

import jax.numpy as jnp
import pytest

from pallas_kernels.attention.api import attention
from pallas_kernels.attention.spec import AttentionSpec
from pallas_kernels.bench import __main__ as bench
from pallas_kernels.bench import tune
from pallas_kernels.tuning import lookup

QKV = tuple(jnp.ones((1, 48, 2, 8)) for _ in range(3))


@pytest.fixture
def table(tmp_path, monkeypatch):
  """An empty tuning table."""
  path = tmp_path / "table.json"
  path.write_text("{}")
  monkeypatch.setattr(lookup, "TABLE", path)
  lookup.table.cache_clear()
  yield path
  lookup.table.cache_clear()


def test_a_measured_case_says_what_became_of_its_goals(capsys, tmp_path):
  out = tmp_path / "table.md"
  assert bench.main(["--only", "attention 512 on a CPU.*forward$", "--out", str(out)]) == 0
  ours, peer = (line.split(" | ") for line in out.read_text().splitlines() if line.startswith("| attention 512 on"))
  assert ours[1] == "xla_chunked" and peer[1] == "xla"
  assert float(ours[2]) > 0 and "faster than xla: " in ours[6] and ("met" in ours[6]) != ("missed" in ours[6])
  assert out.read_text().strip() in capsys.readouterr().out


def test_no_case_of_that_name(capsys):
  assert bench.main(["--only", "attention on an abacus"]) == 2
  assert "no case has 'attention on an abacus' in its name; there are:\n  attention 512" in capsys.readouterr().out


def test_the_tuner_finds_sizes_that_the_kernel_then_takes(table):
  run = lambda q, k, v: attention(q, k, v, AttentionSpec(causal=True), impl="xla_chunked")
  ((line, sizes),) = tune.best(run, QKV).items()
  assert line == "attention_xla_chunked/cpu/float32/8/64/causal"
  assert set(sizes) == {"block_q", "block_k"} and all(size in (128, 256, 512, 1024, 2048) for size in sizes.values())
  lookup.write({line: {"block_q": 16, "block_k": 32}})
  asked = partial(lookup.tuned, "attention_xla_chunked", {"block_q": 512, "block_k": 512}, "float32", 8, 48)
  assert asked(("causal",)) == {"block_q": 16, "block_k": 32} and asked(())["block_q"] == 512
  lookup.write({"another": {"block_q": 1}})
  assert set(json.loads(table.read_text())) == {line, "another"}


def test_tune_writes_the_table(table, capsys):
  assert bench.main(["--tune", "--only", "attention 512.* CPU.*forward$|decoding"]) == 0
  assert set(json.loads(table.read_text())) == {"attention_xla_chunked/cpu/float32/64/512/bias:Buckets"}
  assert "attention_xla_chunked/cpu" in capsys.readouterr().out


def test_sizes_that_do_not_fit_are_passed_over(table, capsys):
  def run(x):
    block = lookup.tuned("picky", {"block": 64}, x.dtype, 8, 64)["block"]
    if block > 64:
      raise RuntimeError("out of fast memory")
    return x * block

  ((_, sizes),) = tune.best(run, QKV[:1]).items()
  assert sizes["block"] <= 64
  assert "{'block': 256}: RuntimeError" in capsys.readouterr().out
