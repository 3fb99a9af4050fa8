"""Record and differentiate the ``step()`` of optimizers that have no rule."""
