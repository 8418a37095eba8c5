"""Examples to batches: cache, mix, pack, feed."""
