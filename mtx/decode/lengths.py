"""Lengths that programs are compiled for: few, so that most changes of length find one that is compiled."""


def bucket(length: int, *, least: int = 16) -> int:
  """The smallest compiled length that holds `length`: a power of two from `least` to 128, then a multiple of 128."""
  return -(-length // 128) * 128 if length > 128 else max(least, 1 << max(length - 1, 0).bit_length())
