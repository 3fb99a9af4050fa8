"""Answer what a user can ask about a call: whether it is right, what it does, and what it costs."""
