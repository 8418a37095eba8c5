"""Cells of a protocol: what a model is asked at once, and under which name that is kept."""

from dataclasses import dataclass

PLAIN = "plain"  # a prompt in the task's own words
NONE = "none"  # the selector of no shots


@dataclass(frozen=True)
class Cell:
  """What one model is asked: `shots` examples chosen by `selector`, or learned by that method of tuning."""

  shots: int
  selector: str
  prompt: str
  tuned: bool = False

  @property
  def method(self) -> str:
    """Its name in rows, and that of its folder."""
    how = f"{self.shots}-shot-{self.selector}" if self.shots else "zero-shot"
    return how if self.prompt == PLAIN else f"{how}-{self.prompt}"

  @property
  def seeded(self) -> bool:
    """Whether another seed chooses other shots."""
    return self.shots > 0 and self.selector != "bm25"
