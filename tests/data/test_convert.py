import numpy as np
import pytest

from mtx.data import convert
from mtx.errors import UserError

EXAMPLES = [
  {"inputs": np.array([7, 8, 5, 1], np.int32), "targets": np.array([3, 9, 1], np.int32)},
  {"inputs": np.array([8, 4, 9, 3, 1], np.int32), "targets": np.array([4, 1], np.int32)},
]


CHAT = [
  {**EXAMPLES[0], "weights": np.array([0, 1, 1], np.uint8)},
  EXAMPLES[1],
  {**EXAMPLES[1], "weights": np.array([1, 0], np.uint8)},
]


def two_in_a_row(architecture: str, examples=EXAMPLES, **settings) -> dict:
  """Examples in one row, of tasks 2, 5 and 3."""
  elements = [convert.element(example, task, 10, 6, 1) for example, task in zip(examples, (2, 5, 3), strict=False)]
  return convert.features([elements], architecture, 10, 6, **settings)


def test_features_of_an_encoder_decoder_row():
  batch = two_in_a_row("encdec")
  assert {name: values[0].tolist() for name, values in batch.items()} == {
    "encoder_input_tokens": [7, 8, 5, 1, 8, 4, 9, 3, 1, 0],
    "encoder_segment_ids": [1, 1, 1, 1, 2, 2, 2, 2, 2, 0],
    "encoder_positions": [0, 1, 2, 3, 0, 1, 2, 3, 4, 0],
    "encoder_task_ids": [2, 2, 2, 2, 5, 5, 5, 5, 5, 0],
    "decoder_input_tokens": [0, 3, 9, 0, 4, 0],
    "decoder_target_tokens": [3, 9, 1, 4, 1, 0],
    "decoder_loss_weights": [1, 1, 1, 1, 1, 0],
    "decoder_segment_ids": [1, 1, 1, 2, 2, 0],
    "decoder_positions": [0, 1, 2, 0, 1, 0],
    "decoder_task_ids": [2, 2, 2, 5, 5, 0],
  }
  assert batch["decoder_loss_weights"].dtype == np.float32
  assert {values.dtype.name for name, values in batch.items() if "weights" not in name} == {"int32"}


def test_features_of_a_prefix_row():
  batch = two_in_a_row("prefix")
  assert {name: values[0].tolist() for name, values in batch.items()} == {
    "decoder_target_tokens": [7, 8, 5, 1, 3, 9, 1, 8, 4, 9, 3, 1, 4, 1, 0, 0],
    "decoder_input_tokens": [0, 7, 8, 5, 1, 3, 9, 0, 8, 4, 9, 3, 1, 4, 0, 0],
    "decoder_loss_weights": [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0],
    "decoder_positions": [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0, 0],
    "decoder_segment_ids": [1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 0, 0],
    "decoder_causal_attention": [1, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "decoder_task_ids": [2, 2, 2, 2, 2, 2, 2, 5, 5, 5, 5, 5, 5, 5, 0, 0],
  }
  assert "decoder_causal_attention" not in two_in_a_row("causal")


@pytest.mark.parametrize("examples", [EXAMPLES, CHAT])
def test_joined_elements_are_one_text_with_the_same_tokens_and_loss(examples):
  elements = [convert.element(example, task, 10, 6, 1) for example, task in zip(examples, (2, 5, 3), strict=False)]
  apart, joined = (convert.features([row], "causal", 20, 12) for row in (elements, convert.joined(elements)))
  for name in ("decoder_target_tokens", "decoder_loss_weights"):
    np.testing.assert_array_equal(joined[name], apart[name])
  real = joined["decoder_segment_ids"][0] > 0
  assert real.sum() == (apart["decoder_segment_ids"] > 0).sum() and set(joined["decoder_segment_ids"][0][real]) == {1}
  np.testing.assert_array_equal(joined["decoder_positions"][0][real], np.arange(real.sum()))
  # One text: every token but the first is predicted from the one before it.
  np.testing.assert_array_equal(joined["decoder_input_tokens"][0][1:][real[1:]],
                                joined["decoder_target_tokens"][0][:-1][real[1:]])  # fmt: skip
  assert convert.joined(elements[:1]) == elements[:1] and convert.joined([]) == []


@pytest.mark.parametrize("pack", [False, True])
def test_the_prefix_features_equal_seqio(pack):
  from mtx.tasks.source import seqio, tf

  source = tf.data.Dataset.from_generator(
    lambda: iter(EXAMPLES if pack else EXAMPLES[:1]),
    output_signature={name: tf.TensorSpec([None], tf.int32) for name in ("inputs", "targets")},
  )
  converter = seqio.PrefixLMFeatureConverter(pack=pack)
  (theirs,) = converter(source, {"inputs": 10, "targets": 6}).as_numpy_iterator()
  if pack:
    ours = two_in_a_row("prefix")
  else:
    ours = convert.padded(EXAMPLES[:1], "prefix", 10, 6, [2], rows=1)
  for name in theirs:
    real = ours["decoder_segment_ids"][0] > 0  # SeqIO leaves the last token in the padding of unpacked inputs
    np.testing.assert_array_equal(ours[name][0][real], theirs[name][real], err_msg=name)
  np.testing.assert_array_equal(ours["decoder_causal_attention"][0], theirs["decoder_causal_attention"])
  np.testing.assert_array_equal(ours["decoder_loss_weights"][0], theirs["decoder_loss_weights"])


@pytest.mark.parametrize("architecture", convert.ARCHITECTURES)
def test_a_prompt_is_the_training_row_up_to_the_first_target(architecture):
  inputs_length = 6
  prompts = convert.prompts(EXAMPLES, architecture, inputs_length, 4, [2, 5])
  rows = convert.padded(EXAMPLES, architecture, inputs_length, 4, [2, 5], rows=2)
  assert prompts["task_ids"].tolist() == [2, 5]
  for index, example in enumerate(EXAMPLES):
    width = len(example["inputs"])
    if architecture == "encdec":
      for name in (name for name in rows if name.startswith("encoder_")):
        np.testing.assert_array_equal(prompts[name][index], rows[name][index], err_msg=name)
      continue
    for name in ("decoder_input_tokens", "decoder_segment_ids", "decoder_positions"):
      prompt = prompts[name][index]
      assert len(prompt) == inputs_length + 1
      np.testing.assert_array_equal(prompt[-width - 1 :], rows[name][index, : width + 1], err_msg=name)
      assert not prompt[: -width - 1].any()
    assert rows["decoder_loss_weights"][index, width] == 1 and not rows["decoder_loss_weights"][index, :width].any()
    if architecture == "prefix":
      np.testing.assert_array_equal(prompts["decoder_causal_attention"], prompts["decoder_segment_ids"])


def test_what_is_cut_ends_with_eos():
  tokens = np.array([5, 6, 7, 8, 1], np.int32)
  assert convert.truncated(tokens, 3, 1).tolist() == [5, 6, 1]
  assert convert.truncated(tokens, 5, 1) is tokens
  assert convert.truncated(tokens[:4], 3, 1).tolist() == [5, 6, 7]
  assert tokens.tolist() == [5, 6, 7, 8, 1]


def test_an_empty_row_is_all_padding():
  batch = convert.padded(EXAMPLES, "causal", 6, 4, [2, 5], rows=4)
  for name, values in batch.items():
    assert values.shape[0] == 4 and not values[2:].any(), name


def test_an_unknown_architecture_names_the_near_one():
  with pytest.raises(UserError, match="did you mean `causal`"):
    convert.check_architecture("casual")


def test_what_does_not_fit_is_an_error():
  """Silently, tokens would run over into the next row."""
  elements = [convert.element(example, 0, 10, 6, 1) for example in EXAMPLES]
  with pytest.raises(ValueError, match="row 1 of 8 tokens can not hold 9"):
    convert.features([[], elements], "encdec", 8, 6)
  with pytest.raises(ValueError, match="row 0 of 13 tokens can not hold 14"):
    convert.features([elements, []], "causal", 8, 5)


@pytest.mark.parametrize(
  ("architecture", "weights"),
  [
    ("encdec", [0, 1, 1, 1, 1, 1, 0, 0]),
    ("causal", [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]),
    ("prefix", [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]),
  ],
)
def test_targets_count_as_the_example_says(architecture, weights):
  """One with weights, one without, one with; nothing but the loss weights differs from three without."""
  elements = [convert.element(example, task, 16, 8, 1) for example, task in zip(CHAT, (2, 5, 3), strict=True)]
  batch = convert.features([elements], architecture, 16, 8)
  assert batch["decoder_loss_weights"][0].tolist() == weights and batch["decoder_loss_weights"].dtype == np.float32
  plain = convert.features([[each._replace(weights=None) for each in elements]], architecture, 16, 8)
  assert batch.keys() == plain.keys()
  for name in batch.keys() - {"decoder_loss_weights"}:
    np.testing.assert_array_equal(batch[name], plain[name], err_msg=name)
  assert plain["decoder_loss_weights"].sum() == 7


def test_weights_are_cut_with_their_targets():
  """An EOS that stands for a part that does not count does not count."""
  example = {**EXAMPLES[0], "weights": np.array([1, 0, 1], np.uint8)}
  cut = convert.element(example, 0, 10, 2, 1)
  assert cut.targets.tolist() == [3, 1] and cut.weights.tolist() == [1, 0]
  wrong = {**EXAMPLES[0], "id": "a-7", "weights": np.ones(2, np.uint8)}
  with pytest.raises(UserError, match="example 'a-7' has 2 weights for 3 target tokens"):
    convert.element(wrong, 0, 10, 6, 1)


def test_the_loss_can_be_on_every_token():
  batch = two_in_a_row("causal", loss="all")
  assert batch["decoder_loss_weights"][0].tolist() == [1.0] * 14 + [0.0] * 2
  np.testing.assert_array_equal(two_in_a_row("causal", CHAT[:2], loss="all")["decoder_loss_weights"][0, :14], 1)
  padded = convert.padded(CHAT, "causal", 10, 6, [2, 5, 3], rows=4, loss="all")
  np.testing.assert_array_equal(padded["decoder_loss_weights"], padded["decoder_segment_ids"])


@pytest.mark.parametrize(
  ("loss", "architecture", "message"),
  [
    ("all", "encdec", "an encoder-decoder predicts no inputs"),
    ("all", "prefix", "sees an input token before it predicts it"),
    ("target", "causal", "did you mean `targets`"),
  ],
)
def test_a_loss_that_can_not_be_learnt_is_named(loss, architecture, message):
  with pytest.raises(UserError, match=message):
    convert.check_loss(loss, architecture)


@pytest.mark.parametrize("architecture", convert.ARCHITECTURES)
def test_a_row_begins_with_the_familys_token(architecture):
  """Only the first decoder input of every segment differs from a row that begins with 0; padding stays 0."""
  zero, seven = two_in_a_row(architecture, CHAT[:2]), two_in_a_row(architecture, CHAT[:2], start_id=7)
  assert zero.keys() == seven.keys()
  first = (zero["decoder_positions"] == 0) & (zero["decoder_segment_ids"] > 0)
  assert first.sum() == 2
  for name in zero.keys() - {"decoder_input_tokens"}:
    np.testing.assert_array_equal(zero[name], seven[name], err_msg=name)
  np.testing.assert_array_equal(seven["decoder_input_tokens"], np.where(first, 7, zero["decoder_input_tokens"]))
  assert {values.dtype.name for name, values in seven.items() if "weights" not in name} == {"int32"}


def test_a_row_without_a_start_token():
  """A segment's first input is its first token, which nothing predicts."""
  batch = two_in_a_row("prefix", start_id=None)
  assert {name: values[0].tolist() for name, values in batch.items()} == {
    "decoder_target_tokens": [8, 5, 1, 3, 9, 1, 4, 9, 3, 1, 4, 1, 0, 0, 0, 0],
    "decoder_input_tokens": [7, 8, 5, 1, 3, 9, 8, 4, 9, 3, 1, 4, 0, 0, 0, 0],
    "decoder_loss_weights": [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0],
    "decoder_positions": [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 0, 0, 0],
    "decoder_segment_ids": [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0],
    "decoder_causal_attention": [1, 1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
    "decoder_task_ids": [2, 2, 2, 2, 2, 2, 5, 5, 5, 5, 5, 5, 0, 0, 0, 0],
  }
  weighted = two_in_a_row("causal", CHAT[:2], start_id=None)["decoder_loss_weights"][0].tolist()
  assert weighted == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0]
  every = two_in_a_row("causal", loss="all", start_id=None)
  np.testing.assert_array_equal(every["decoder_loss_weights"], every["decoder_segment_ids"] > 0)


@pytest.mark.parametrize("architecture", ["causal", "prefix"])
def test_a_row_without_a_start_token_is_the_other_one_less_its_first_places(architecture):
  """Over many elements: what is left of every segment where its first place is taken out."""
  rng = np.random.default_rng(0)
  lengths = rng.integers([0, 1], [6, 7], (40, 2))
  elements = [
    convert.Element(
      rng.integers(2, 90, n).astype(np.int32),
      rng.integers(2, 90, m).astype(np.int32),
      int(rng.integers(9)),
      rng.integers(0, 2, m).astype(np.uint8) if rng.random() < 0.5 else None,
    )
    for n, m in lengths
  ]
  rows = [elements[i : i + 4] for i in range(0, 40, 4)]
  with_start, without = (convert.features(rows, architecture, 24, 24, start_id=start) for start in (5, None))
  keep = with_start["decoder_positions"] > 0
  real = without["decoder_segment_ids"] > 0
  for name in ("decoder_target_tokens", "decoder_loss_weights", "decoder_segment_ids", "decoder_task_ids"):
    np.testing.assert_array_equal(without[name][real], with_start[name][keep], err_msg=name)
  np.testing.assert_array_equal(without["decoder_input_tokens"][real], with_start["decoder_input_tokens"][keep])
  np.testing.assert_array_equal(without["decoder_positions"][real], with_start["decoder_positions"][keep] - 1)
  if architecture == "prefix":
    np.testing.assert_array_equal(
      without["decoder_causal_attention"][real], with_start["decoder_causal_attention"][keep]
    )
  # Packing counts the same places.
  for start, batch in ((5, with_start), (None, without)):
    sizes = convert.sizes(lengths, architecture, 24, 24, start_id=start)[:, 0].reshape(10, 4).sum(axis=1)
    np.testing.assert_array_equal((batch["decoder_segment_ids"] > 0).sum(axis=1), sizes)


@pytest.mark.parametrize("architecture", ["causal", "prefix"])
def test_a_prompt_without_a_start_token_is_the_inputs(architecture):
  prompts = convert.prompts(EXAMPLES, architecture, 6, 4, [2, 5], start_id=None)
  rows = convert.padded(EXAMPLES, architecture, 6, 4, [2, 5], rows=2, start_id=None)
  for index, example in enumerate(EXAMPLES):
    width = len(example["inputs"])
    for name in ("decoder_input_tokens", "decoder_segment_ids", "decoder_positions"):
      prompt = prompts[name][index]
      assert len(prompt) == 6 and not prompt[:-width].any()
      np.testing.assert_array_equal(prompt[-width:], rows[name][index, :width], err_msg=name)
    assert rows["decoder_loss_weights"][index].tolist().index(1) == width - 1
  seven = convert.prompts(EXAMPLES, architecture, 6, 4, [2, 5], start_id=7)["decoder_input_tokens"]
  assert seven.shape == (2, 7) and seven[0].tolist() == [0, 0, 7, 7, 8, 5, 1]
  with pytest.raises(UserError, match="example 'a-1' has no input, and the vocabulary has no start token"):
    convert.prompts([{"id": "a-1", "inputs": []}], architecture, 6, 4, [0], start_id=None)


def test_an_encoder_decoder_needs_a_start_token():
  with pytest.raises(UserError, match="begin with a start token, and the vocabulary has none"):
    two_in_a_row("encdec", start_id=None)
