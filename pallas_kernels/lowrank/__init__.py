"""Projection with a routed low-rank update: meaning, reference, backends."""
