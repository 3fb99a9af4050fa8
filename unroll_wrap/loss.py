"""The generator's loss after the discriminator has reacted: reads the user's objects, unrolls, evaluates."""

import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .backward import Backward, Store, rewinds, sweep
from .call.batch import tensors_in
from .call.mistakes import (
    check_finite,
    check_gradient_hooks,
    check_logits,
    check_losses,
    check_modules,
    check_options,
    check_order,
    described,
    refuse_steps,
    users_line,
)
from .call.wrappers import check_wrappers
from .evaluation.autocast import Autocast
from .evaluation.evaluate import Evaluator, misfit, one_element
from .evaluation.runtime import prepare, refuse_inference_mode
from .evaluation.swap import Swap, all_modules, all_parameters
from .live.exclusive import exclude_others
from .live.undo import Undo, keep_autocast, keep_modes
from .objectives import minimax
from .optimizers.family import groups_of, keep_entries, keep_options, stepped
from .optimizers.read import Traces, read, rule_of
from .optimizers.stock import is_hosted
from .optimizers.transforms import Transforms
from .proof.first_call import Proof, guesses
from .unrolling.ranks import OneProcess, check_group, ranks_of
from .unrolling.result import hand_over
from .unrolling.unroll import Point, Unroll

Loss = Callable[..., Tensor]
Resample = Callable[[int], Sequence[Any]] | Iterable[Sequence[Any]]
Steps = int | Callable[[], int]


_NO_SECOND_TERM = (
    "d_loss does not depend on the generator, so the second term of Eq. 12 is missing. Is fake detached inside it? Use "
    "unroll_wrap.detach(fake) there, or pass stop_gradient=True if that is what you want."
)
_NOT_THROUGH_D = (
    "g_loss does not depend on the discriminator that is unrolled, so no derivative passes through its steps, and the "
    "second term of Eq. 12 is missing. Does g_loss ask another network, or detach what D returns? Let it use the D "
    "that it is given, or pass steps=0 if the other network is meant."
)


class SecondTermMissing(UserWarning):
    """d_loss does not depend on the generator, or g_loss not on the discriminator that is unrolled."""


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
            _count(steps)
        check_options(backward, grad_transform=grad_transform, param_transform=param_transform)
        modules = all_modules(_modules(discriminator))
        params = all_parameters(modules)
        check_modules(modules)
        check_wrappers(modules, params, second_order=backward.second_order and not stop_gradient)
        trained = [p for p in params if p.requires_grad]
        self._frozen = [p for p in params if not p.requires_grad] if trained else []
        self._traces = Traces()
        self._spec = None if _is_live(optimizer) else _from_spec(optimizer, trained)
        for one in self._optimizers():
            rule_of(one)
        self._hooks = -1
        self._proven: set[str] = set()
        self._memory = Swap(modules, self._owned(modules, self._optimizers())).check_memory()

    # A user who compiles a whole training step gets this call as it is; torch's optimizers do the same.
    @torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
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
        return self._watched(batch, d_loss, g_loss, resample, steps, kwargs)[0]

    @torch._disable_dynamo  # pyright: ignore[reportPrivateImportUsage]
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
        return self._watched(batch, d_loss, g_loss, resample, steps, kwargs)

    def _watched(
        self,
        batch: tuple[Any, ...],
        d_loss: Loss | None,
        g_loss: Loss | None,
        resample: Resample | None,
        steps: Steps | None,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, list[Tensor]]:
        refuse_inference_mode()
        d_loss, g_loss = self.losses(d_loss, g_loss)
        check_order(d_loss, batch)
        with ranks_of(self.average_gradients, _modules(self.discriminator)) as ranks:
            return self._call(ranks, batch, d_loss, g_loss, resample, steps, kwargs)

    def _call(
        self,
        ranks: OneProcess,
        batch: tuple[Any, ...],
        d_loss: Loss,
        g_loss: Loss,
        resample: Resample | None,
        steps: Steps | None,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, list[Tensor]]:
        steps, inner_batch = self.plan(steps, resample)
        modules = all_modules(_modules(self.discriminator))
        check_logits((d_loss, g_loss), modules)
        optimizers = self._optimizers()
        owned = self._owned(modules, optimizers)
        self._check_hooks(owned)
        proof, undo = None, Undo()
        with undo, undo:
            exclude_others(modules, undo)
            ranks.agree(steps, owned, (batch, kwargs), lambda: self._facts(d_loss, g_loss, optimizers))
            swap = Swap(modules, owned, self.average or rewinds(self.backward))
            compiled = not self.backward.second_order
            self._memory = swap.check_memory(self._memory)
            keep_modes(undo)
            if steps == 0:
                prepare(swap, (g_loss,), second_order=False, compiled=compiled, undo=undo, noted=False)
                return self._plain(g_loss, swap, owned, batch, kwargs), []
            # The inner steps need gradients even where the caller wants none.
            differentiate, autocast = torch.is_grad_enabled(), Autocast(owned)
            second_order = differentiate and not self.stop_gradient and self.backward.second_order
            rules = [rule_of(o) for o in optimizers]
            ruled = [o for o, rule in zip(optimizers, rules, strict=True) if rule is not None]
            traced = [o for o in optimizers if o not in ruled]
            doubts = [d for d in guesses(modules, traced, owned, swap) if d not in self._proven]
            if self.prove and doubts and type(ranks) is OneProcess:
                proof = Proof(self, d_loss, g_loss, batch, kwargs, owned, doubts)
            blocks = read(optimizers, owned, self._traces, rules)
            if autocast.active:
                keep_autocast(undo, autocast.dtypes)
            keep_entries(optimizers, undo)
            changed_options = keep_options(optimizers, undo)
            refuse_steps(ruled, undo)
            settings = prepare(swap, (d_loss, g_loss), second_order, compiled, undo)
            with autocast.outside(), torch.enable_grad():
                unroll = Unroll(
                    Evaluator(self.discriminator, owned, swap, kwargs, autocast, second_order, settings),
                    d_loss,
                    g_loss,
                    inner_batch and autocast.within(inner_batch),
                    batch,
                    self.transforms(owned),
                    differentiate,
                    self.stop_gradient,
                    ranks,
                    proof,
                )
                start = Point(blocks, swap.originals(), swap.contents())
                value = sweep(unroll, start, steps, self.average, self.backward)
                given = {"batch": tensors_in(batch, kwargs), "discriminator": owned}
                slow = Store() if second_order else self.backward
                check_finite(
                    unroll.d_losses,
                    value,
                    given,
                    unroll.sensitivity.tensors(),
                    lambda: sweep(unroll.afresh(), start, steps, self.average, slow),
                )
            if options := changed_options():
                raise ValueError(
                    f"A loss changes options of D's optimizer: {options}. An unroll takes them as they are at the "
                    "call: change them in the training loop, by a scheduler say."
                )
            if written := swap.written_after_all():
                raise ValueError(
                    f"A loss writes to frozen parameters of D, of shapes {[tuple(t.shape) for t in written][:4]}, but "
                    "not when it runs for the first time. Make them buffers (register_buffer)."
                )
        if proof:
            proof.check(value, unroll.d_losses)
            self._proven.update(proof.doubts)
        if not unroll.differentiate:
            return value, unroll.d_losses
        self._check_terms(unroll, batch, kwargs)
        return hand_over(value, unroll.sensitivity), unroll.d_losses

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
        count = _count(steps() if callable(steps) else steps)
        return count, _batches(self.resample if resample is None else resample, count)

    def parts(self) -> tuple[list[nn.Module], list[Any], list[Tensor]]:
        """The user's modules, plain optimizers, and the parameters that these move, as they are now."""
        modules, optimizers = all_modules(_modules(self.discriminator)), self._optimizers()
        return modules, optimizers, self._owned(modules, optimizers)

    def transforms(self, owned: Sequence[Tensor]) -> Transforms:
        """The user's, and the names of the parameters that they may ask for."""
        transforms = Transforms(self.grad_transform, self.param_transform)
        if not transforms:
            return transforms
        name_of = {id(p): name for name, p in _named_parameters(self.discriminator)}
        return replace(transforms, names=[name_of[id(p)] for p in owned])

    def _facts(self, d_loss: Loss, g_loss: Loss, optimizers: list[Any]) -> dict[str, Any]:
        """What processes that average their gradients must have in common."""
        return {
            "d_loss": d_loss,
            "g_loss": g_loss,
            "backward": self.backward,
            "average": self.average,
            "stop_gradient": self.stop_gradient,
            "differentiation": torch.is_grad_enabled(),
            "the optimizers": [type(o) for o in optimizers],
            **{
                f"{type(o).__name__}'s {option} (group {i})": value
                for o in optimizers
                for i, group in enumerate(groups_of(o))
                for option, value in group.items()
                if option != "params"
            },
        }

    def _plain(
        self, g_loss: Loss, swap: Swap, owned: list[Tensor], batch: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """K = 0: the user's own ``g_loss``, on stand-ins that keep D's gradients, values and buffers out of it."""
        swap.put([p.detach().clone().requires_grad_() for p in owned], swap.originals())
        try:
            with swap.shielded():
                value = g_loss(self.discriminator, *batch, **kwargs)
        except TypeError as error:
            if told := misfit("g_loss", g_loss, (self.discriminator, *batch), kwargs, error):
                raise told from error
            raise
        return one_element("g_loss", value)

    def _optimizers(self) -> list[Any]:
        """The plain optimizers, as the user's objects are now."""
        return _unwrapped(self.optimizer) if self._spec is None else self._spec

    def _owned(self, modules: list[nn.Module], optimizers: list[Any]) -> list[Tensor]:
        """The parameters that the optimizers move, in D's order."""
        listed = [p for o in optimizers for p in stepped(o)]
        held = {id(p) for p in listed}
        mine = {id(p): p for p in all_parameters(modules)}
        if len(listed) > len(held):
            raise ValueError(
                "The optimizers own the same parameter twice, so the order of their steps would matter. Pass "
                "optimizers that share none."
            )
        foreign = [tuple(p.shape) for p in listed if id(p) not in mine]
        names = ", ".join(type(o).__name__ for o in optimizers)
        if foreign and len(foreign) == len(held):
            raise ValueError(
                f"The optimizer ({names}) owns {len(held)} parameters, and none of them is the discriminator's. Pass "
                "the optimizer that steps this discriminator."
            )
        if foreign:
            raise ValueError(
                f"The optimizer ({names}) also moves {len(foreign)} parameters outside the discriminator, of shapes "
                f"{foreign[:4]}. Pass every module that it steps: [D, other]."
            )
        self._frozen = [p for p in self._frozen if not p.requires_grad]
        # An optimizer that has state for a parameter has moved it, whatever its flag was when this was built.
        trained = {id(p) for o in optimizers for p, state in getattr(o, "state", {}).items() if state}
        frozen = {id(p) for p in self._frozen} - trained
        owned: list[Tensor] = [p for i, p in mine.items() if i in held and i not in frozen]
        if not owned:
            raise ValueError(
                f"The optimizer ({names}) moves none of the discriminator's parameters: it owns {len(held)}, of which "
                f"{len(frozen & held)} have never required grad. Pass the optimizer that trains it."
            )
        return owned

    def _check_terms(self, unroll: Unroll, batch: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found = unroll.sensitivity
        given = ", ".join(f"{tuple(t.shape)} requires_grad={t.requires_grad}" for t in tensors_in(batch, kwargs))
        if not (found.first_term or found.second_term):
            raise ValueError(
                f"Neither loss depends on a generator: the batch is [{given}]. Pass fake = G(z) with its graph, "
                "without detach() or no_grad(); for the value alone, call under torch.no_grad()."
            )
        if not (found.second_term or self.stop_gradient):
            cause = _NO_SECOND_TERM if found.through_d else _NOT_THROUGH_D
            warnings.warn(cause, SecondTermMissing, stacklevel=users_line())


def _modules(discriminator: Any) -> list[nn.Module]:
    found = list(discriminator.values()) if isinstance(discriminator, Mapping) else discriminator
    found = list(found) if isinstance(found, (list, tuple)) else [found]
    wrong = [m for m in found if not isinstance(m, nn.Module)]
    if wrong or not found:
        raise TypeError(
            f"discriminator is {described(discriminator)}. Pass an instance of torch.nn.Module, or a list, tuple or "
            "dict of them, and after it the optimizer: UnrolledGeneratorLoss(D, opt_D, ...)."
        )
    return found


def _named_parameters(discriminator: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(discriminator, nn.Module):
        yield from discriminator.named_parameters()
        return
    parts = discriminator.items() if isinstance(discriminator, Mapping) else enumerate(discriminator)
    for key, module in parts:
        yield from ((f"{key}.{name}", p) for name, p in module.named_parameters())


def _is_live(optimizer: Any) -> bool:
    if isinstance(optimizer, (torch.optim.Optimizer, list, tuple)) or hasattr(optimizer, "optimizer"):
        return True
    return hasattr(optimizer, "step") and not isinstance(optimizer, type)


def _unwrapped(optimizer: Any) -> list[Any]:
    """The optimizers inside known hosts' wrappers, and whatever else has a step of its own as it is."""
    found = []
    for one in optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]:
        inner = one
        while hasattr(inner, "optimizer") and (is_hosted(inner) or not _steps_itself(inner)):
            inner = inner.optimizer
        if not _steps_itself(inner):
            raise TypeError(
                f"optimizer is {described(optimizer)}. Pass the torch.optim.Optimizer that steps the discriminator, a "
                "list of them, or a callable params -> Optimizer."
            )
        found.append(inner)
    return found


def _steps_itself(optimizer: Any) -> bool:
    """Whether it does more than to pass ``step`` on by ``__getattr__`` to what it holds."""
    own = hasattr(type(optimizer), "step") or "step" in getattr(optimizer, "__dict__", ())
    return own and not isinstance(optimizer, type)


def _from_spec(spec: Any, params: Sequence[Tensor]) -> list[Any]:
    if isinstance(spec, type):
        raise TypeError(
            f"optimizer is {described(spec)}. Pass the torch.optim.Optimizer that steps the discriminator, or, for "
            f"fresh state in every call, functools.partial({spec.__name__}, lr=1e-4), say."
        )
    if not callable(spec):
        return _unwrapped(spec)
    if not params:
        raise ValueError(
            "An optimizer given as a callable steps the parameters that require grad, and none of the discriminator's "
            "does. Build UnrolledGeneratorLoss while D is trainable, or pass the live optimizer."
        )
    return _unwrapped(spec(params))


def _count(steps: Any) -> int:
    try:
        count = -1 if isinstance(steps, bool) else operator.index(steps)
    except TypeError:
        count = -1
    if count < 0:
        raise ValueError(f"steps is {steps!r}. Pass a whole number >= 0, or a callable that returns one.")
    return count


def _batches(resample: Resample | None, steps: int) -> Callable[[int], tuple[Any, ...]] | None:
    """``k -> batch`` for the inner steps; None for the call's own."""
    if resample is None:
        return None
    if not callable(resample):
        if not isinstance(resample, Iterable):
            raise TypeError(
                f"resample is {described(resample)}. Pass None, a callable k -> batch, or an iterable of batches."
            )
        iterator = iter(resample)

        def following(k: int) -> Any:
            for drawn in iterator:
                return drawn
            raise ValueError(f"resample ran dry: it gave {k} batches for steps={steps}. Give one for each inner step.")

    def checked(k: int) -> tuple[Any, ...]:
        drawn = resample(k) if callable(resample) else following(k)
        if not isinstance(drawn, (list, tuple)):
            raise TypeError(
                f"resample gave {type(drawn).__name__} for inner step {k}. Give a tuple with what the losses take "
                "after D, such as (real, fake)."
            )
        return tuple(drawn)

    return checked
