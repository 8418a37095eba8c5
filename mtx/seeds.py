"""Seeds as a command line has them."""

from mtx.errors import UserError


def parse_seeds(written: str, example: str) -> tuple[int, ...]:
  """The seeds of `--seeds 0,1,2`, in their order.

  Args:
    example: for the hint, `0,1,2`.

  Raises:
    UserError: what is no whole number, or a seed that is there twice.
  """
  try:
    seeds = tuple(int(word) for word in written.split(","))
  except ValueError:
    raise UserError(f"--seeds {written!r} are no whole numbers.", hint=f"--seeds {example}") from None
  if len(set(seeds)) < len(seeds):
    raise UserError(f"--seeds {written} has a seed twice.")
  return seeds
