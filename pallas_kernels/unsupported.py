"""What a kernel says where it can not do what it is asked for."""


class Unsupported(ValueError):
  """A backend does not honour a field, a shape or a dtype: its message names the backend, what it can not do, and who
  can. Raised instead of falling back to something else in silence."""
