"""Base and experts to one tree, one method a file."""
