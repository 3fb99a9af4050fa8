"""What the caller passed: read once, and refused where it is wrong."""
