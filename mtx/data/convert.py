"""Examples to the arrays that a model reads, under SeqIO's feature names (seqio.feature_converters).

An example becomes an *element* (its tokens, cut to the lengths); a *row* is a list of elements; `features` lays a batch
of rows out. Packed rows, rows of one element, validation and prompts all take that one path.

Architectures: "encdec" (encoder_* and decoder_*), "causal" and "prefix" (decoder_* only: inputs then
targets).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32, UInt8

from mtx.errors import UserError, did_you_mean

ARCHITECTURES = ("encdec", "causal", "prefix")
LOSSES = ("targets", "all")
Arrays = dict[str, np.ndarray]
_NONE = np.zeros(0, np.int32)


class Element(NamedTuple):
  """The tokens of one example as they will stand in a row. `weights` of its targets; None: all count."""

  inputs: Int32[np.ndarray, " n"]
  targets: Int32[np.ndarray, " m"]
  task: int
  weights: UInt8[np.ndarray, " m"] | None = None


def check_architecture(architecture: str) -> None:
  """Raises UserError for a name that is none of ARCHITECTURES."""
  if architecture not in ARCHITECTURES:
    raise UserError(f"architecture {architecture!r} is not known", hint=did_you_mean(architecture, ARCHITECTURES))


def check_loss(loss: str, architecture: str) -> None:
  """Raises UserError for a `loss` that is none of LOSSES, or that the architecture can not learn from."""
  if loss not in LOSSES:
    raise UserError(f"feed.loss is {loss!r}", hint=did_you_mean(loss, LOSSES))
  if loss == "all" and architecture == "encdec":
    raise UserError(
      "feed.loss is 'all', but an encoder-decoder predicts no inputs",
      hint='set feed.loss = "targets", or model.architecture = "causal"',
    )
  if loss == "all" and architecture == "prefix":
    raise UserError(
      "feed.loss is 'all', but a prefix decoder sees an input token before it predicts it: nothing would be learnt",
      hint='set feed.loss = "targets", or model.architecture = "causal"',
    )


def truncated(tokens: Int32[np.ndarray, " n"], length: int, eos_id: int) -> Int32[np.ndarray, " m"]:
  """At most `length` tokens. What is cut ends with EOS if it did before."""
  if len(tokens) <= length:
    return tokens
  kept = tokens[:length].copy()
  if tokens[-1] == eos_id:
    kept[-1] = eos_id
  return kept


def element(example: Mapping[str, Any], task: int, inputs_length: int, targets_length: int, eos_id: int) -> Element:
  """One example, cut.

  Args:
    example: has "inputs", "targets" and, where not every target counts in the loss, "weights": uint8[targets].
    task: the example's task id.
    inputs_length, targets_length: most tokens of either.
    eos_id: kept as the last token of what is cut.
  """
  targets, weights = example["targets"], example.get("weights")
  if weights is not None and len(weights) != len(targets):
    raise UserError(f"example {example.get('id')!r} has {len(weights)} weights for {len(targets)} target tokens")
  return Element(
    truncated(example["inputs"], inputs_length, eos_id),
    truncated(targets, targets_length, eos_id),
    task,
    # What is cut inside a part that does not count ends with an EOS that does not count.
    None if weights is None else weights[:targets_length],
  )


def joined(row: Sequence[Element]) -> list[Element]:
  """The elements of a row as one element, whose loss weights are at the targets of each: one segment, in which every
  example sees those before it. It belongs to the task of the first."""
  if len(row) < 2:
    return list(row)
  first, *rest = row
  parts = [first.targets, *(part for each in rest for part in (each.inputs, each.targets))]
  weights = [_weights(first), *(w for each in rest for w in (np.zeros(len(each.inputs), np.uint8), _weights(each)))]
  return [Element(first.inputs, np.concatenate(parts), first.task, np.concatenate(weights))]


def capacity(architecture: str, inputs_length: int, targets_length: int) -> Int[np.ndarray, " sides"]:
  """Tokens that a row holds: of inputs and of targets, or for decoders of both together."""
  limits = np.array([inputs_length, targets_length])
  return limits if architecture == "encdec" else limits.sum(keepdims=True)


def sizes(
  lengths: Int[np.ndarray, "examples 2"],
  architecture: str,
  inputs_length: int,
  targets_length: int,
  *,
  start_id: int | None = 0,
) -> Int[np.ndarray, "examples sides"]:
  """Tokens that examples of these lengths take of `capacity`; one less of decoders without a start token."""
  cut = np.minimum(lengths, [inputs_length, targets_length]).astype(np.int64)
  if architecture == "encdec":
    return cut
  return np.maximum(cut.sum(axis=1, keepdims=True) - (start_id is None), 0)


def features(
  rows: Sequence[Sequence[Element]],
  architecture: str,
  inputs_length: int,
  targets_length: int,
  *,
  loss: str = "targets",
  start_id: int | None = 0,
) -> Arrays:
  """Model features of a batch.

  Args:
    rows: the elements of every row, in order; a row can be empty.
    architecture: one of ARCHITECTURES.
    inputs_length, targets_length: of a row; decoders have rows of inputs_length + targets_length.
    loss: "targets": loss weights are 1 at targets, or what the element's weights say; "all": 1 at every token.
    start_id: the first decoder input of every segment. None, for decoders only: that is the segment's first token,
      which nothing predicts, so a segment of n tokens takes n - 1 places.

  Returns:
    int32 arrays [batch, length], `decoder_loss_weights` float32. Decoder inputs are the targets shifted right
    within each segment. Segment id 0 is padding, and padding has task id 0.

  Raises:
    UserError: an encoder-decoder without a start token.
    ValueError: elements of a row do not fit into it.
  """
  elements = [each for row in rows for each in row]
  tasks = np.array([each.task for each in elements], np.int32)
  inputs, targets = [each.inputs for each in elements], [each.targets for each in elements]
  widths = np.array([len(each) for each in inputs], np.int64)
  decoder_sizes = np.array([len(each) for each in targets], np.int64)
  weighted = any(each.weights is not None for each in elements)
  parts = [_weights(each) for each in elements] if weighted else []
  batch = {}
  if architecture == "encdec":
    if start_id is None:
      raise UserError("an encoder-decoder's targets begin with a start token, and the vocabulary has none")
    encoder = _Layout(rows, widths, inputs_length)
    batch = {
      "encoder_input_tokens": encoder.tokens(inputs),
      "encoder_segment_ids": encoder.segments,
      "encoder_positions": encoder.positions,
      "encoder_task_ids": encoder.spread(tasks),
    }
    decoder = _Layout(rows, decoder_sizes, targets_length)
    tokens = decoder.tokens(targets)
    counts = decoder.tokens(parts) if weighted else decoder.segments > 0
    before = _shifted(tokens, decoder, start_id)
  else:
    unpredicted = int(start_id is None)
    whole = widths + decoder_sizes
    decoder = _Layout(rows, np.maximum(whole - unpredicted, 0), inputs_length + targets_length)
    pieces = [part for pair in zip(inputs, targets, strict=True) for part in pair]
    tokens = decoder.tokens(pieces if start_id is not None else [_without(pieces, whole, first=True)])
    before = (
      decoder.tokens([_without(pieces, whole, first=False)])
      if start_id is None
      else _shifted(tokens, decoder, start_id)
    )
    # Where targets begin: without a start token, what is predicted stands one place further left.
    real, begin = decoder.segments > 0, decoder.spread(widths - unpredicted)
    counts = real if loss == "all" else real & (decoder.positions >= begin)
    if weighted and loss != "all":
      nothing = [np.zeros(width, np.uint8) for width in widths]
      marks = [part for pair in zip(nothing, parts, strict=True) for part in pair]
      counts = decoder.tokens(marks if start_id is not None else [_without(marks, whole, first=True)])
    if architecture == "prefix":
      # The input token that predicts the first target sits at `begin`: the last one of the inputs.
      batch["decoder_causal_attention"] = (real & (decoder.positions <= begin)).astype(np.int32)
  return batch | {
    "decoder_input_tokens": before,
    "decoder_target_tokens": tokens,
    "decoder_loss_weights": counts.astype(np.float32),
    "decoder_segment_ids": decoder.segments,
    "decoder_positions": decoder.positions,
    "decoder_task_ids": decoder.spread(tasks),
  }


def row_tasks(rows: Sequence[Sequence[Element]]) -> Int32[np.ndarray, " batch"]:
  """The task of each row's first element; 0 of an empty row."""
  return np.array([row[0].task if row else 0 for row in rows], np.int32)


def padded(
  examples: Sequence[Mapping[str, Any]],
  architecture: str,
  inputs_length: int,
  targets_length: int,
  task_ids: Sequence[int],
  *,
  rows: int,
  eos_id: int = 1,
  start_id: int | None = 0,
  loss: str = "targets",
) -> Arrays:
  """A teacher-forced batch with one example a row, cut to the lengths, filled up with empty rows to `rows`.

  Returns:
    The features of `features` and `task_ids` int32[rows].
  """
  limits = (inputs_length, targets_length)
  made: list[list[Element]] = [
    [element(example, int(task), *limits, eos_id)] for example, task in zip(examples, task_ids, strict=True)
  ]
  made += [[] for _ in range(rows - len(made))]
  return features(made, architecture, *limits, loss=loss, start_id=start_id) | {"task_ids": row_tasks(made)}


def prompts(
  examples: Sequence[Mapping[str, Any]],
  architecture: str,
  inputs_length: int,
  targets_length: int,
  task_ids: Sequence[int],
  *,
  eos_id: int = 1,
  start_id: int | None = 0,
) -> Arrays:
  """A batch to decode from: one example a row, inputs cut to `inputs_length`.

  Args:
    examples: each has "inputs", int32[n].
    architecture: "encdec" gives right-padded encoder_* features; the decoders give *left*-padded
      [batch, inputs_length + 1] decoder_* features: `start_id`, then inputs, so that all rows go on at the same index.
    inputs_length: tokens of a row.
    targets_length: tokens that decoding will add; at least 1.
    task_ids: of each example.
    eos_id: kept as the last token of inputs that are cut.
    start_id: what a decoder's row begins with; None: the row is the inputs alone, [batch, inputs_length].

  Returns:
    The features and `task_ids` int32[batch].

  Raises:
    UserError: lengths below 1, or no token to go on from: empty inputs where there is no start token.
  """
  check_architecture(architecture)
  if inputs_length < 1 or targets_length < 1:
    raise UserError(f"lengths must be 1 or more, not inputs {inputs_length} and targets {targets_length}")
  inputs = [truncated(np.asarray(example["inputs"], np.int32), inputs_length, eos_id) for example in examples]
  tasks = np.asarray(task_ids, np.int32)
  if architecture == "encdec":
    rows = [[Element(tokens, _NONE, int(task))] for tokens, task in zip(inputs, tasks, strict=True)]
    made = features(rows, architecture, inputs_length, 0)  # of the encoder, which has no start token
    return {name: values for name, values in made.items() if name.startswith("encoder_")} | {"task_ids": tasks}
  start = np.array([] if start_id is None else [start_id], np.int32)
  length = inputs_length + len(start)
  begun = [np.concatenate([start, tokens]) for tokens in inputs]
  if empty := [i for i, tokens in enumerate(begun) if not len(tokens)]:
    name = examples[empty[0]].get("id", empty[0])
    raise UserError(
      f"example {name!r} has no input, and the vocabulary has no start token: there is nothing to go on from",
      hint="leave it out, or give its task a prompt",
    )
  made = {
    "decoder_input_tokens": np.stack([_left_padded(tokens, length) for tokens in begun]),
    "decoder_segment_ids": np.stack([_left_padded(np.ones(len(tokens)), length) for tokens in begun]),
    "decoder_positions": np.stack([_left_padded(np.arange(len(tokens)), length) for tokens in begun]),
  }
  if architecture == "prefix":
    made["decoder_causal_attention"] = made["decoder_segment_ids"].copy()
  return made | {"task_ids": tasks}


class _Layout:
  """Where the tokens of elements stand in rows of `length`: one after the other, padding last.

  Everything is done for all tokens of a batch at once: a batch holds hundreds of elements, and a NumPy call costs as
  much as copying one.
  """

  def __init__(self, rows: Sequence[Sequence[Element]], sizes: Int[np.ndarray, " elements"], length: int):
    per_row = np.array([len(row) for row in rows], np.int64)
    first = per_row.cumsum() - per_row  # the index of each row's first element
    ends = np.concatenate([[0], sizes.cumsum()])
    taken = ends[first + per_row] - ends[first]
    if taken.max(initial=0) > length:
      raise ValueError(f"row {taken.argmax()} of {length} tokens can not hold {taken.max()}")
    row_of = np.repeat(np.arange(len(rows)), per_row)
    before = np.repeat(ends[:-1], sizes)  # tokens of all elements before a token's own
    self._shape, self._sizes, self._total = (len(rows), length), sizes, int(ends[-1])
    running = np.arange(self._total)
    self._places = running + np.repeat(row_of * length - ends[first][row_of], sizes)
    self.segments = self.spread(np.arange(len(sizes)) - first[row_of] + 1)
    self.positions = self._placed(running - before)

  def spread(self, values: np.ndarray) -> Int32[np.ndarray, "batch length"]:
    """The value of each token's element; 0 at padding."""
    return self._placed(np.repeat(values, self._sizes))

  def tokens(self, parts: Sequence[np.ndarray]) -> Int32[np.ndarray, "batch length"]:
    """`parts`, which are in all as many as the tokens, in their places."""
    return self._placed(np.concatenate([_NONE, *parts]))

  def _placed(self, values: np.ndarray) -> Int32[np.ndarray, "batch length"]:
    placed = np.zeros(self._shape, np.int32)
    placed.reshape(-1)[self._places] = values
    return placed


def _weights(each: Element) -> UInt8[np.ndarray, " m"]:
  return np.ones(len(each.targets), np.uint8) if each.weights is None else each.weights


def _left_padded(values: np.ndarray, length: int) -> Int32[np.ndarray, " length"]:
  padded = np.zeros(length, np.int32)
  padded[length - len(values) :] = values
  return padded


def _without(
  parts: Sequence[np.ndarray], sizes: Int[np.ndarray, " elements"], *, first: bool
) -> Int32[np.ndarray, " n"]:
  """All tokens of elements of these sizes without the first or without the last one of each element."""
  tokens = np.concatenate([_NONE, *parts])
  ends = sizes.cumsum()
  places = (ends - sizes if first else ends - 1)[sizes > 0]
  return np.delete(tokens, places)


def _shifted(tokens: Int32[np.ndarray, "batch length"], layout: _Layout, start_id: int) -> np.ndarray:
  """Each segment's tokens one to the right, `start_id` first. int32[batch, length]; padding is 0."""
  before = np.zeros_like(tokens)
  before[:, 1:] = tokens[:, :-1]
  # Padding has position 0 throughout.
  first = np.where(layout.segments > 0, start_id, 0).astype(tokens.dtype) if start_id else 0
  return np.where(layout.positions == 0, first, before)
