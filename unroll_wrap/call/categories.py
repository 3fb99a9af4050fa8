"""The categories of the package's warnings, for use in warning filters."""


class UnrollWarning(UserWarning):
    """The base class of all warnings of this package."""


class SecondTermMissing(UnrollWarning):
    """``d_loss`` does not depend on the generator, or ``g_loss`` does not depend on the unrolled discriminator."""


class PartialDetach(UnrollWarning):
    """A loss detaches a part of what depends on D or on fake, so the derivative does not pass through that part."""


class FreshState(UnrollWarning):
    """The first step of an adaptive optimizer, from empty state, outweighs the rest of the gradient."""


class EvalMode(UnrollWarning):
    """The player that is unrolled is in eval mode, and has layers that act otherwise in training."""


class PartlyFrozen(UnrollWarning):
    """Some of the parameters that the inner steps move do not require grad at the call, while others do."""


class LogitsExpected(UnrollWarning):
    """The discriminator ends in a Sigmoid or a Softmax, but the objective takes logits."""
