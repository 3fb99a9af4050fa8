"""The user's own objects: what they hold now, and how a call puts it back."""
