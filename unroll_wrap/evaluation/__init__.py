"""Run a user's loss on the tensors of an inner step, and walk its graph."""
