import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from batch_contents import EOS, pairs, segments

from mtx.data.cache import CachedMixture, open_mixture, write_split
from mtx.data.feed import feed, validation_batches
from mtx.errors import UserError

LENGTHS = {"inputs_length": 32, "targets_length": 12}


def assert_equal(batches, others):
  assert len(batches) == len(others) > 0
  for batch, other in zip(batches, others, strict=True):
    assert batch.keys() == other.keys()
    for name in batch:
      np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def taken(batches, number):
  return list(itertools.islice(batches, number))


@pytest.mark.parametrize("position", [0, 1, 7, 40])
@pytest.mark.parametrize(("rows", "packed"), [("mixed", True), ("mixed", False), ("task", True), ("task", False)])
def test_a_restored_feed_goes_on_bit_identically(cache_dir, rows, packed, position):
  """A fresh feed, over a cache that was opened anew, from a state that went through JSON."""
  settings = {"architecture": "encdec", "seed": 4, "batch": 4, "rows": rows, "pack": packed, **LENGTHS}
  batches = iter(feed(open_mixture(cache_dir, "four_tasks"), **settings))
  taken(batches, position)
  state = json.loads(json.dumps(batches.get_state()))
  uninterrupted = taken(batches, 12)
  batches.close()
  fresh = iter(feed(open_mixture(cache_dir, "four_tasks"), **settings))
  taken(fresh, 3)
  fresh.set_state(state)
  assert_equal(taken(fresh, 12), uninterrupted)
  fresh.close()
  assert len(json.dumps(state)) < 1000


def test_a_state_is_of_what_was_handed_out_not_of_what_was_prefetched(mixture):
  batches = iter(feed(mixture, architecture="encdec", batch=4, **LENGTHS))
  states = []
  for _ in range(6):
    next(batches)
    states.append(json.dumps(batches.get_state()))
  following = taken(batches, 3)
  batches.set_state(json.loads(states[2]))
  assert_equal(taken(batches, 6)[3:], following)
  batches.close()


@pytest.mark.parametrize("architecture", ["encdec", "causal", "prefix"])
def test_one_seed_gives_one_stream(mixture, architecture):
  def first(seed):
    batches = iter(feed(mixture, architecture=architecture, batch=4, seed=seed, **LENGTHS))
    found = taken(batches, 10)
    batches.close()
    return found

  assert_equal(first(1), first(1))
  with pytest.raises(AssertionError):
    assert_equal(first(1), first(2))


def test_a_state_of_other_settings_is_refused(mixture):
  batches = iter(feed(mixture, architecture="encdec", batch=4, **LENGTHS))
  state = batches.get_state()
  batches.close()
  for change in ({"seed": 1}, {"batch": 5}, {"inputs_length": 31}, {"pack": False}):
    other = iter(feed(mixture, **({"architecture": "encdec", "batch": 4, **LENGTHS} | change)))
    with pytest.raises(UserError, match="belongs to another feed"):
      other.set_state(state)
    other.close()


@pytest.mark.parametrize("architecture", ["encdec", "causal", "prefix"])
@pytest.mark.parametrize("rows", ["mixed", "task"])
def test_the_spec_is_what_batches_have(mixture, architecture, rows):
  made = feed(mixture, architecture=architecture, batch=5, rows=rows, **LENGTHS)
  batches = iter(made)
  batch = next(batches)
  batches.close()
  assert {name: (values.shape, values.dtype.name) for name, values in batch.items()} == dict(made.spec)
  length = 32 if architecture == "encdec" else 44
  assert next(iter(made.spec.values()))[0] == (5, length)


def long_examples(mixture, limit):
  return {
    task.name: int((task.splits["train"].lengths > limit).any(axis=1).sum())
    for task in mixture.tasks
    if (task.splits["train"].lengths > limit).any()
  }


def test_over_long_examples_are_cut_and_counted(mixture):
  made = feed(mixture, architecture="encdec", batch=8, inputs_length=16, targets_length=5)
  assert dict(made.overlong) == long_examples(mixture, [16, 5])
  originals = {
    (i, tuple([*ids[:15].tolist(), EOS] if len(ids) > 16 else ids.tolist()))
    for i, task in enumerate(mixture.tasks)
    for ids in (task.splits["train"][j]["inputs"] for j in range(len(task.splits["train"])))
  }
  batches = iter(made)
  cut = 0
  for batch in taken(batches, 20):
    for task, tokens in segments(batch):
      assert (task, tokens) in originals and tokens[-1] == EOS
      cut += len(tokens) == 16
    assert all(tokens[-1] == EOS for _, tokens in segments(batch, "decoder"))
  batches.close()
  assert cut


def test_over_long_examples_are_dropped_and_the_rates_kept(mixture):
  made = feed(mixture, architecture="encdec", batch=8, inputs_length=18, targets_length=6, overlong="drop")
  assert dict(made.overlong) == long_examples(mixture, [18, 6])
  kept = {
    (i, tuple(example["inputs"].tolist()), tuple(example["targets"].tolist()))
    for i, task in enumerate(mixture.tasks)
    for example in (task.splits["train"][j] for j in range(len(task.splits["train"])))
    if len(example["inputs"]) <= 18 and len(example["targets"]) <= 6
  }
  batches = iter(made)
  found = [pair for batch in taken(batches, 60) for pair in pairs(batch)]
  batches.close()
  assert set(found) <= kept
  share = sum(task == 3 for task, _, _ in found) / len(found)
  assert share == pytest.approx(mixture.rates[3], rel=0.08)


def test_an_over_long_example_can_be_an_error(mixture):
  with pytest.raises(UserError) as raised:
    feed(mixture, architecture="encdec", inputs_length=16, targets_length=12, overlong="error")
  split = mixture.tasks[2].splits["train"]
  first = int((split.lengths[:, 0] > 16).argmax())
  message = str(raised.value)
  assert f"task 'sort', example '{split[first]['id']}': {split.lengths[first, 0]} input" in message
  assert "are over 16 and 12" in message and 'feed.overlong = "truncate"' in message
  feed(mixture, architecture="encdec", inputs_length=30, targets_length=8, overlong="error")


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"rows": "mixd"}, "feed.rows is 'mixd'.*did you mean `mixed`"),
    ({"overlong": "cut"}, "feed.overlong is 'cut'.*valid choices: drop, error, truncate"),
    ({"architecture": "decoder"}, "architecture 'decoder' is not known"),
    ({"batch": 0}, "batch of the feed is 0"),
    ({"split": "test"}, r"task 'add' has no examples in split 'test'.*train \(40\), validation \(5\)"),
    ({"inputs_length": 13, "overlong": "drop"}, "task 'translate': all 30 examples are over 13 input"),
  ],
)
def test_what_does_not_fit_is_named(mixture, settings, message):
  with pytest.raises(UserError) as raised:
    feed(mixture, **({"architecture": "encdec", **LENGTHS} | settings))
  assert re.search(message, str(raised.value).replace("\n", " ")), str(raised.value)


@pytest.mark.parametrize("architecture", ["encdec", "prefix"])
def test_validation_is_finite_in_a_fixed_order_and_complete(mixture, architecture):
  settings = {"architecture": architecture, "batch": 8, **LENGTHS}
  batches = list(validation_batches(mixture, **settings))
  assert_equal(batches, list(validation_batches(mixture, **settings)))
  found = [each for batch in batches for each in segments(batch, "decoder")]
  expected = []
  for index, task in enumerate(mixture.tasks):
    for position in range(5):
      example = task.splits["validation"][position]
      inputs = [] if architecture == "encdec" else example["inputs"].tolist()
      expected.append((index, (*inputs, *example["targets"].tolist())))
  assert found == expected
  assert len(batches) == 3 and {values.shape[0] for batch in batches for values in batch.values()} == {8}
  last = batches[-1]
  assert not last["decoder_segment_ids"][4:].any() and not last["decoder_loss_weights"][4:].any()
  assert last["task_ids"].tolist() == [3, 3, 3, 3, 0, 0, 0, 0]
  limited = list(validation_batches(mixture, limit=2, **settings))
  assert len(limited) == 1 and limited[0]["task_ids"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_split_that_no_task_has_is_named(mixture):
  with pytest.raises(UserError, match=r"no task of 'four_tasks' has examples in split 'valid'"):
    next(validation_batches(mixture, architecture="encdec", split="valid", batch=2, **LENGTHS))


def test_sixty_tasks_in_rows_of_their_own(mixture):
  """Start-up and state stay small: a few bytes a task."""
  tasks = tuple(replace(task, name=f"{task.name}{i}") for i in range(15) for task in mixture.tasks)
  many = CachedMixture("many", tasks, (1 / 60,) * 60, mixture.vocabulary)
  settings = {"architecture": "encdec", "batch": 32, "rows": "task", **LENGTHS}
  batches = iter(feed(many, **settings))
  taken(batches, 5)
  state = batches.get_state()
  following = taken(batches, 3)
  batches.close()
  fresh = iter(feed(many, **settings))
  fresh.set_state(state)
  assert_equal(taken(fresh, 3), following)
  fresh.close()
  assert len(json.dumps(state)) < 6000


def with_weights(mixture, tmp_path):
  """The tasks `sort` and `translate`, of whose targets only the odd places of `translate` count."""
  chat = mixture.tasks[3].splits["train"]
  examples = [{**chat[i], "weights": (np.arange(len(chat[i]["targets"])) % 2).astype(np.uint8)} for i in range(30)]
  split = write_split(tmp_path / "chat", examples, fingerprint="chat", ingredients=None)
  task = replace(mixture.tasks[3], splits={"train": split, "validation": split}, fingerprint="chat")
  return CachedMixture("chat", (mixture.tasks[2], task), (0.5, 0.5), mixture.vocabulary)


def counted(batches) -> set[tuple[int, tuple[int, ...]]]:
  """(task, tokens that count in the loss) of every segment."""
  found = set()
  for batch in batches:
    for row in range(len(batch["decoder_segment_ids"])):
      for segment in range(1, batch["decoder_segment_ids"][row].max() + 1):
        here = batch["decoder_segment_ids"][row] == segment
        counts = here & (batch["decoder_loss_weights"][row] > 0)
        found.add((int(batch["decoder_task_ids"][row][here][0]), tuple(batch["decoder_target_tokens"][row][counts])))
  return found


@pytest.mark.parametrize("architecture", ["encdec", "causal", "prefix"])
@pytest.mark.parametrize("packed", [True, False])
def test_weights_of_examples_reach_the_batch(mixture, tmp_path, architecture, packed):
  source = with_weights(mixture, tmp_path)
  expected = {
    (index, tuple(example["targets"][1::2] if index else example["targets"]))
    for index, task in enumerate(source.tasks)
    for example in (task.splits["train"][i] for i in range(len(task.splits["train"])))
  }
  batches = iter(feed(source, architecture=architecture, batch=16, pack=packed, **LENGTHS))
  found = counted(taken(batches, 40))
  batches.close()
  assert found == expected
  validation = validation_batches(source, architecture=architecture, batch=8, **LENGTHS)
  assert {each for each in counted(validation) if each[0] == 1} == {each for each in expected if each[0] == 1}


def test_examples_of_a_row_can_see_each_other(mixture):
  """Without isolation the rows are the same ones, each a single segment; the feed is another one."""
  feeds = [feed(mixture, architecture="causal", batch=4, isolate=isolate, **LENGTHS) for isolate in (True, False)]
  assert feeds[0].fingerprint != feeds[1].fingerprint
  batches = [iter(each) for each in feeds]
  apart, joined = (next(each) for each in batches)
  np.testing.assert_array_equal(joined["decoder_target_tokens"], apart["decoder_target_tokens"])
  np.testing.assert_array_equal(joined["decoder_loss_weights"], apart["decoder_loss_weights"])
  assert apart["decoder_segment_ids"].max() > 1 and joined["decoder_segment_ids"].max() == 1
  for each in batches:
    each.close()
  with pytest.raises(UserError, match=r"feed\.isolate is False, but the architecture is 'prefix'"):
    feed(mixture, architecture="prefix", batch=4, isolate=False, **LENGTHS)


def test_the_loss_on_all_reaches_training_and_validation(mixture):
  made = feed(mixture, architecture="causal", batch=4, loss="all", **LENGTHS)
  assert made.loss == "all" and made.fingerprint != feed(mixture, architecture="causal", batch=4, **LENGTHS).fingerprint
  batches = iter(made)
  validation = next(validation_batches(mixture, architecture="causal", batch=4, loss="all", **LENGTHS))
  for batch in (next(batches), validation):
    np.testing.assert_array_equal(batch["decoder_loss_weights"], batch["decoder_segment_ids"] > 0)
  batches.close()
  for function in (feed, lambda *args, **kwargs: next(validation_batches(*args, **kwargs))):
    with pytest.raises(UserError, match="an encoder-decoder predicts no inputs"):
      function(mixture, architecture="encdec", batch=4, loss="all", **LENGTHS)
