"""Packing beside padding to the longest of a batch of 16, on the lengths of real tasks."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median

from mtx.bench.clock import interleaved
from mtx.bench.examples import INPUTS, TARGETS, missing, real
from mtx.bench.row import Row, Target, compared, skipped
from mtx.bench.trainer import EVERYTHING, Batch, Trainer
from mtx.data.cache import CachedMixture
from mtx.data.feed import feed
from mtx.models.sizes import PRESETS

NAME, UNIT, TARGET = "packing", "tokens/s", Target(1.8)
EXAMPLES = 16  # of a padded batch
ROUND = 32  # padded lengths are rounded up to multiples of this, which bounds the number of compilations


def packing(
  *, superni: Path | None, cache: Path | None = None, preset: str = "t5_tiny", batches: int = 8, repeats: int = 3
) -> Row:
  """Useful tokens/s: inputs and targets, padding not counted. Both sides fine-tune the whole model, by the same step.

  Both draw from the same tasks at the same rates. A packed batch has as many rows as hold 16 examples on average, so
  updates are worth the same.
  """
  if superni is None or missing(superni):
    return skipped(NAME, UNIT, TARGET, missing(superni))
  with tempfile.TemporaryDirectory() as folder:
    source = real(superni, cache or Path(folder))
    config = PRESETS[preset]()
    config.update(vocab_size=-(-source.vocabulary.size // 128) * 128, architecture="encdec")
    trainer = Trainer(config, len(source.tasks), EVERYTHING)
    padded = [trimmed(batch) for batch in take(source, batches, EXAMPLES, pack=False)]
    per_row = sum(map(examples_of, take(source, batches, 8))) / (batches * 8)
    rows = max(1, round(EXAMPLES / per_row))
    packed = list(take(source, batches, rows))
  sides = {"packed": Side(trainer, packed), "padded": Side(trainer, padded)}
  seconds = interleaved(sides, repeats)
  rate = {name: sides[name].tokens / median(runs) for name, runs in seconds.items()}
  slots = {name: sum(map(slots_of, side.batches)) / side.tokens for name, side in sides.items()}
  exact = sum(map(longest_slots, padded)) / sides["padded"].tokens
  return compared(
    NAME,
    UNIT,
    rate["packed"],
    rate["padded"],
    TARGET,
    f"Super-NaturalInstructions, {len(source.tasks)} tasks, at most {INPUTS} in / {TARGETS} out, full fine-tuning of "
    f"{preset}; slots a useful token: padded to the longest of {EXAMPLES} {exact:.2f} (the ceiling), rounded up to "
    f"{ROUND} for few compilations {slots['padded']:.2f}, packed {slots['packed']:.2f} in {rows} rows; "
    f"medians of {repeats} interleaved passes over {batches} batches",
  )


@dataclass(frozen=True)
class Side:
  """A pass over some batches; `tokens` of them are real."""

  trainer: Trainer
  batches: list[Batch]

  def __call__(self) -> None:
    for batch in self.batches:
      self.trainer(batch)

  @property
  def tokens(self) -> int:
    return sum(map(real_tokens, self.batches))


def take(source: CachedMixture, batches: int, rows: int, *, pack: bool = True) -> Iterator[Batch]:
  """The first batches of the feed."""
  lengths = {"inputs_length": INPUTS, "targets_length": TARGETS}
  stream = iter(feed(source, architecture="encdec", batch=rows, pack=pack, **lengths))
  yield from islice(stream, batches)
  stream.close()


def trimmed(batch: Batch) -> Batch:
  """Without the columns that no row uses, but for rounding up."""
  width = {side: _rounded(longest(batch, side)) for side in ("encoder", "decoder")}
  return {name: values[:, : width[name.split("_")[0]]] for name, values in batch.items()}


def longest(batch: Batch, side: str) -> int:
  return int((batch[f"{side}_segment_ids"] > 0).sum(1).max())


def longest_slots(batch: Batch) -> int:
  """Slots if nothing were rounded up."""
  return len(batch["encoder_segment_ids"]) * (longest(batch, "encoder") + longest(batch, "decoder"))


def slots_of(batch: Batch) -> int:
  return batch["encoder_segment_ids"].size + batch["decoder_segment_ids"].size


def real_tokens(batch: Batch) -> int:
  return int((batch["encoder_segment_ids"] > 0).sum() + (batch["decoder_segment_ids"] > 0).sum())


def examples_of(batch: Batch) -> int:
  return int(batch["encoder_segment_ids"].max(1).sum())


def _rounded(length: int) -> int:
  return -(-length // ROUND) * ROUND
