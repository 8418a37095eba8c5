"""Protocols, metrics per task, few-shot adaptation."""
