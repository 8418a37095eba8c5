"""Caches and decoding."""
