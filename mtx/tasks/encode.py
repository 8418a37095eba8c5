"""Rows of a task to examples as token ids: the one way, for SeqIO's registry and for the cache builder."""

import itertools
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtx.tasks.task import Reading, Row, TextTask
from mtx.tokens.special import T5, Writing

ROLES = ("user", "assistant")
INT32 = np.dtype(np.int32)


class Frame(NamedTuple):
  """int32 ids as bytes: what inputs and targets begin with, inputs end with, targets and turns end with."""

  opens: bytes
  closes: bytes
  ends: bytes


def encoded(
  task: TextTask,
  split: str,
  reading: Reading,
  eos_id: int,
  shard: int = 0,
  shards: int = 1,
  *,
  writing: Writing = T5,
) -> Iterator[dict[str, Any]]:
  """Examples of a split: `inputs`, `targets` int32, `id`, `references`, `text`.

  Targets end with EOS, inputs too where the family closes them (empty inputs stay empty). A conversation is written by
  the family's chat template if there is one, and turn by turn with EOS if not.

  `text` is the input as text; `options` and `weights` (uint8[len(targets)], 1 where the loss counts a token) are there
  only if the row has options or turns.

  Args:
    shard, shards: only rows shard, shard + shards, ... The others are read, and cost no tokenisation.
    writing: of the vocabulary's family.

  Raises:
    UserError: a row that is no row, beyond the budget of `reading`; a chat template that answers can not be found in.
  """
  ends = _packed((eos_id,))
  frame = Frame(_packed(() if writing.opens_id is None else (writing.opens_id,)), ends * writing.closes_inputs, ends)
  position = 0
  for row in task.rows(split, reading):
    # Rows of other shards are checked too: all shards must agree on the positions.
    if reason := _unusable(row):
      reading.skip(f"task {task.name!r}, {split} row {position}", reason)
      continue
    if position % shards == shard:
      identity = str(row["id"]) if "id" in row else f"{task.name}-{split}-{position}"
      yield (_conversation if "turns" in row else _example)(identity, row, reading, frame, writing)
    position += 1


def asked(inputs: str, writing: Writing) -> str:
  """Inputs as a family reads them. Where no EOS closes them, a line's end parts them from the answer, unless they end
  in white space themselves: a decoder would else see "add 24 and 7296"."""
  return inputs if writing.closes_inputs or not inputs or inputs[-1].isspace() else f"{inputs}\n"


def _unusable(row: Row) -> str:
  """Why a row can not be encoded; empty when it can."""
  if "turns" not in row:
    if "inputs" in row and "targets" in row:
      return ""
    missing = [field for field in ("inputs", "targets") if field not in row]
    return f"no {missing[0]!r} (fields: {', '.join(row)})"
  roles = [role for role, _ in row["turns"]]
  unknown = [role for role in roles if role not in ROLES]
  if unknown or roles[:1] != ["user"] or roles[-1:] != ["assistant"]:
    what = f"role {unknown[0]!r}" if unknown else f"roles {roles}"
    return f"{what}: turns are of 'user' or 'assistant', the first of a user, the last of the assistant"
  return ""


def _example(identity: str, row: Row, reading: Reading, frame: Frame, writing: Writing) -> dict[str, Any]:
  inputs = row["inputs"]
  prompt = asked(inputs, writing) if isinstance(inputs, str) else inputs
  example = {
    "id": identity,
    "inputs": _framed(prompt, reading, frame.opens, frame.closes) if len(inputs) else np.zeros(0, np.int32),
    "targets": _framed(row["targets"], reading, frame.opens, frame.ends),
    "references": _references(row),
    "text": inputs if isinstance(inputs, str) else "",
  }
  if row.get("options"):
    example["options"] = list(row["options"])
  return example


def _conversation(identity: str, row: Row, reading: Reading, frame: Frame, writing: Writing) -> dict[str, Any]:
  """The first turn is the input; all others are targets, of which the loss counts those of the assistant.

  Every turn ends with EOS, so that a model learns to stop where it has answered. A chat template has its own signs.
  """
  turns: Sequence[tuple[str, str]] = row["turns"]
  if writing.chat:
    inputs, targets, counts = writing.chat([(role, text) for role, text in turns])
    tokens = [np.array(inputs, np.int32), np.array(targets, np.int32)]
    weights = [np.array(counts, np.uint8)]
  else:
    tokens = [_framed(text, reading, b"", frame.ends) for _, text in turns]
    roles = [role for role, _ in turns]
    weights = [np.full(len(t), role == "assistant", np.uint8) for t, role in zip(tokens[1:], roles[1:], strict=True)]
  return {
    "id": identity,
    "inputs": tokens[0],
    "targets": np.concatenate(tokens[1:]),
    "weights": np.concatenate(weights),
    "references": [turns[-1][1]],
    "text": turns[0][1],
  }


def _references(row: Row) -> list[str]:
  if "references" in row:
    return list(row["references"])
  return [row["targets"]] if isinstance(row["targets"], str) else []


def _framed(value: str | Sequence[int], reading: Reading, before: bytes, after: bytes) -> np.ndarray:
  """Token ids between those before and after them, which are bytes: np.append takes five times as long."""
  ids = reading.encode(value) if isinstance(value, str) else value
  content = ids.tobytes() if isinstance(ids, np.ndarray) and ids.dtype == INT32 else _packed(ids)
  return np.frombuffer(before + content + after, INT32)


def _packed(ids: Sequence[int] | np.ndarray) -> bytes:
  # NumPy takes twice as long to make an array of a list of numbers.
  return struct.pack(f"{len(ids)}i", *ids)


def texts_of(tasks: Sequence[TextTask], most: int = 20_000) -> Iterator[str]:
  """Inputs and targets of training rows to train a vocabulary on: equally many of every task, `most` in all."""
  share = max(10, most // max(len(tasks), 1))
  for task in tasks:
    if "train" in task.splits:
      for row in itertools.islice(task.rows("train", Reading(budget=share)), share):
        for text in [row.get("inputs"), row.get("targets"), *(text for _, text in row.get("turns", ()))]:
          if isinstance(text, str):
            yield text
