"""Examples to the arrays that a model reads, under SeqIO's feature names (seqio.feature_converters).

An example becomes an *element* (its tokens, not padded). Packing puts elements into *rows* of fixed length;
`row` does the same with one element. `features` turns a batch of rows into model features: everything there
is array arithmetic over segment ids and positions, so packed and unpacked rows take one path.

Architectures: "encdec" (encoder_* and decoder_*), "causal" and "prefix" (decoder_* only: inputs then
targets).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from mtx.errors import UserError, did_you_mean

ARCHITECTURES = ("encdec", "causal", "prefix")
Arrays = dict[str, np.ndarray]
# One value a segment, not one a token: packing must not give them segment ids of their own.
PER_SEGMENT = ("task", "inputs_width")


def check_architecture(architecture: str) -> None:
  """Raises UserError for a name that is none of ARCHITECTURES."""
  if architecture not in ARCHITECTURES:
    raise UserError(f"architecture {architecture!r} is not known", hint=did_you_mean(architecture, ARCHITECTURES))


def truncated(tokens: Int32[np.ndarray, " n"], length: int, eos_id: int) -> Int32[np.ndarray, " m"]:
  """At most `length` tokens. What is cut ends with EOS if it did before."""
  if len(tokens) <= length:
    return tokens
  kept = tokens[:length].copy()
  if tokens[-1] == eos_id:
    kept[-1] = eos_id
  return kept


def element(
  example: Mapping[str, Any],
  task: int,
  architecture: str,
  inputs_length: int,
  targets_length: int,
  eos_id: int,
) -> Arrays:
  """The arrays of one example that are packed: int32, not padded.

  Args:
    example: has "inputs" and "targets", which are cut to their lengths.
    task: the example's task id.
    architecture: one of ARCHITECTURES.
    inputs_length, targets_length: most tokens of either.
    eos_id: kept as the last token of what is cut.
  """
  inputs = truncated(example["inputs"], inputs_length, eos_id)
  targets = truncated(example["targets"], targets_length, eos_id)
  task_id = np.array([task], np.int32)
  if architecture == "encdec":
    return {"inputs": inputs, "targets": targets, "task": task_id}
  width = np.array([len(inputs)], np.int32)
  return {"tokens": np.concatenate([inputs, targets]), "inputs_width": width, "task": task_id}


def row_lengths(architecture: str, inputs_length: int, targets_length: int) -> dict[str, int]:
  """Capacity of a row for every array of an element."""
  if architecture == "encdec":
    # An example takes a token of either side at least, so this many segments can not be the binding limit.
    return {"inputs": inputs_length, "targets": targets_length, "task": max(inputs_length, targets_length)}
  length = inputs_length + targets_length
  return {"tokens": length, "inputs_width": length, "task": length}


def row(arrays: Arrays, lengths: Mapping[str, int]) -> Arrays:
  """A row that holds one element; or none, when `arrays` is empty."""
  padded: Arrays = {}
  for name, length in lengths.items():
    values = arrays.get(name, np.zeros(0, np.int32))
    padded[name] = _right_padded(values, length)
    if name not in PER_SEGMENT:
      padded[f"{name}_segment_ids"] = _right_padded(np.ones(len(values), np.int32), length)
      padded[f"{name}_positions"] = _right_padded(np.arange(len(values), dtype=np.int32), length)
  return padded


def features(rows: Arrays, architecture: str) -> Arrays:
  """Model features of a batch of rows.

  Args:
    rows: arrays [batch, length] as packing leaves them: tokens, `*_segment_ids`, `*_positions`, and
      per-segment values [batch, segments] whose column s-1 belongs to segment s.
    architecture: one of ARCHITECTURES.

  Returns:
    int32 arrays [batch, length], `decoder_loss_weights` float32. Decoder inputs are the targets shifted right
    within each segment, beginning with 0. Segment id 0 is padding, and padding has task id 0.
  """
  if architecture == "encdec":
    decoder, segments, positions = (rows[f"targets{suffix}"] for suffix in ("", "_segment_ids", "_positions"))
    encoder_segments = rows["inputs_segment_ids"]
    batch = {
      "encoder_input_tokens": rows["inputs"],
      "encoder_segment_ids": encoder_segments,
      "encoder_positions": rows["inputs_positions"],
      "encoder_task_ids": _per_token(rows["task"], encoder_segments),
    }
    weights = segments > 0
  else:
    decoder, segments, positions = (rows[f"tokens{suffix}"] for suffix in ("", "_segment_ids", "_positions"))
    inputs_width = _per_token(rows["inputs_width"], segments)
    weights = (segments > 0) & (positions >= inputs_width)
    batch = {}
    if architecture == "prefix":
      # Decoder inputs are shifted right, so the token that predicts the first target sits at `inputs_width`.
      batch["decoder_causal_attention"] = ((segments > 0) & (positions <= inputs_width)).astype(np.int32)
  return batch | {
    "decoder_input_tokens": _shifted(decoder, positions),
    "decoder_target_tokens": decoder,
    "decoder_loss_weights": weights.astype(np.float32),
    "decoder_segment_ids": segments,
    "decoder_positions": positions,
    "decoder_task_ids": _per_token(rows["task"], segments),
  }


def prompts(
  examples: Sequence[Mapping[str, Any]],
  architecture: str,
  inputs_length: int,
  targets_length: int,
  task_ids: Sequence[int],
  *,
  eos_id: int = 1,
) -> Arrays:
  """A batch to decode from: one example a row, inputs cut to `inputs_length`.

  Args:
    examples: each has "inputs", int32[n].
    architecture: "encdec" gives right-padded encoder_* features; the decoders give *left*-padded
      [batch, inputs_length + 1] decoder_* features: 0, then inputs, so that all rows go on at the same index.
    inputs_length: tokens of a row.
    targets_length: tokens that decoding will add; at least 1.
    task_ids: of each example.
    eos_id: kept as the last token of inputs that are cut.

  Returns:
    The features and `task_ids` int32[batch].
  """
  check_architecture(architecture)
  if inputs_length < 1 or targets_length < 1:
    raise UserError(f"lengths must be 1 or more, not inputs {inputs_length} and targets {targets_length}")
  inputs = [truncated(np.asarray(example["inputs"], np.int32), inputs_length, eos_id) for example in examples]
  tasks = np.asarray(task_ids, np.int32)
  if architecture == "encdec":
    lengths = {"inputs": inputs_length, "targets": 0, "task": 1}
    none = np.zeros(0, np.int32)
    rows = [
      row({"inputs": tokens, "targets": none, "task": np.array([task], np.int32)}, lengths)
      for tokens, task in zip(inputs, tasks, strict=True)
    ]
    made = features(stacked(rows), architecture)
    return {name: values for name, values in made.items() if name.startswith("encoder_")} | {"task_ids": tasks}
  length = inputs_length + 1
  made = {
    "decoder_input_tokens": np.stack([_left_padded(np.concatenate([[0], tokens]), length) for tokens in inputs]),
    "decoder_segment_ids": np.stack([_left_padded(np.ones(len(tokens) + 1), length) for tokens in inputs]),
    "decoder_positions": np.stack([_left_padded(np.arange(len(tokens) + 1), length) for tokens in inputs]),
  }
  if architecture == "prefix":
    made["decoder_causal_attention"] = made["decoder_segment_ids"].copy()
  return made | {"task_ids": tasks}


def padded(
  examples: Sequence[Mapping[str, Any]],
  architecture: str,
  inputs_length: int,
  targets_length: int,
  task_ids: Sequence[int],
  *,
  rows: int,
  eos_id: int = 1,
) -> Arrays:
  """A teacher-forced batch with one example a row, cut to the lengths, filled up with empty rows to `rows`.

  Returns:
    The features of `features` and `task_ids` int32[rows].
  """
  lengths = row_lengths(architecture, inputs_length, targets_length)
  limits = (inputs_length, targets_length, eos_id)
  made = [
    row(element(example, task, architecture, *limits), lengths)
    for example, task in zip(examples, task_ids, strict=True)
  ]
  batch = stacked(made + [row({}, lengths)] * (rows - len(made)))
  return features(batch, architecture) | {"task_ids": batch["task"][:, 0]}


def stacked(rows: Sequence[Arrays]) -> Arrays:
  """Rows to one batch."""
  return {name: np.stack([each[name] for each in rows]) for name in rows[0]}


def _right_padded(values: np.ndarray, length: int) -> Int32[np.ndarray, " length"]:
  padded = np.zeros(length, np.int32)
  padded[: len(values)] = values
  return padded


def _left_padded(values: np.ndarray, length: int) -> Int32[np.ndarray, " length"]:
  padded = np.zeros(length, np.int32)
  padded[length - len(values) :] = values
  return padded


def _per_token(
  values: Int32[np.ndarray, "batch segments"], segment_ids: Int32[np.ndarray, "batch length"]
) -> Int32[np.ndarray, "batch length"]:
  """The value of each token's segment; 0 at padding."""
  gathered = np.take_along_axis(values, np.maximum(segment_ids - 1, 0), axis=1)
  return np.where(segment_ids > 0, gathered, 0).astype(np.int32)


def _shifted(
  tokens: Int32[np.ndarray, "batch length"], positions: Int32[np.ndarray, "batch length"]
) -> Int32[np.ndarray, "batch length"]:
  """Each segment's tokens one to the right, 0 first. Padding has position 0 throughout and so becomes 0."""
  before = np.zeros_like(tokens)
  before[:, 1:] = tokens[:, :-1]
  return np.where(positions == 0, 0, before)
