"""The benches run, on sizes that say nothing about speed."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent / "tasks"))
from tiny_checkout import task, write

from mtx.bench import __main__ as command
from mtx.bench import packing
from mtx.bench.build import build
from mtx.bench.clock import interleaved
from mtx.bench.feed import feed
from mtx.bench.generating import SHAPES as GENERATED
from mtx.bench.generating import generating
from mtx.bench.host import host
from mtx.bench.importing import importing
from mtx.bench.memory import memory
from mtx.bench.open import MEGABYTES, opening
from mtx.bench.pipeline import pipeline
from mtx.bench.ranking import ranking
from mtx.bench.row import Target, compared, measured, skipped
from mtx.bench.train_step import peft_poly, train_step
from mtx.bench.trainer import Shape

SMALL = Shape(preset="t5_micro", vocabulary=384, inputs=16, targets=8, skills=2, splits=2, rank=2)


TINY = {
  "vocab_size": 97,
  "hidden_size": 32,
  "intermediate_size": 48,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 4,
}


def test_ratios_are_judged_by_their_targets():
  assert compared("speed", "tokens/s", 12.0, 10.0, Target(1.2), "").met
  assert not compared("size", "MB", 7.0, 10.0, Target(0.6, at_most=True), "").met
  assert measured("time", "ms", 2.0, Target(2.0, at_most=True), "").met
  row = skipped("speed", "tokens/s", Target(1.2), "no peer")
  assert row.met is None and row.ratio is None


def test_contestants_take_turns():
  calls = []
  runs = {name: lambda name=name: calls.append(name) for name in "ab"}
  seconds = interleaved(runs, 2)
  assert calls == ["a", "b", "a", "b", "b", "a"]
  assert [len(times) for times in seconds.values()] == [2, 2]


def test_every_bench_has_its_file():
  assert list(command.benches(None, None)) == list(command.NAMES)
  for name in command.NAMES:
    if name not in GENERATED:  # two shapes of one file
      assert __import__(f"mtx.bench.{name}", fromlist=[name]).NAME == name


def test_benches_without_peers_and_data(monkeypatch):
  monkeypatch.setattr("mtx.bench.train_step.find_spec", lambda name: None)
  rows = [train_step(SMALL, repeats=1), packing.packing(superni=None), memory(SMALL), build(superni=None)]
  rows += [host(SMALL, steps=5), pipeline(SMALL, batches=2, repeats=1)]
  assert [row.name for row in rows] == ["train_step", "packing", "memory", "build", "host", "pipeline"]
  assert "not installed" in rows[0].detail and rows[0].ours > 0
  assert "SUPERNI_DIR" in rows[1].detail and "SUPERNI_DIR" in rows[3].detail
  assert rows[2].ratio < 1 and rows[4].ours > 0 and rows[5].ratio > 0
  console = Console(width=200, file=io.StringIO())
  console.print(command.table(rows))
  assert all(row.name in console.file.getvalue() for row in rows)


def test_workers_of_the_feed_bench_share_a_cache():
  row = feed(batch=2, batches=2, repeats=1)
  assert row.ours > 0 and row.met == (row.ours >= 100_000)
  assert "random tokens" in row.detail and "2 processes" in row.detail


def test_a_mixture_is_opened_in_a_process_of_its_own(monkeypatch):
  row = opening(tasks=5, examples=4, batch=1, repeats=1)
  assert row.ours > 0 and "5 tasks" in row.detail
  assert str(row.target) == f"at most 3 s and {MEGABYTES} MB"
  monkeypatch.setattr("mtx.bench.open.MEGABYTES", 10)  # less than an interpreter takes
  assert not opening(tasks=1, examples=2, batch=1, repeats=1).met


def test_a_build_is_compared_with_its_own_texts(tmp_path, monkeypatch):
  pytest.importorskip("seqio")
  monkeypatch.setenv("MTX_CACHE", str(tmp_path))
  for folder in ("tasks", "splits/default"):
    (tmp_path / folder).mkdir(parents=True)
  for split, name in (("train", "task1_reverse"), ("test", "task3_rhyme")):
    write(tmp_path, name, task(name, 60))
    (tmp_path / f"splits/default/{split}_tasks.txt").write_text(name)
  row = build(superni=tmp_path, repeats=1)
  assert row.ratio > 0 and "2 splits of 1 tasks, 60 examples" in row.detail


def test_an_import_is_measured(tmp_path):
  row = importing(megabytes=3, width=32, repeats=1, folder=tmp_path)
  assert row.ours > 0 and row.ratio > 0


def test_ranking_is_measured():
  row = ranking(preset="t5_micro", vocabulary=128, batch=2, inputs=16, options=3, length=2, repeats=1)
  assert row.ours > 0 and row.ratio > 0


def test_generation_is_measured_and_equal():
  for name in ("torch", "transformers"):
    pytest.importorskip(name)
  row = generating("generate_llama", sizes=TINY, repeats=1)
  assert row.ratio > 0 and "100.0% of tokens equal" in row.detail


def test_peer_has_our_sites_and_trains_only_adapters():
  for name in ("torch", "transformers", "peft"):
    pytest.importorskip(name)
  from mtx.bench.trainer import routed

  step = peft_poly(SMALL)
  step()
  held = dict(zip(step.__code__.co_freevars, (cell.cell_contents for cell in step.__closure__), strict=True))
  trained = sum(p.numel() for p in held["trainable"])
  assert trained == sum(s.size for s in routed(SMALL).shapes.values())


def test_padded_batches_keep_every_token():
  segments = np.zeros((2, 128), np.int32)
  segments[0, :40] = 1
  batch = {f"{side}_segment_ids": segments for side in ("encoder", "decoder")}
  trimmed = packing.trimmed(batch)
  assert trimmed["encoder_segment_ids"].shape == (2, 64)
  assert packing.real_tokens(trimmed) == 80
  assert packing.longest_slots(batch) == 160 and packing.slots_of(trimmed) == 256


def test_an_unknown_bench_is_named(capsys):
  assert command.main(["memry"]) == 2
  assert "memory" in capsys.readouterr().err
