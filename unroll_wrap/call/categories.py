"""The categories of the package's warnings, to be filtered by."""


class UnrollWarning(UserWarning):
    """Any warning of this package."""


class SecondTermMissing(UnrollWarning):
    """d_loss does not depend on the generator, or g_loss not on the discriminator that is unrolled."""


class PartialDetach(UnrollWarning):
    """A loss detaches a part of what depends on D or on fake, and the derivative does not pass there."""


class FreshState(UnrollWarning):
    """The first step of an adaptive optimizer from empty state outweighs all the rest of the gradient."""


class LogitsExpected(UnrollWarning):
    """The discriminator ends in a Sigmoid, and an objective takes logits."""
