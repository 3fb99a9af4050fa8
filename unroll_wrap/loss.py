"""``UnrolledLoss``: a loss after another player has taken K more optimizer steps."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from .backward import Backward, Store
from .call.average import Average, check_average
from .call.call import Call, Loss, Resample, Steps, batches_of, check_options, count_of
from .call.discriminator import all_modules, all_parameters, check_modules, given_modules, modules_of, named_parameters
from .call.losses import check_exchanged, check_losses, check_order, in_order
from .call.names import Names
from .call.optimizer import Steppers, check_no_network
from .call.processes import check_group
from .call.wrappers import check_wrappers
from .evaluation.holders import Holders
from .evaluation.runtime import refuse_surroundings
from .evaluation.shared_memory import check_memory
from .known import Known
from .live.random_state import undrawn_on_error
from .messages import described
from .optimizers.read import rule_of
from .optimizers.transforms import Transforms
from .run import run
from .torch_private import disable_dynamo
from .unrolling.ranks import ranks_of
from .unrolling.unroll import Unroll


class UnrolledLoss:
    """L_K(φ, θ) = loss(φ, θ^K(φ, θ)): a loss once another player, with parameters θ, has taken K more optimizer steps.

    Its gradient by φ, whatever tensors outside the player these are, is the total derivative, both terms of Eq. 12 of
    Metz et al. 2016, through the optimizer's state too. The player, its optimizer and their state are left as they
    were. ``UnrolledGeneratorLoss`` and ``UnrolledDiscriminatorLoss`` are this class with the names of a GAN.

    Args:
        player: a module, or a list, tuple or dict of modules; DataParallel and similar wrappers included.
        optimizer: the live optimizer that steps it, read afresh at every call; a wrapper that exposes ``.optimizer``;
            a list of optimizers; or a callable ``params -> Optimizer`` such as ``partial(torch.optim.Adam, lr=1e-4)``,
            which starts every call from fresh state. The steps move the parameters that the optimizer owns, whatever
            their ``requires_grad`` is at the call. Parameters that did not require grad at construction, while others
            did, count as frozen until a call finds that they require grad or have optimizer state.
        player_loss: ``(player, *batch, **kwargs) -> scalar``, minimised by the inner steps; its first argument is the
            object passed above.
        loss: ``(player, *batch, **kwargs) -> scalar``, which a call returns the value of after the steps.
        steps: K >= 0, or a callable that returns it (a schedule).
        resample: None uses the call's batch in every inner step, as the paper does. A callable ``k -> batch`` or an
            iterable of K batches gives each inner step a batch of its own; ``loss`` still takes the call's batch.
        stop_gradient: whether to compute the first term of Eq. 12 only.
        average: True returns the mean of ``loss`` over θ^1..θ^K instead of its value at θ^K (Appendix B.2), and
            ``Extrapolate(factor)`` a point on the line from its value at θ^0 to that at θ^K.
        backward: how the second term is computed.
        grad_transform: a differentiable function ``list of gradients -> list of gradients``, applied before each inner
            update, for loops that clip gradients. If it has an argument ``names``, it receives the names of their
            parameters. While it runs, the player holds the parameters of the step.
        param_transform: a differentiable function ``parameter -> parameter``, applied after each inner update, for
            loops that clip weights. If it has an argument ``name``, it receives the parameter's name.
        average_gradients: False lets every process look ahead on its own. Over a process group, inner gradients are
            averaged, so that N ranks unroll what one process would on their joined batch, and each returns its share
            of the value. See ``docs/distributed.md``.

    Attributes:
        prove: whether the first call is compared with K real steps of the live objects where the package has to guess:
            the optimizer has no rule of the package's, or a ``zero_grad`` of its own; there are hooks, classes or
            attributes of parameters, or objects in the player, of a kind that it does not know; or a profiler or hooks
            on saved tensors keep its tensors. That costs these K steps once; False switches it off.

    Raises:
        TypeError: an argument is of a wrong type, or the optimizer cannot be unrolled.
        ValueError: the optimizer owns none of the player's parameters, or also others.

    Examples:
        >>> buyer, seller = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        >>> opt = torch.optim.SGD(seller.parameters(), lr=0.1)
        >>> def of_seller(seller, x):
        ...     return (seller(x) - buyer(x)).square().mean()
        >>> def of_buyer(seller, x):
        ...     return (seller(x) * buyer(x)).mean()
        >>> unrolled = unroll_wrap.UnrolledLoss(seller, opt, of_seller, of_buyer, steps=3)
        >>> unrolled(torch.randn(8, 1)).backward()
        >>> buyer.weight.grad.shape, seller.weight.grad
        (torch.Size([1, 1]), None)
    """

    names = Names()

    def __init__(
        self,
        player: Any,
        optimizer: Any,
        player_loss: Loss,
        loss: Loss,
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
        self.player = player
        self.optimizer = optimizer
        self.player_loss = player_loss
        self.loss = loss
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
        given = {self.names.player_loss: player_loss, self.names.loss: loss}
        modules = all_modules(given_modules(player, self.names.player))
        check_no_network(optimizer, self.names.player)
        check_losses(**{name: one for name, one in given.items() if one is not None or not self.names.optional})
        if not callable(steps):
            count_of(steps)
        check_average(average)
        check_options(backward, grad_transform=grad_transform, param_transform=param_transform)
        params = all_parameters(modules)
        check_modules(modules, self.names.player)
        second_order = backward.second_order and not stop_gradient
        check_wrappers(modules, params, self.names.player, second_order)
        self._steppers = Steppers(optimizer, params, self.names.player)
        optimizers = self._steppers.plain(optimizer)
        for one in optimizers:
            rule_of(one)
        # The calls so far and the most steps, by the code that ran. It is replaced, and so a copy has its own.
        self._watched: dict[tuple[Any, ...], tuple[int, int]] = {}
        holders = Holders(modules, self._steppers.owned(modules, optimizers))
        self._known = Known(check_memory(holders, self.names.player))

    # When a user compiles a whole training step, this call stays uncompiled, as torch's optimizers do.
    @disable_dynamo
    def __call__(
        self, *batch: Any, resample: Resample | None = None, steps: Steps | None = None, **kwargs: Any
    ) -> Tensor:
        """Return the loss of this batch, an ordinary scalar that can be differentiated once.

        Args:
            *batch: the positional arguments of both losses after the player.
            resample: replaces the constructor's in this call.
            steps: replaces the constructor's in this call.
            **kwargs: ``player_loss`` and ``loss``, which replace the constructor's in this call; the others are the
                keyword arguments of both losses.

        Returns:
            ``loss`` after the steps; under ``torch.no_grad()``, its value without graph.

        Raises:
            ValueError: the losses depend on nothing that requires grad; a loss is not finite or not a scalar; or
                objects that have changed since construction are no longer what it accepts.
        """
        return self._called(batch, resample, steps, kwargs)[0]

    @disable_dynamo
    def watched(
        self, *batch: Any, resample: Resample | None = None, steps: Steps | None = None, **kwargs: Any
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the result of a call, and the player's loss at each inner step, without graph."""
        return self._called(batch, resample, steps, kwargs)

    # One wrapper of dynamo's a call is enough, so this has none.
    def _called(
        self, batch: tuple[Any, ...], resample: Resample | None, steps: Steps | None, options: dict[str, Any]
    ) -> tuple[Tensor, list[Tensor]]:
        player_loss, loss = self.losses(options)
        kwargs = self.keywords(options)
        refuse_surroundings(batch, kwargs)
        check_order(player_loss, batch)
        check_average(self.average)
        with ranks_of(self.average_gradients, given_modules(self.player)) as ranks:
            count, inner = self.plan(steps, resample)
            inner = inner and in_order(player_loss, inner)
            # Without steps this is the user's own loss, which leaves random numbers drawn as well.
            with undrawn_on_error() if count else nullcontext():
                return run(self, Call(player_loss, loss, count, batch, kwargs, inner), ranks)

    def __repr__(self) -> str:
        """Show the player, the optimizer, K, the backward, and the other options that are set."""
        options = "stop_gradient", "average", "resample", "grad_transform", "param_transform", "average_gradients"
        given = [(name, getattr(self, name)) for name in options]
        return (
            f"{type(self).__name__}({described(self.player)}, {described(self.optimizer)}, "
            f"steps={self.steps!r}, backward={self.backward!r}"
            f"{''.join(f', {name}={value!r}' for name, value in given if value not in (None, False))})"
        )

    def losses(self, options: Mapping[str, Any]) -> tuple[Loss, Loss]:
        """Return the losses of a call with these keyword arguments, in which None stands for the constructor's."""
        names = self.names.player_loss, self.names.loss
        given = {name: options[name] for name in names if options.get(name) is not None}
        check_losses(**given)
        player_loss, loss = given.get(names[0], self.player_loss), given.get(names[1], self.loss)
        check_exchanged(**{names[0]: player_loss, names[1]: loss})
        return player_loss, loss

    def keywords(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of a call that its losses receive."""
        own = (self.names.player_loss, self.names.loss, "steps", "resample")
        return {name: value for name, value in options.items() if name not in own}

    def plan(
        self, steps: Steps | None, resample: Resample | None
    ) -> tuple[int, Callable[[int], tuple[Any, ...]] | None]:
        """Return K, and ``k -> batch`` if inner steps have batches of their own; None stands for the constructor's."""
        steps = self.steps if steps is None else steps
        count = count_of(steps)
        return count, batches_of(self.resample if resample is None else resample, count)

    def parts(self) -> tuple[list[nn.Module], list[Any], list[Tensor]]:
        """Return the user's modules, plain optimizers, and the parameters that these move, as they are now."""
        modules, optimizers = modules_of(self.player), self._steppers.plain(self.optimizer)
        return modules, optimizers, self._steppers.owned(modules, optimizers)

    def others(self) -> list[nn.Module]:
        """Return the modules whose parameters the gradient is not asked for: those of the player."""
        return modules_of(self.player)

    def unroll(self, owned: list[Tensor], **fields: Any) -> Unroll:  # noqa: ARG002
        """Return the unroll of one call, before its first step."""
        return Unroll(**fields)

    # The inner steps that one of the K steps consists of, and whether the steps move whoever minimises the loss.
    round, moves_asker = 1, False

    @property
    def frozen(self) -> list[Tensor]:
        """The parameters that have not required grad since the loss was built, while others did."""
        return self._steppers.frozen

    def transforms(self, owned: Sequence[Tensor]) -> Transforms:
        """Return the user's transforms, and the names of parameters that they may ask for."""
        transforms = Transforms(self.grad_transform, self.param_transform)
        if not transforms:
            return transforms
        name_of = {id(p): name for name, p in named_parameters(self.player)}
        return replace(transforms, names=[name_of[id(p)] for p in owned])
