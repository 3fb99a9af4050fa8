"""The unrolled losses of a GAN: that of the generator, and that of the discriminator."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor

from .backward import Backward, Store
from .call.average import Average
from .call.call import Loss, Resample, Steps
from .call.losses import both_or_minimax
from .call.names import DISCRIMINATOR, GENERATOR
from .loss import UnrolledLoss
from .torch_private import disable_dynamo


def _named(attribute: str) -> Any:
    """Return a property that is another name of an attribute."""
    return property(lambda self: getattr(self, attribute), lambda self, value: setattr(self, attribute, value))


class UnrolledGeneratorLoss(UnrolledLoss):
    """f_K(θ_G, θ_D) = g_loss(θ_G, θ_D^K(θ_G, θ_D)): the generator's loss once D has taken K more optimizer steps.

    Its gradient is the total derivative, both terms of Eq. 12 of Metz et al. 2016, through the optimizer's state too.
    The discriminator, its optimizer and their state are left as they were. Pass ``fake`` as an argument if you can: a
    closure that captures it gives the same gradient, at the cost of a second pass per step.

    Args:
        discriminator: a module, or a list, tuple or dict of modules; DataParallel and similar wrappers included.
        optimizer: the live optimizer that steps it, read afresh at every call; a wrapper that exposes ``.optimizer``;
            a list of optimizers; or a callable ``params -> Optimizer`` such as ``partial(torch.optim.Adam, lr=1e-4)``,
            which starts every call from fresh state. The steps move the parameters that the optimizer owns, whatever
            their ``requires_grad`` is at the call. Parameters that did not require grad at construction, while others
            did, count as frozen until a call finds that they require grad or have optimizer state.
        d_loss: ``(D, *batch, **kwargs) -> scalar``, minimised by the inner steps; D is the object passed above. The
            two losses go together: if neither is passed, they are ``minimax``, the paper's, on logits.
        g_loss: ``(D, *batch, **kwargs) -> scalar``, minimised by the generator.
        steps: K >= 0, or a callable that returns it (a schedule).
        resample: None uses the call's batch in every inner step, as the paper does. A callable ``k -> batch`` or an
            iterable of K batches gives each inner step a batch of its own; ``g_loss`` still takes the call's batch.
        stop_gradient: whether to compute the first term of Eq. 12 only.
        average: True returns the mean of ``g_loss`` over θ^1..θ^K instead of its value at θ^K (Appendix B.2), and
            ``Extrapolate(factor)`` a point on the line from its value at θ^0 to that at θ^K.
        backward: how the second term is computed.
        grad_transform: a differentiable function ``list of gradients -> list of gradients``, applied before each inner
            update, for loops that clip gradients. If it has an argument ``names``, it receives the names of their
            parameters. While it runs, D holds the parameters of the step.
        param_transform: a differentiable function ``parameter -> parameter``, applied after each inner update, for
            loops that clip weights. If it has an argument ``name``, it receives the parameter's name.
        average_gradients: False lets every process look ahead on its own. Over a process group, inner gradients are
            averaged, so that N ranks unroll what one process would on their joined batch, and each returns its share
            of the value. G's own averaging (DDP) completes the gradient. See ``docs/distributed.md``.

    Attributes:
        prove: whether the first call is compared with K real steps of the live objects where the package has to guess:
            the optimizer has no rule of the package's, or a ``zero_grad`` of its own; there are hooks, classes or
            attributes of parameters, or objects in D, of a kind that it does not know; or a profiler or hooks on
            saved tensors keep its tensors. That costs these K steps once; False switches it off.

    Raises:
        TypeError: an argument is of a wrong type, or the optimizer cannot be unrolled.
        ValueError: the optimizer owns none of the discriminator's parameters, or also others.

    Examples:
        >>> G, D = torch.nn.Linear(4, 2), torch.nn.Linear(2, 1)
        >>> opt_D = torch.optim.Adam(D.parameters(), lr=1e-3)
        >>> unrolled = unroll_wrap.UnrolledGeneratorLoss(D, opt_D, *unroll_wrap.non_saturating, steps=5)  # once
        >>> loss_G = unrolled(torch.randn(8, 2), G(torch.randn(8, 4)))  # instead of bce(D(fake), ones)
        >>> loss_G.backward()  # followed by opt_G.step()
        >>> G.weight.grad.shape, D.weight.grad
        (torch.Size([2, 4]), None)
    """

    names = GENERATOR
    discriminator, d_loss, g_loss = _named("player"), _named("player_loss"), _named("loss")

    def __init__(
        self,
        discriminator: Any,
        optimizer: Any,
        d_loss: Loss | None = None,
        g_loss: Loss | None = None,
        *,
        steps: Steps = 5,
        resample: Resample | None = None,
        stop_gradient: bool = False,
        average: Average = False,
        backward: Backward = Store(),  # noqa: B008
        grad_transform: Callable[..., Sequence[Tensor]] | None = None,
        param_transform: Callable[..., Tensor] | None = None,
        average_gradients: "dist.ProcessGroup | bool" = False,
    ) -> None:
        super().__init__(
            discriminator,
            optimizer,
            cast("Any", d_loss),
            cast("Any", g_loss),
            steps=steps,
            resample=resample,
            stop_gradient=stop_gradient,
            average=average,
            backward=backward,
            grad_transform=grad_transform,
            param_transform=param_transform,
            average_gradients=average_gradients,
        )

    # When a user compiles a whole training step, this call stays uncompiled, as torch's optimizers do.
    @disable_dynamo
    def __call__(
        self,
        *batch: Any,
        d_loss: Loss | None = None,
        g_loss: Loss | None = None,
        resample: Resample | None = None,
        steps: Steps | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the loss of this batch, an ordinary scalar that can be differentiated once.

        Args:
            *batch: the positional arguments of both losses after D, such as ``real, fake``.
            d_loss: replaces the constructor's in this call, by a closure over the loop's variables for instance.
            g_loss: replaces the constructor's in this call.
            resample: replaces the constructor's in this call.
            steps: replaces the constructor's in this call.
            **kwargs: the keyword arguments of both losses, such as labels.

        Returns:
            ``g_loss`` after the steps; under ``torch.no_grad()``, its value without graph.

        Raises:
            ValueError: the losses depend on no generator; a loss is not finite or not a scalar; or objects that have
                changed since construction are no longer what it accepts.
        """
        return self._called(batch, resample, steps, {"d_loss": d_loss, "g_loss": g_loss, **kwargs})[0]

    def losses(self, options: Mapping[str, Any]) -> tuple[Loss, Loss]:
        """Return the losses of a call with these keyword arguments: both of the user's, or those of ``minimax``."""
        return both_or_minimax(*super().losses(options))


class UnrolledDiscriminatorLoss(UnrolledLoss):
    """d_loss(θ_D, θ_G^K(θ_D, θ_G)): the discriminator's loss once the generator has taken K more optimizer steps.

    This is ``UnrolledLoss`` with the roles of the players exchanged, and every other argument is as there. Both losses
    take G first and have to call it themselves, on noise that the batch holds, because a fake that was made before
    would not follow G's steps.

    Args:
        generator: a module, or a list, tuple or dict of modules.
        optimizer: the live optimizer that steps it.
        g_loss: ``(G, *batch, **kwargs) -> scalar``, minimised by the inner steps.
        d_loss: ``(G, *batch, **kwargs) -> scalar``, minimised by the discriminator.
        **options: the keyword arguments of ``UnrolledLoss``, such as ``steps=1``.

    Examples:
        >>> G, D = torch.nn.Linear(4, 2), torch.nn.Linear(2, 1)
        >>> opt_G = torch.optim.Adam(G.parameters(), lr=1e-3)
        >>> def g_loss(G, real, z):
        ...     return unroll_wrap.non_saturating.g_loss(D, real, G(z))
        >>> def d_loss(G, real, z):
        ...     return unroll_wrap.non_saturating.d_loss(D, real, G(z))
        >>> unrolled = unroll_wrap.UnrolledDiscriminatorLoss(G, opt_G, g_loss, d_loss, steps=2)
        >>> unrolled(torch.randn(8, 2), torch.randn(8, 4)).backward()  # followed by opt_D.step()
        >>> D.weight.grad.shape, G.weight.grad
        (torch.Size([1, 2]), None)
    """

    names = DISCRIMINATOR
    generator, g_loss, d_loss = _named("player"), _named("player_loss"), _named("loss")

    def __init__(self, generator: Any, optimizer: Any, g_loss: Loss, d_loss: Loss, **options: Any) -> None:
        super().__init__(generator, optimizer, g_loss, d_loss, **options)
