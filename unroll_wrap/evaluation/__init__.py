"""One run of a user's loss on the tensors of an inner step, and the graph that it leaves."""
