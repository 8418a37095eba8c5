"""Cross-entropy from hidden states and an output head, without logits in memory where a backend can."""
