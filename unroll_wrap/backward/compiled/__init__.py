"""The backward that compiles the inner steps and their pullbacks."""
