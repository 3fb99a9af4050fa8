"""The generator's loss after the discriminator has reacted: reads the user's objects, unrolls, evaluates."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .backward import Backward, Store, sweep
from .call.batch import tensors_in
from .call.call import Call, Loss, Resample, Steps, batches_of, count_of
from .call.discriminator import all_parameters, given_modules, modules_of, named_parameters
from .call.messages import described
from .call.mistakes import (
    check_finite,
    check_gradient_hooks,
    check_losses,
    check_modules,
    check_options,
    check_order,
    refuse_steps,
)
from .call.optimizer import Steppers, options_of
from .call.processes import check_group
from .call.wrappers import check_wrappers
from .evaluation.autocast import Autocast
from .evaluation.evaluate import Evaluator, evaluate_plainly
from .evaluation.holders import Holders
from .evaluation.runtime import prepare, refuse_inference_mode
from .evaluation.shared_memory import Memory, check_memory
from .evaluation.swap import Swap
from .live.exclusive import exclude_others
from .live.undo import Undo, keep_autocast, keep_modes
from .objectives import minimax
from .optimizers.family import keep_entries, keep_options
from .optimizers.read import Traces, read, rule_of
from .optimizers.transforms import Transforms
from .proof.first_call import Proof, guesses
from .torch_private import disable_dynamo
from .unrolling.one_process import OneProcess
from .unrolling.ranks import ranks_of
from .unrolling.result import SecondTermMissing, check_terms, hand_over
from .unrolling.step import Point
from .unrolling.unroll import Unroll

__all__ = ["SecondTermMissing", "UnrolledGeneratorLoss"]


class UnrolledGeneratorLoss:
    """f_K(θ_G, θ_D) = g_loss(θ_G, θ_D^K(θ_G, θ_D)): the generator's loss once D has taken K more optimizer steps.

    Its gradient is the total derivative, both terms of Eq. 12 of Metz et al. 2016, through the optimizer's state
    too. The discriminator, its optimizer and their state are left as they were:

        unrolled = UnrolledGeneratorLoss(D, opt_D, *non_saturating, steps=5)  # once
        ...
        loss_G = unrolled(real, fake)  # instead of bce(D(fake), ones)
        loss_G.backward()
        opt_G.step()

    Pass ``fake`` as an argument where you can: a closure that captures it is as exact, at the cost of a second pass
    per step.

    Args:
        discriminator: a module, or a list, tuple or dict of modules; DataParallel and similar wrappers included.
        optimizer: the live optimizer that steps it, read afresh at every call; a wrapper that exposes ``.optimizer``;
            a list of optimizers; or a callable ``params -> Optimizer`` such as ``partial(torch.optim.Adam, lr=1e-4)``,
            which starts every call from fresh state. What moves is what the optimizer owns, whatever
            ``requires_grad`` says at the call; parameters that did not require grad at construction, while others
            did, count as frozen until a call finds that they do.
        d_loss: ``(D, *batch, **kwargs) -> scalar``, minimised by the inner steps. D is the object passed above. As the
            paper has it by default, ``minimax``, on logits.
        g_loss: the same for the generator.
        steps: K >= 0, or a callable that returns it (a schedule).
        resample: None for the paper's choice, the call's own batch in every inner step. Or a callable
            ``k -> batch``, or an iterable of K batches: a new one for each inner step, while the call's own batch
            evaluates ``g_loss``.
        stop_gradient: the first term of Eq. 12 alone.
        average: the mean of ``g_loss`` over θ^1..θ^K instead of its value at θ^K (Appendix B.2).
        backward: how the second term is computed.
        grad_transform: differentiable ``list of gradients -> list of gradients`` before each inner update, for
            loops that clip gradients. A function that takes ``names`` is given those of their parameters too. D holds
            the parameters of the step meanwhile.
        param_transform: differentiable ``parameter -> parameter`` after it, for loops that clip weights. A function
            that takes ``name`` is given that too.
        average_gradients: False: every process looks ahead on its own. A process group: inner gradients are averaged
            over it, so that N ranks unroll what one process would on their joined batch, and each returns its share
            of the value. G's own averaging (DDP) completes it. See ``docs/distributed.md``.

    Attributes:
        prove: whether the first call is compared with K real steps of the live objects where the package has to guess:
            the optimizer has no rule of its own, or there are hooks, classes or attributes of parameters, or objects in
            D, of a kind that it does not know. That costs these K steps once; False switches it off.

    Raises:
        TypeError: an argument of a wrong kind, or an optimizer that no rule is known for.
        ValueError: an optimizer that owns nothing of the discriminator, or more than it.
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
        self._traces = Traces()
        optimizers = self._steppers.plain(optimizer)
        for one in optimizers:
            rule_of(one)
        self._hooks = -1
        self._proven: set[str] = set()
        self._on_logits: set[Loss] = set()
        self._memory: Memory | None = check_memory(Holders(modules, self._steppers.owned(modules, optimizers)))

    # A user who compiles a whole training step gets this call as it is; torch's optimizers do the same.
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
        """The loss of this batch, an ordinary scalar that can be differentiated once.

        Args:
            *batch: what the losses take after D, such as ``real, fake``.
            d_loss: for this call, a closure over the loop's locals, say.
            g_loss: for this call.
            resample: for this call.
            steps: for this call.
            **kwargs: further arguments of both losses, labels for instance.

        Returns:
            ``g_loss`` after the steps. Under ``torch.no_grad()`` the value alone.

        Raises:
            ValueError: nothing that the losses use depends on a generator; a loss that is not finite or not a
                scalar; or what the constructor raises, for objects that have changed since.
        """
        return self.watched(*batch, d_loss=d_loss, g_loss=g_loss, resample=resample, steps=steps, **kwargs)[0]

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
        """As a call; and ``d_loss`` at each inner step, without graph."""
        refuse_inference_mode()
        d_loss, g_loss = self.losses(d_loss, g_loss)
        check_order(d_loss, batch)
        with ranks_of(self.average_gradients, given_modules(self.discriminator)) as ranks:
            count, inner = self.plan(steps, resample)
            return self._call(Call(d_loss, g_loss, count, batch, kwargs, inner), ranks)

    def _call(self, call: Call, ranks: OneProcess) -> tuple[Tensor, list[Tensor]]:
        modules, optimizers, owned = self.parts()
        self._check_hooks(owned)
        with (undo := Undo()), undo:
            exclude_others(modules, undo)
            ranks.agree(call.steps, owned, (call.batch, call.kwargs), lambda: self._facts(call, optimizers))
            swap = Swap(modules, owned, self.average or self.backward.rewinds)
            self._memory = check_memory(swap.holders, self._memory)
            swap.shared = self._memory.shared
            keep_modes(undo)
            if call.steps == 0:
                prepare(swap, (call.g_loss,), second_order=False, compiled=not self.backward.second_order, undo=undo)
                return evaluate_plainly(call, self.discriminator, swap, owned, self._on_logits), []
            value, unroll, proof = self._unroll(call, swap, owned, optimizers, ranks, undo)
        if proof:
            proof.check(value, unroll.d_losses)
            self._proven.update(proof.doubts)
        if unroll.differentiate:
            check_terms(unroll.sensitivity, tensors_in(call.batch, call.kwargs), self.stop_gradient)
            value = hand_over(value, unroll.sensitivity)
        return value, unroll.d_losses

    def _unroll(
        self, call: Call, swap: Swap, owned: list[Tensor], optimizers: list[Any], ranks: OneProcess, undo: Undo
    ) -> tuple[Tensor, Unroll, Proof | None]:
        """Take the steps and the way back; nothing of the user's has moved once ``undo`` is done."""
        # The inner steps need gradients even where the caller wants none.
        differentiate, autocast = torch.is_grad_enabled(), Autocast(owned)
        second_order = differentiate and not self.stop_gradient and self.backward.second_order
        ruled = [o for o in optimizers if rule_of(o) is not None]
        traced = [o for o in optimizers if o not in ruled]
        doubts = [d for d in guesses(swap.modules, traced, owned, swap) if d not in self._proven]
        proof = Proof(self, call, owned, doubts) if self.prove and doubts and type(ranks) is OneProcess else None
        blocks = read(optimizers, owned, self._traces)
        if autocast.active:
            keep_autocast(undo, autocast.dtypes)
        keep_entries(optimizers, undo)
        check_options_kept = keep_options(optimizers, undo)
        refuse_steps(ruled, undo)
        settings = prepare(swap, (call.d_loss, call.g_loss), second_order, not self.backward.second_order, undo)
        with autocast.outside(), torch.enable_grad():
            unroll = Unroll(
                Evaluator(
                    self.discriminator, owned, swap, call.kwargs, autocast, second_order, settings, self._on_logits
                ),
                call.d_loss,
                call.g_loss,
                call.inner and autocast.within(call.inner),
                call.batch,
                self.transforms(owned),
                differentiate,
                self.stop_gradient,
                ranks,
                proof,
            )
            start = Point(blocks, swap.originals(), swap.contents())
            value = sweep(unroll, start, call.steps, self.average, self.backward)
            slow = Store() if second_order else self.backward
            check_finite(
                unroll.d_losses,
                value,
                {"batch": tensors_in(call.batch, call.kwargs), "discriminator": owned},
                unroll.sensitivity.tensors(),
                lambda: sweep(unroll.afresh(), start, call.steps, self.average, slow),
            )
        check_options_kept()
        swap.check_unwritten()
        return value, unroll, proof

    def _check_hooks(self, owned: Sequence[Tensor]) -> None:
        # Whoever registers a hook anywhere moves this number.
        if self._hooks != RemovableHandle.next_id:
            check_gradient_hooks(owned)
            self._hooks = RemovableHandle.next_id

    def __repr__(self) -> str:
        """What is unrolled, how far and how."""
        return (
            f"UnrolledGeneratorLoss({described(self.discriminator)}, {described(self.optimizer)}, "
            f"steps={self.steps!r}, backward={self.backward!r})"
        )

    def losses(self, d_loss: Loss | None, g_loss: Loss | None) -> tuple[Loss, Loss]:
        """Of a call; None stands for what the constructor was given."""
        # Not `or`: a loss that is an empty nn.ModuleList is false.
        return self.d_loss if d_loss is None else d_loss, self.g_loss if g_loss is None else g_loss

    def plan(
        self, steps: Steps | None, resample: Resample | None
    ) -> tuple[int, Callable[[int], tuple[Any, ...]] | None]:
        """K, and ``k -> batch`` if inner steps have batches of their own.

        None stands for what the constructor was given.
        """
        steps = self.steps if steps is None else steps
        count = count_of(steps() if callable(steps) else steps)
        return count, batches_of(self.resample if resample is None else resample, count)

    def parts(self) -> tuple[list[nn.Module], list[Any], list[Tensor]]:
        """Return the user's modules, plain optimizers, and the parameters that these move, as they are now."""
        modules, optimizers = modules_of(self.discriminator), self._steppers.plain(self.optimizer)
        return modules, optimizers, self._steppers.owned(modules, optimizers)

    def transforms(self, owned: Sequence[Tensor]) -> Transforms:
        """The user's, and the names of the parameters that they may ask for."""
        transforms = Transforms(self.grad_transform, self.param_transform)
        if not transforms:
            return transforms
        name_of = {id(p): name for name, p in named_parameters(self.discriminator)}
        return replace(transforms, names=[name_of[id(p)] for p in owned])

    def _facts(self, call: Call, optimizers: list[Any]) -> dict[str, Any]:
        """Return what processes that average their gradients must have in common."""
        return {
            "d_loss": call.d_loss,
            "g_loss": call.g_loss,
            "backward": self.backward,
            "average": self.average,
            "stop_gradient": self.stop_gradient,
            "differentiation": torch.is_grad_enabled(),
            **options_of(optimizers),
        }
