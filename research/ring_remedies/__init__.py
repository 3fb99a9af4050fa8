"""What helps against collapse on mixtures of Gaussians: unrolling and other remedies, one family a file."""
