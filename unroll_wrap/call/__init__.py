"""Read what the caller passed, once, and refuse what is wrong."""
