"""Networks of the paper's appendices."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

LEAK = 0.3  # of every leaky ReLU, Appendices C and D


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


def conv_generator(noise: int, channels: Sequence[int]) -> nn.Sequential:
    """Z → 4 · 4 · c_0 → c_1 → ... → c_n: Appendices D to F, from a vector to an image in (-1, 1).

    Every convolution but the last is transposed, 3 × 3, of stride 2, and doubles the side. BatchNorm and leaky ReLU
    follow the linear layer and all of these; the last, 3 × 3 of stride 1, ends in tanh, the range of the data. (The
    appendices' tables call the generator's layers convolutions and the discriminator's transposed ones; with these
    strides that cannot be, and they are read the other way round.)

    Args:
        noise: Length of z.
        channels: From 4 × 4 pixels to the image: (64, 32, 16, 8, 3) ends at 32 × 32 in three colours.

    Returns:
        The network, initialised as torch does.
    """
    first, *between, last = channels
    layers: list[nn.Module] = [nn.Linear(noise, 4 * 4 * first), nn.Unflatten(1, (first, 4, 4))]
    for inputs, outputs in zip(channels, between, strict=False):
        layers += [nn.BatchNorm2d(inputs), nn.LeakyReLU(LEAK)]
        layers += [nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)]
    inputs = channels[-2]
    layers += [nn.BatchNorm2d(inputs), nn.LeakyReLU(LEAK), nn.Conv2d(inputs, last, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*layers)


def conv_discriminator(side: int, channels: Sequence[int]) -> nn.Sequential:
    """X → c_1 → ... → c_n → 1 logit: 3 × 3 convolutions of stride 2, each with BatchNorm and leaky ReLU.

    Args:
        side: Of the image, in pixels.
        channels: From the image on: (3, 2, 4, 8) has three layers.

    Returns:
        The network, initialised as torch does.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in zip(channels[:-1], channels[1:], strict=True):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.BatchNorm2d(outputs), nn.LeakyReLU(LEAK)]
        side = math.ceil(side / 2)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(side * side * channels[-1], 1))


class ColumnGenerator(nn.Module):
    """Z → relu(W z) = h_0 = c_0 of an LSTM, which then draws an image column by column: Appendix C.

    Column t is tanh(W h_t). The LSTM has no input beside its state, not even the column before.

    Args:
        noise: Length of z.
        units: Of the linear layer and of the LSTM.
        side: Columns, and pixels in each.
    """

    def __init__(self, noise: int, units: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.start = nn.Linear(noise, units)
        self.lstm = nn.LSTM(1, units, batch_first=True)
        self.column = nn.Linear(units, side)

    def forward(self, z: Tensor) -> Tensor:
        """Images of shape (n, 1, side, side) in (-1, 1)."""
        state = self.start(z).relu().unsqueeze(0)
        nothing = z.new_zeros(len(z), self.side, 1)
        sequence, _ = self.lstm(nothing, (state, state))
        return self.column(sequence).tanh().transpose(1, 2).unsqueeze(1)


def xavier(net: nn.Module, *, forget_bias: float = 1.0) -> None:
    """U(-a, a) with a² = 6 / (inputs + outputs) for every weight, 0 for every bias, `forget_bias` for an LSTM's gate.

    BatchNorm's scale stays 1.
    """
    for name, parameter in net.named_parameters():
        if parameter.dim() > 1:
            # The four gates are four matrices, which torch keeps as one.
            for matrix in parameter.chunk(4) if "lstm" in name else [parameter]:
                nn.init.xavier_uniform_(matrix)
        elif name.endswith("lstm.bias_ih_l0"):
            nn.init.zeros_(parameter)
            with torch.no_grad():
                parameter.chunk(4)[1].fill_(forget_bias)
        elif "bias" in name:
            nn.init.zeros_(parameter)
