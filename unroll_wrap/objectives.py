"""The classic GAN games as pairs ``(d_loss, g_loss)``, both minimised, for a discriminator that returns logits.

Each loss is a plain function ``(D, real, fake, **kwargs) -> scalar``, which passes keyword arguments such as labels to
``D``. A pair unpacks into the constructor: ``UnrolledGeneratorLoss(D, opt_D, *hinge)``. ``D`` may return any shape, and
every loss is the mean over all entries. With l = D(x), probabilities are sigmoid(l), and -log sigmoid(l) = softplus(-l)
is the form that neither overflows nor loses small values.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import relu, softplus

Discriminator = Callable[..., Tensor]


class Objective(NamedTuple):
    """A game as two losses: the discriminator minimises ``d_loss``, and the generator minimises ``g_loss``.

    Examples:
        >>> D, real, fake = torch.nn.Identity(), torch.tensor([2.0]), torch.tensor([-3.0])
        >>> d_loss, g_loss = unroll_wrap.hinge
        >>> d_loss(D, real, fake).item(), g_loss(D, real, fake).item()
        (0.0, 3.0)
    """

    d_loss: Callable[..., Tensor]
    g_loss: Callable[..., Tensor]


def _cross_entropy(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """-E log D(x) - E log(1 - D(G(z))), the discriminator's side of Eq. 4."""
    return softplus(-D(real, **kwargs)).mean() + softplus(D(fake, **kwargs)).mean()


def _minimax_g(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """E log D(x) + E log(1 - D(G(z))) = f, Eq. 4.

    The real term belongs to it because, after an unroll, D's parameters depend on the generator.
    """
    return -_cross_entropy(D, real, fake, **kwargs)


def _non_saturating_g(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """-E log D(G(z)) (Goodfellow et al. 2014, section 3)."""
    return softplus(-D(fake, **kwargs)).mean()


def _hinge_d(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """E max(0, 1 - l(x)) + E max(0, 1 + l(G(z))) (Lim & Ye 2017)."""
    return relu(1 - D(real, **kwargs)).mean() + relu(1 + D(fake, **kwargs)).mean()


def _minus_mean_g(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """-E l(G(z)), in the hinge and Wasserstein games."""
    return -D(fake, **kwargs).mean()


def _wasserstein_d(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """E l(G(z)) - E l(x) (Arjovsky et al. 2017), without the clipping or penalty that has to keep D Lipschitz."""
    return D(fake, **kwargs).mean() - D(real, **kwargs).mean()


def _least_squares_d(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """1/2 E (l(x) - 1)^2 + 1/2 E l(G(z))^2 (Mao et al. 2017, Eq. 9)."""
    return ((D(real, **kwargs) - 1).square().mean() + D(fake, **kwargs).square().mean()) / 2


def _least_squares_g(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """1/2 E (l(G(z)) - 1)^2."""
    return (D(fake, **kwargs) - 1).square().mean() / 2


def _relativistic_d(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """-E log sigmoid(l(x) - l(G(z))), real and fake paired (Jolicoeur-Martineau 2018, RSGAN)."""
    return softplus(D(fake, **kwargs) - D(real, **kwargs)).mean()


def _relativistic_g(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """-E log sigmoid(l(G(z)) - l(x))."""
    return softplus(D(real, **kwargs) - D(fake, **kwargs)).mean()


minimax = Objective(_cross_entropy, _minimax_g)
non_saturating = Objective(_cross_entropy, _non_saturating_g)
hinge = Objective(_hinge_d, _minus_mean_g)
wasserstein = Objective(_wasserstein_d, _minus_mean_g)
least_squares = Objective(_least_squares_d, _least_squares_g)
relativistic = Objective(_relativistic_d, _relativistic_g)
