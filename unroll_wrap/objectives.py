"""The classic GAN games as pairs ``(d_loss, g_loss)``, both minimised, for a discriminator that returns logits.

Each loss is a plain function ``(D, real, fake, **kwargs) -> scalar``. Keyword arguments go to ``D``, such as
``labels=...``; where the fakes have other labels, ``fake_labels=...`` beside it goes to D's fake half as ``labels``.
A pair unpacks into the constructor: ``UnrolledGeneratorLoss(D, opt_D, *hinge)``. Shapes: whatever ``D`` returns;
every loss is the mean over all of its entries. With l = D(x), probabilities are sigmoid(l), and
-log sigmoid(l) = softplus(-l) is the form that neither overflows nor loses small values.
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


def _on_real(D: Discriminator, real: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """D(real), with the keywords of the real half."""
    return _one_tensor(D(real, **(_own(kwargs) if kwargs else kwargs)))


def _on_fake(D: Discriminator, fake: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """D(fake), where ``fake_labels`` takes the place of ``labels``, say."""
    if kwargs:
        kwargs = {**_own(kwargs), **{name[5:]: kwargs[name] for name in _for_fakes(kwargs)}}
    return _one_tensor(D(fake, **kwargs))


def _own(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in _for_fakes(kwargs)}


def _for_fakes(kwargs: dict[str, Any]) -> list[str]:
    return [name for name in kwargs if name.startswith("fake_") and name[5:] in kwargs]


def _one_tensor(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"D returned a {type(output).__name__}, and the objectives take one tensor of logits. Pass losses of your "
            "own (d_loss=..., g_loss=...) that pick the logits, or an objective's with lambda x: D(x)[0] in D's place."
        )
    return output


def _cross_entropy(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """-E log D(x) - E log(1 - D(G(z))), the discriminator's side of Eq. 4."""
    return softplus(-_on_real(D, real, kwargs)).mean() + softplus(_on_fake(D, fake, kwargs)).mean()


def _minimax_g(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """E log D(x) + E log(1 - D(G(z))) = f, Eq. 4.

    The real term belongs to it because, after an unroll, D's parameters depend on the generator.
    """
    return -_cross_entropy(D, real, fake, **kwargs)


def _non_saturating_g(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """-E log D(G(z)) (Goodfellow et al. 2014, section 3)."""
    return softplus(-_on_fake(D, fake, kwargs)).mean()


def _hinge_d(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """E max(0, 1 - l(x)) + E max(0, 1 + l(G(z))) (Lim & Ye 2017)."""
    return relu(1 - _on_real(D, real, kwargs)).mean() + relu(1 + _on_fake(D, fake, kwargs)).mean()


def _minus_mean_g(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """-E l(G(z)), shared by the hinge and Wasserstein games."""
    return -_on_fake(D, fake, kwargs).mean()


def _wasserstein_d(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """E l(G(z)) - E l(x) (Arjovsky et al. 2017); add the clipping or penalty that keeps D Lipschitz yourself."""
    return _on_fake(D, fake, kwargs).mean() - _on_real(D, real, kwargs).mean()


def _least_squares_d(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """1/2 E (l(x) - 1)^2 + 1/2 E l(G(z))^2 (Mao et al. 2017, Eq. 9)."""
    return ((_on_real(D, real, kwargs) - 1).square().mean() + _on_fake(D, fake, kwargs).square().mean()) / 2


def _least_squares_g(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """1/2 E (l(G(z)) - 1)^2."""
    return (_on_fake(D, fake, kwargs) - 1).square().mean() / 2


def _relativistic_d(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """-E log sigmoid(l(x) - l(G(z))), real and fake paired (Jolicoeur-Martineau 2018, RSGAN)."""
    return softplus(_on_fake(D, fake, kwargs) - _on_real(D, real, kwargs)).mean()


def _relativistic_g(D: Discriminator, real: Tensor, fake: Tensor, **kwargs: Any) -> Tensor:
    """-E log sigmoid(l(G(z)) - l(x))."""
    return softplus(_on_real(D, real, kwargs) - _on_fake(D, fake, kwargs)).mean()


minimax = Objective(_cross_entropy, _minimax_g)
"""The paper's f, Eq. 4, with σ the sigmoid and D(x) logits.

- ``d_loss`` = -E log σ(D(x)) - E log(1 - σ(D(G(z))))
- ``g_loss`` = -d_loss
"""

non_saturating = Objective(_cross_entropy, _non_saturating_g)
"""What nearly every GAN script has (Goodfellow et al. 2014).

- ``d_loss`` = -E log σ(D(x)) - E log(1 - σ(D(G(z))))
- ``g_loss`` = -E log σ(D(G(z)))
"""

hinge = Objective(_hinge_d, _minus_mean_g)
"""The hinge game (Lim & Ye 2017).

- ``d_loss`` = E max(0, 1 - D(x)) + E max(0, 1 + D(G(z)))
- ``g_loss`` = -E D(G(z))
"""

wasserstein = Objective(_wasserstein_d, _minus_mean_g)
"""Differences of means (Arjovsky et al. 2017); weight clipping or a gradient penalty is yours to add.

- ``d_loss`` = E D(G(z)) - E D(x)
- ``g_loss`` = -E D(G(z))
"""

least_squares = Objective(_least_squares_d, _least_squares_g)
"""Squared distances from the labels (Mao et al. 2017, Eq. 9).

- ``d_loss`` = 1/2 E (D(x) - 1)² + 1/2 E D(G(z))²
- ``g_loss`` = 1/2 E (D(G(z)) - 1)²
"""

relativistic = Objective(_relativistic_d, _relativistic_g)
"""Real and fake samples compared in pairs (Jolicoeur-Martineau 2018, RSGAN).

- ``d_loss`` = -E log σ(D(x) - D(G(z)))
- ``g_loss`` = -E log σ(D(G(z)) - D(x))
"""
