"""What helps against collapse: unrolling and other remedies, one family a file, on one task or another."""
