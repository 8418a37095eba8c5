"""What a bench returns: one line of the table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
  """A bound on a ratio, or on a quantity that has no peer: `Target(1.2)` at least, `Target(2.0, at_most=True)`."""

  bound: float
  at_most: bool = False
  unit: str = "x"

  def met(self, value: float) -> bool:
    return value <= self.bound if self.at_most else value >= self.bound

  def __str__(self) -> str:
    return f"{'at most' if self.at_most else 'at least'} {self.bound:g} {self.unit}"


@dataclass(frozen=True)
class Row:
  """Attributes:
  name: of the bench.
  ours, peer: medians in `unit`; None where nothing was measured.
  ratio: ours / peer; None without a peer.
  met: whether the target is met; None if that was not measured.
  detail: shapes, how it was measured, or why not.
  """

  name: str
  unit: str
  ours: float | None
  peer: float | None
  ratio: float | None
  target: Target
  met: bool | None
  detail: str


def compared(name: str, unit: str, ours: float, peer: float, target: Target, detail: str) -> Row:
  """The target bounds ours / peer."""
  return Row(name, unit, ours, peer, ours / peer, target, target.met(ours / peer), detail)


def measured(name: str, unit: str, ours: float, target: Target, detail: str) -> Row:
  """The target bounds the quantity itself."""
  return Row(name, unit, ours, None, None, target, target.met(ours), detail)


def skipped(name: str, unit: str, target: Target, why: str, ours: float | None = None) -> Row:
  """Nothing to judge: the peer, or the data, is not there."""
  return Row(name, unit, ours, None, None, target, None, f"skipped: {why}")
