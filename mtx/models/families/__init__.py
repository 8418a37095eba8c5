"""Pre-trained families: one file each, which says as data what their checkpoints call our parameters."""
