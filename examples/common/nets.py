"""Networks of the paper's appendices."""

from collections.abc import Sequence

from torch import Tensor, nn


def mlp(sizes: Sequence[int], activation: type[nn.Module] = nn.ReLU, *, gain: float) -> nn.Sequential:
    """W_n · act(... act(W_1 · x)): linear layers with orthogonal weights times `gain` and zero biases.

    Args:
        sizes: Widths from input to output, so (256, 128, 128, 2) has two hidden layers.
        activation: Module placed after every layer but the last.
        gain: Scale of every orthogonal weight, the last layer's included (Appendix A: 0.8).

    Returns:
        The network, initialised from torch's global generator.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in zip(sizes[:-1], sizes[1:], strict=True):
        linear = nn.Linear(inputs, outputs)
        nn.init.orthogonal_(linear.weight, gain)
        nn.init.zeros_(linear.bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


class Scale(nn.Module):
    """X · factor: brings data of a known size to about (-1, 1)."""

    def __init__(self, factor: float) -> None:
        """Fixes the factor, which is not trained."""
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Returns x · factor."""
        return x * self.factor
