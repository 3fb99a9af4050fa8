"""``UnrolledGeneratorLoss``: the generator's loss after the discriminator has taken K more optimizer steps."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from .backward import Backward, Store
from .call.batch import tensors_in
from .call.call import Call, Loss, Resample, Steps, batches_of, check_options, count_of
from .call.categories import SecondTermMissing
from .call.discriminator import all_parameters, check_modules, given_modules, modules_of, named_parameters
from .call.losses import check_losses, check_order
from .call.messages import described
from .call.optimizer import Steppers
from .call.processes import check_group
from .call.wrappers import check_wrappers
from .evaluation.holders import Holders
from .evaluation.runtime import refuse_surroundings
from .evaluation.shared_memory import check_memory
from .objectives import minimax
from .optimizers.read import rule_of
from .optimizers.transforms import Transforms
from .run import Known, run
from .torch_private import disable_dynamo
from .unrolling.ranks import ranks_of

__all__ = ["SecondTermMissing", "UnrolledGeneratorLoss"]


class UnrolledGeneratorLoss:
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
            default is ``minimax``, the paper's loss on logits.
        g_loss: ``(D, *batch, **kwargs) -> scalar``, minimised by the generator.
        steps: K >= 0, or a callable that returns it (a schedule).
        resample: None uses the call's batch in every inner step, as the paper does. A callable ``k -> batch`` or an
            iterable of K batches gives each inner step a batch of its own; ``g_loss`` still takes the call's batch.
        stop_gradient: whether to compute the first term of Eq. 12 only.
        average: whether to return the mean of ``g_loss`` over θ^1..θ^K instead of its value at θ^K (Appendix B.2).
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
            the optimizer has no rule of its own, or there are hooks, classes or attributes of parameters, or objects in
            D, of a kind that it does not know; or a profiler or hooks on saved tensors keep D's tensors. That costs
            these K steps once; False switches it off.

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

    def __init__(
        self,
        discriminator: Any,
        optimizer: Any,
        d_loss: Loss = minimax.d_loss,
        g_loss: Loss = minimax.g_loss,
        *,
        steps: Steps = 5,
        resample: Resample | None = None,
        stop_gradient: bool = False,
        average: bool = False,
        backward: Backward = Store(),  # noqa: B008
        grad_transform: Callable[..., Sequence[Tensor]] | None = None,
        param_transform: Callable[..., Tensor] | None = None,
        average_gradients: "dist.ProcessGroup | bool" = False,
    ) -> None:
        self.discriminator = discriminator
        self.optimizer = optimizer
        self.d_loss = d_loss
        self.g_loss = g_loss
        self.steps = steps
        self.resample = resample
        self.stop_gradient = stop_gradient
        self.average = average
        self.backward = backward
        self.grad_transform = grad_transform
        self.param_transform = param_transform
        self.average_gradients = average_gradients
        self.prove = True

        check_group(average_gradients)
        check_losses(d_loss=d_loss, g_loss=g_loss)
        if not callable(steps):
            count_of(steps)
        check_options(backward, grad_transform=grad_transform, param_transform=param_transform)
        modules = modules_of(discriminator)
        params = all_parameters(modules)
        check_modules(modules)
        check_wrappers(modules, params, second_order=backward.second_order and not stop_gradient)
        self._steppers = Steppers(optimizer, params)
        optimizers = self._steppers.plain(optimizer)
        for one in optimizers:
            rule_of(one)
        # Of a copy, which verify makes, its own.
        self._watched = False
        self._known = Known(check_memory(Holders(modules, self._steppers.owned(modules, optimizers))))

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
        return self._called(batch, d_loss, g_loss, resample, steps, kwargs)[0]

    @disable_dynamo
    def watched(
        self,
        *batch: Any,
        d_loss: Loss | None = None,
        g_loss: Loss | None = None,
        resample: Resample | None = None,
        steps: Steps | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the result of a call, and ``d_loss`` at each inner step, without graph."""
        return self._called(batch, d_loss, g_loss, resample, steps, kwargs)

    def _called(
        self,
        batch: tuple[Any, ...],
        d_loss: Loss | None,
        g_loss: Loss | None,
        resample: Resample | None,
        steps: Steps | None,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, list[Tensor]]:
        refuse_surroundings(tensors_in(batch, kwargs))
        d_loss, g_loss = self.losses(d_loss, g_loss)
        check_order(d_loss, batch)
        with ranks_of(self.average_gradients, given_modules(self.discriminator)) as ranks:
            count, inner = self.plan(steps, resample)
            return run(self, Call(d_loss, g_loss, count, batch, kwargs, inner), ranks)

    def __repr__(self) -> str:
        """Show the discriminator, the optimizer, K and the backward."""
        return (
            f"UnrolledGeneratorLoss({described(self.discriminator)}, {described(self.optimizer)}, "
            f"steps={self.steps!r}, backward={self.backward!r})"
        )

    def losses(self, d_loss: Loss | None, g_loss: Loss | None) -> tuple[Loss, Loss]:
        """Return the losses of a call; None stands for the constructor's."""
        # Not `or`: a loss that is an empty nn.ModuleList is falsy.
        return self.d_loss if d_loss is None else d_loss, self.g_loss if g_loss is None else g_loss

    def plan(
        self, steps: Steps | None, resample: Resample | None
    ) -> tuple[int, Callable[[int], tuple[Any, ...]] | None]:
        """Return K, and ``k -> batch`` if inner steps have batches of their own; None stands for the constructor's."""
        steps = self.steps if steps is None else steps
        count = count_of(steps() if callable(steps) else steps)
        return count, batches_of(self.resample if resample is None else resample, count)

    def parts(self) -> tuple[list[nn.Module], list[Any], list[Tensor]]:
        """Return the user's modules, plain optimizers, and the parameters that these move, as they are now."""
        modules, optimizers = modules_of(self.discriminator), self._steppers.plain(self.optimizer)
        return modules, optimizers, self._steppers.owned(modules, optimizers)

    @property
    def frozen(self) -> list[Tensor]:
        """The parameters that have not required grad since the loss was built, while others did."""
        return self._steppers.frozen

    def transforms(self, owned: Sequence[Tensor]) -> Transforms:
        """Return the user's transforms, and the names of parameters that they may ask for."""
        transforms = Transforms(self.grad_transform, self.param_transform)
        if not transforms:
            return transforms
        name_of = {id(p): name for name, p in named_parameters(self.discriminator)}
        return replace(transforms, names=[name_of[id(p)] for p in owned])
