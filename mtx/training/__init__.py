"""The one jitted step, state, optimizer groups, loop and checkpoints."""
