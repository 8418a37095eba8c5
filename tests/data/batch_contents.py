"""What a batch holds, read back segment by segment."""

from collections import Counter

EOS = 1


def segments(batch: dict, side: str = "encoder") -> list[tuple[int, tuple[int, ...]]]:
  """(task id, tokens) of every segment of a batch."""
  values = batch["encoder_input_tokens" if side == "encoder" else "decoder_target_tokens"]
  found = []
  for row, ids, tasks in zip(values, batch[f"{side}_segment_ids"], batch[f"{side}_task_ids"], strict=True):
    for segment in range(1, ids.max() + 1):
      inside = ids == segment
      assert len(set(tasks[inside])) == 1
      found.append((int(tasks[inside][0]), tuple(row[inside].tolist())))
  return found


def pairs(batch: dict) -> list[tuple[int, tuple[int, ...], tuple[int, ...]]]:
  """(task id, inputs, targets) of every example of an encoder-decoder batch."""
  encoder, decoder = segments(batch), segments(batch, "decoder")
  assert [task for task, _ in encoder] == [task for task, _ in decoder]
  return [(task, inputs, targets) for (task, inputs), (_, targets) in zip(encoder, decoder, strict=True)]


def drawn(batches, number: int) -> Counter:
  """Examples per task id in the next `number` batches."""
  counts: Counter = Counter()
  for _ in range(number):
    batch = next(batches)
    starts = (batch["decoder_segment_ids"] > 0) & (batch["decoder_positions"] == 0)
    counts.update(batch["decoder_task_ids"][starts].tolist())
  return counts
