"""A derivative of the backward pass of layer, batch and instance norm that can itself be differentiated.

A gradient penalty inside an unroll needs third derivatives. In torch, that of ``layer_norm`` is wrong without an error,
and ``batch_norm``, which ``instance_norm`` calls, has none.
"""

from collections.abc import Sequence

from torch import Tensor

Cotangents = Sequence[Tensor | None]


def normalization(
    to_y: Tensor, x: Tensor, weight: Tensor | None, r: Tensor, dims: list[int], of: Cotangents
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pull back through x̄ = r P(γ ȳ), γ̄ = Σ ȳ x̂ and β̄ = Σ ȳ, where P(w) = w - mean(w) - x̂ mean(w x̂).

    With cotangents u of x̄, v of γ̄ and s of β̄, and with w = γ ȳ::

        ∂/∂ȳ = γ r P(u) + v x̂ + s
        ∂/∂x = r (P(v ȳ - r (mean(w x̂) u + mean(u x̂) w)) - x̂ r mean(u P(w)))
        ∂/∂γ = Σ ȳ r P(u)

    Args:
        to_y: ȳ.
        x: the input of the normalization.
        weight: γ, in a shape that broadcasts to that of x; None for 1.
        r: 1 / √(σ² + eps) without graph; its dependence on x is reconstructed in this function.
        dims: the dimensions over which statistics are taken.
        of: u, v and s; None for zero.

    Returns:
        The cotangents of ȳ, x and γ.
    """

    def mean(t: Tensor) -> Tensor:
        return t.mean(dims, keepdim=True)

    def project(t: Tensor) -> Tensor:
        return t - mean(t) - x_hat * mean(t * x_hat)

    zero = x.new_zeros(())
    u, v, s = (zero if t is None else t for t in of)
    u = u.expand(x.shape)
    centred = x - mean(x)
    var = mean(centred.square())
    r = (var + (r.pow(-2) - var).detach()).rsqrt()
    x_hat = centred * r
    w = to_y if weight is None else to_y * weight
    through = r * project(u)
    inner = v * to_y - r * (mean(w * x_hat) * u + mean(u * x_hat) * w)
    return (
        (through if weight is None else through * weight) + v * x_hat + s,
        r * (project(inner) - x_hat * r * mean(u * project(w))),
        None if weight is None else (to_y * through).sum_to_size(weight.shape),
    )


def by_channel(
    to_y: Tensor, x: Tensor, weight: Tensor | None, r: Tensor, of: Cotangents
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Apply ``normalization`` with the statistics of each channel over a batch, where γ, r, v and s are vectors."""
    u, *vectors = of
    weight, wide_r, v, s = (None if t is None else t.view(-1, *[1] * (x.dim() - 2)) for t in (weight, r, *vectors))
    assert wide_r is not None
    of_y, of_x, of_weight = normalization(to_y, x, weight, wide_r, [d for d in range(x.dim()) if d != 1], (u, v, s))
    return of_y, of_x, None if of_weight is None else of_weight.flatten()
