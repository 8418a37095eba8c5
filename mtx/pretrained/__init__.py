"""Checkpoints of other programs, in and out: a file format a module, read lazily, written one tensor at a time."""
