"""Attention: mask and bias semantics, reference, backends."""
