"""Note the state of the user's own objects, and restore it after a call."""
