"""What changed inside a model: gradient alignment between tasks, and what else is read off it."""
