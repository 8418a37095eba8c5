"""Speed and memory, as ratios against a peer or a target, in one run: `python -m mtx.bench`."""
