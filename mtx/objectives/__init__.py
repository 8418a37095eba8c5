"""Batch and outputs to Loss(sum, weight, per task)."""
