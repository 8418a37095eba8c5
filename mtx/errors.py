"""Errors that a user can cause and mend. The command line prints them without a traceback and exits with 2."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """Something the user wrote does not fit.

  Args:
    message: what was written and where (binding, file and line, task, instance, parameter path).
    hint: what would work instead, for example the nearest valid name.
  """

  def __init__(self, message: str, *, hint: str = ""):
    self.message, self.hint = message, hint
    super().__init__(self.text)

  @property
  def text(self) -> str:
    """Message and hint. Unlike `str`, free of what gin adds about the configurables that were being called."""
    return f"{self.message}\n  {self.hint}" if self.hint else self.message


def did_you_mean(name: str, choices: Iterable[str], *, limit: int = 3) -> str:
  """A hint that names the valid choices nearest to `name`, or lists them all if none is near."""
  choices = sorted(set(choices))
  near = difflib.get_close_matches(name, choices, n=limit, cutoff=0.6)
  if near:
    return "did you mean " + " or ".join(f"`{n}`" for n in near) + "?"
  shown = ", ".join(choices[:20]) + (f", ... ({len(choices)} in all)" if len(choices) > 20 else "")
  return f"valid choices: {shown or 'none'}"
