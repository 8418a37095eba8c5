from collections import Counter

import grain
import numpy as np
import pytest
from batch_contents import EOS, pairs

from mtx.data import convert
from mtx.data.feed import feed
from mtx.data.pack import examples_per_row, open_rows, pack

LENGTHS = {"inputs_length": 32, "targets_length": 12}


def known(mixture) -> Counter:
  """(task id, inputs, targets) of every training example."""
  return Counter(
    (index, tuple(example["inputs"].tolist()), tuple(example["targets"].tolist()))
    for index, task in enumerate(mixture.tasks)
    for example in (task.splits["train"][i] for i in range(len(task.splits["train"])))
  )


@pytest.mark.parametrize("rows", ["mixed", "task"])
@pytest.mark.parametrize("packed", [True, False])
def test_rows_hold_whole_examples_and_their_task(mixture, rows, packed):
  """Every segment is one example of the cache, unsplit and unchanged, under its own task's id."""
  originals = known(mixture)
  made = feed(mixture, architecture="encdec", seed=3, batch=8, pack=packed, rows=rows, **LENGTHS)
  batches = iter(made)
  seen = Counter()
  for _ in range(40):
    batch = next(batches)
    found = pairs(batch)
    assert all(each in originals for each in found)
    seen.update(found)
    if rows == "task":
      for row, task in zip(batch["encoder_task_ids"], batch["task_ids"], strict=True):
        assert set(row[row > 0]) <= {task}
    else:
      assert "task_ids" not in batch
    if not packed:
      assert batch["encoder_segment_ids"].max() == 1
  batches.close()
  assert (max(batch["encoder_segment_ids"].max(axis=1)) > 1) == packed
  assert len(seen) > 0.8 * len(originals)


@pytest.mark.parametrize("architecture", ["causal", "prefix"])
def test_a_decoder_row_holds_the_same_examples_as_an_encoder_decoder_row(mixture, architecture):
  originals = {(task, inputs + targets): len(inputs) for task, inputs, targets in known(mixture)}
  batches = iter(feed(mixture, architecture=architecture, seed=3, batch=8, **LENGTHS))
  batch = next(batches)
  batches.close()
  checked = 0
  for row in range(8):
    ids = batch["decoder_segment_ids"][row]
    for segment in range(1, ids.max() + 1):
      inside = ids == segment
      tokens = tuple(batch["decoder_target_tokens"][row][inside].tolist())
      width = originals[int(batch["decoder_task_ids"][row][inside][0]), tokens]
      weights = batch["decoder_loss_weights"][row][inside]
      assert weights.tolist() == [0.0] * width + [1.0] * (len(tokens) - width) and tokens[-1] == EOS
      assert batch["decoder_input_tokens"][row][inside].tolist() == [0, *tokens[:-1]]
      checked += 1
  assert checked > 8


def test_every_example_of_a_finite_stream_is_packed_once():
  rng = np.random.default_rng(0)
  examples = [
    {name: rng.integers(3, 99, rng.integers(2, 14)).astype(np.int32) for name in ("inputs", "targets")}
    for _ in range(200)
  ]
  lengths = convert.row_lengths("encdec", 20, 20)
  stream = grain.MapDataset.source(examples).map(lambda e: convert.element(e, 3, "encdec", 20, 20, EOS))
  rows = list(pack(stream.to_iter_dataset(), lengths, bins=8, seed=1))
  found = pairs(convert.features(convert.stacked(rows), "encdec"))
  expected = Counter((3, tuple(e["inputs"].tolist()), tuple(e["targets"].tolist())) for e in examples)
  assert Counter(found) == expected
  single = list(pack(stream.to_iter_dataset(), lengths, bins=8, seed=1, single=True))
  assert len(single) == 200 and len(rows) < 150


def test_examples_per_row_foretells_packing(mixture):
  sizes = np.minimum(mixture.tasks[2].splits["train"].lengths, [32, 12])
  foretold = examples_per_row(sizes, np.array([32, 12]), bins=16, seed=0)
  lengths = convert.row_lengths("encdec", 32, 12)
  rng = np.random.default_rng(5)
  stream = grain.MapDataset.source([sizes[i] for i in rng.integers(0, len(sizes), 3000)])
  elements = stream.map(
    lambda size: {
      "inputs": np.ones(size[0], np.int32),
      "targets": np.ones(size[1], np.int32),
      "task": np.ones(1, np.int32),
    }
  )
  rows = list(pack(elements.to_iter_dataset(), lengths, bins=16, seed=0))
  assert foretold == pytest.approx(3000 / len(rows), rel=0.05)


def test_examples_per_row_of_equal_sizes_is_exact():
  sizes = np.tile([10, 1], (5, 1))
  assert examples_per_row(sizes, np.array([32, 12]), bins=4, seed=0) == 3.0


def test_many_streams_share_the_memory():
  lengths = convert.row_lengths("encdec", 1024, 128)
  assert open_rows(lengths, 1, 256) == 256
  assert open_rows(lengths, 60, 16) == 16
  assert open_rows(lengths, 1600, 16) == 4
