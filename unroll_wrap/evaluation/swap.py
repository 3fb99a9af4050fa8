"""Tensors in and out of the user's own objects.

A loss reaches the discriminator in many ways: as an argument, through ``self.netD``, a loss object, a closure over one
of its parameters. A parameter's class, its attributes and its identity may count as well. So the user's own tensor
objects stay where they are, and for the time of an unroll they exchange what they hold with tensors of the unroll's:
``torch.utils.swap_tensors`` does the same. The exchange is undone whatever happens.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..call.batch import distinct
from ..live.belongings import Belongings
from ..live.restore import refill
from ..live.undo import Undo

_exchange = torch._C._swap_tensor_impl


class Shielded(nn.Parameter):
    """A parameter while ``g_loss`` runs, which always requires grad.

    Most loops switch D's ``requires_grad`` off around the generator's step, some from within the loss. An unroll
    differentiates through D all the same, so these switches have no effect there.
    """

    def requires_grad_(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, requires_grad: bool = True
    ) -> "Shielded":
        """Leave the flag on, whatever is asked."""
        return self

    @property
    def requires_grad(self) -> bool:
        """True."""
        return True

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        pass


class Swap:
    """What the moving tensors of some modules hold, and how those modules looked before.

    A context: on leaving it, every parameter, buffer, attribute, flag and entry of a container is what it was.

    Args:
        modules: all modules that hold the tensors, submodules included.
        params: the parameters that the inner optimizer moves, each once.
        rewinds: whether steps run in another order than that of training, so that what a forward pass leaves in
            containers has to be put back before each of them.
    """

    def __init__(self, modules: Sequence[nn.Module], params: Sequence[Tensor], rewinds: bool = False) -> None:
        self.modules = modules
        self._params = list(params)
        self.rewinds = rewinds
        # The unroll's tensors with which the user's have exchanged what they hold: for parameters, and for the others.
        self._inside: Sequence[Tensor] = ()
        self._clones: Sequence[Tensor] = ()
        self._in_slots = self._entered = False
        self._live: list[Tensor] = []
        self._carried: list[Tensor] = []
        self._places: list[tuple[dict[str, Any], str, int]] = []
        self._slots: list[tuple[Any, Any, int]] = []
        index: dict[int, int] = {}
        moved = {id(p): i for i, p in enumerate(params)}

        def carry(tensor: Tensor, container: Any, key: Any) -> None:
            i = index.setdefault(id(tensor), len(self._carried))
            if i == len(self._carried):
                self._carried.append(tensor)
            if type(container) in (dict, OrderedDict):
                self._places.append((container, key, i))

        def carry_buffers(module: nn.Module) -> None:
            for name, b in module._buffers.items():
                # One with a graph is a generator's, and its gradient goes there.
                if b is not None and not b.requires_grad:
                    carry(b, module._buffers, name)

        for module in modules:
            for name, p in module._parameters.items():
                if (i := moved.get(id(p))) is not None:
                    self._slots.append((module._parameters, name, i))
                elif p is None:
                    continue
                elif p.requires_grad:
                    self._live.append(p)
                else:
                    # Some spectral norms keep u and v as parameters that no optimizer ever moves.
                    carry(p, module._parameters, name)
            carry_buffers(module)
        attributes = [vars(t) for t in (*params, *self._live, *self._carried) if vars(t)]
        self._belongings = Belongings(modules, attributes)
        # Of a module that is only in a list, say, nothing moves but what a forward pass moves.
        known = set(map(id, modules))
        self._hidden = [m for m in all_modules(self._belongings.modules) if id(m) not in known]
        for module in self._hidden:
            carry_buffers(module)
        for tensor, container, key in self._belongings.places:
            if (i := moved.get(id(tensor))) is not None:
                # RNNs call their kernels with a list of their parameters.
                self._slots += [(container, key, i)] if container is not None else []
            elif tensor.is_leaf and not tensor.requires_grad:
                carry(tensor, container, key)
        self._copied = list(range(len(self._carried)))
        self._unwritten: list[tuple[Tensor, Tensor]] = []
        self._learned = False
        # Pairs that lie in the same memory, which their clones do not.
        self._shared: list[tuple[Tensor, Tensor]] = []

    def enter(self, undo: Undo) -> None:
        """As a context, which ends when that is undone."""
        self._note()
        undo.later(self.__exit__)

    def __enter__(self) -> "Swap":
        """Note how everything looks."""
        self._note()
        return self

    def _note(self) -> None:
        self._homes = [t._cdata for t in (*self._params, *self._carried)]
        self._before = [
            (m, vars(m).copy(), m._parameters.copy(), m._buffers.copy()) for m in (*self.modules, *self._hidden)
        ]
        self._contents = self._belongings.contents()
        self._flags = [(p, p.requires_grad) for p in self._live]
        self._hooks = [(p, p._backward_hooks) for p in self._params if p._backward_hooks is not None]
        self._handles = RemovableHandle.next_id
        self._entered = True

    def __exit__(self, *_: object) -> None:
        """Put everything back as it was; to do so twice does no harm."""
        self._home()
        self._after_exchange()
        self._unshield()
        for module, attributes, params, buffers in self._before:
            # Most modules have none.
            if params or module._parameters:
                refill(module._parameters, params)
            if buffers or module._buffers:
                refill(module._buffers, buffers)
            _restore(vars(module), attributes)
        self._belongings.refill(self._contents)
        for restore in self._belongings.sources:
            restore()
        for p, flag in self._flags:
            p.requires_grad_(flag)
        self._inside = self._clones = ()
        self.written_after_all()
        self._entered = False

    def kept(self) -> list[str]:
        """The kinds of objects of the user's own that D keeps."""
        return [type(o).__name__ for o in self._belongings.objects]

    def check_memory(self, checked: Any = None) -> Any:
        """No parameter that moves lies in the memory of another tensor of D's, where a real step would move both.

        Args:
            checked: what an earlier check has returned; nothing need be done if all lies as it did.

        Raises:
            ValueError: one does.
        """
        # A legacy norm keeps `weight` beside `weight_orig`, and makes it anew before it is used.
        normed = {
            id(t)
            for t, container, key in self._belongings.places
            if isinstance(container, dict) and f"{key}_orig" in container.get("_parameters", ())
        }
        others = distinct([*self._live, *self._carried, *(t for t, _, _ in self._belongings.places)])
        others = [t for t in others if id(t) not in normed and not any(t is p for p in self._params)]
        tensors = [*self._params, *others]
        where = tuple(map(Tensor.data_ptr, tensors))
        if checked is not None and checked[0] == where:
            self._shared = checked[1]
            return checked
        moving = {id(p) for p in self._params}
        for one, other in overlapping(tensors):
            if id(one) in moving or id(other) in moving:
                raise ValueError(
                    f"Two tensors of the discriminator, of shapes {tuple(one.shape)} and {tuple(other.shape)}, lie in "
                    "the same memory: a real step moves both, and an unroll would move them apart. Share the "
                    "parameter itself (b.weight = a.weight), or give each a copy (.clone())."
                )
            self._shared.append((one, other))
        return where, self._shared

    def originals(self) -> tuple[Tensor, ...]:
        """The live buffers, and the parameters that nothing trains."""
        return tuple(self._carried)

    def contents(self) -> Any:
        """What attributes and containers hold now, if that will be asked for."""
        return ([vars(m).copy() for m in self.modules], self._belongings.contents()) if self.rewinds else None

    def put(self, params: Sequence[Tensor], buffers: Sequence[Tensor], contents: Any = None) -> None:
        """Let the modules use ``params`` and clones of ``buffers``.

        Clones, afresh for every evaluation: an in-place update, or one through ``.data`` that autograd cannot
        see, would otherwise change what an earlier step has saved for its backward pass.
        """
        self.out()
        if contents is not None:
            for module, attributes in zip(self.modules, contents[0], strict=True):
                _restore(vars(module), attributes)
            self._belongings.refill(contents[1])
        clones = copies(buffers[i] for i in self._copied)
        self._inside, self._clones = params, clones
        try:
            self._exchange_all()
        except RuntimeError:
            self._home()
            self._exchange_all()
        for container, key, i in self._places:
            if container.get(key) is not self._carried[i] and isinstance(container.get(key), Tensor):
                container[key] = self._carried[i]

    def out(self) -> None:
        """Let the user's tensors hold what is their own."""
        if self._in_slots:
            self._fill_slots(self._params, self._carried)
            self._in_slots = False
        if self._inside or self._clones:
            if self._hooks or self._handles != RemovableHandle.next_id:
                for p in self._params:
                    p._backward_hooks = None
            try:
                self._exchange_all()
            except RuntimeError:
                self._home()
            self._inside = self._clones = ()
            self._after_exchange()

    def _home(self) -> None:
        """Whatever has been exchanged so far, in the middle of it too, goes back."""
        if torch.is_autocast_cache_enabled():
            # Autocast remembers the weights that it has cast by references to them, which stand in the way.
            torch.clear_autocast_cache()
        lent = {t._cdata: t for t in (*self._inside, *self._clones, *(clone for _, clone in self._unwritten))}
        for mine, home in zip((*self._params, *self._carried), self._homes, strict=True):
            if mine._cdata != home:
                _exchange(mine, lent[home])

    def _exchange_all(self) -> None:
        # In C from end to end, so that no interrupt comes between two.
        deque(map(_exchange, self._params, self._inside), 0)
        deque(map(_exchange, map(self._carried.__getitem__, self._copied), self._clones), 0)
        for p, _ in self._hooks:
            p._backward_hooks = None

    def _after_exchange(self) -> None:
        for p, hooks in self._hooks:
            p._backward_hooks = hooks

    def put_in_slots(self, params: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
        """The same for tensors that a tracer knows by their objects: these are put where the user's are."""
        self.out()
        self._in_slots = True
        self._fill_slots(params, copies(buffers))

    def _fill_slots(self, params: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
        for container, key, i in self._slots:
            container[key] = params[i]
        for container, key, i in self._places:
            container[key] = buffers[i]

    def inside(self) -> Sequence[Tensor]:
        """What the unroll has put in last."""
        return self._inside

    def handles(self, params: Sequence[Tensor]) -> Sequence[Tensor]:
        """The objects that hold what the unroll made as ``params``: the user's own while D has these in it."""
        return self._params if params is self._inside else params

    @contextmanager
    def holding(self, params: Sequence[Tensor], buffers: Sequence[Tensor]) -> Iterator[None]:
        """For a while ``params`` and clones of ``buffers``, and then what was there before."""
        before, inside = (self._inside, self._clones), self._entered
        try:
            if inside:
                self.put(params, buffers)
                yield
            else:
                with self:
                    self.put(params, buffers)
                    yield
        finally:
            if inside:
                # Not out(), which takes for granted that the exchange has been made.
                self._home()
                self._after_exchange()
                self._inside, self._clones = before
                self._exchange_all()

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Parameters require grad whatever a loss asks of them.

        Raises:
            ValueError: one of a class of its own was switched off.
        """
        try:
            for p in self._params:
                if type(p) is nn.Parameter:
                    p.__class__ = Shielded
            yield
        finally:
            self._unshield()
        off = [type(p).__name__ for p in self._params if not p.requires_grad]
        if off:
            raise ValueError(
                f"g_loss switches requires_grad off for {len(off)} parameters of D, the first of them a {off[0]}: no "
                "derivative would pass through D's steps. Leave that to the training loop."
            )

    def _unshield(self) -> None:
        for p in self._params:
            if type(p) is Shielded:
                p.__class__ = nn.Parameter  # pyright: ignore[reportAttributeAccessIssue]

    def buffers(self) -> tuple[Tensor, ...]:
        """What the buffers are now, after a loss has run."""
        now = list(self._carried)
        for i in () if self._in_slots else self._copied:
            now[i] = now[i].detach()
        for container, key, i in self._places:
            value = container.get(key)
            if value is not self._carried[i] and isinstance(value, Tensor):
                now[i] = value
        return tuple(now)

    def after_loss(self) -> tuple[tuple[Tensor, ...], Any]:
        """What ``d_loss`` has left: buffers and contents."""
        if not (self._learned or self._in_slots):
            self._learned = True
            self._learn()
        return self.buffers(), self.contents()

    def _learn(self) -> None:
        """Which frozen parameters a first loss has left alone: these are not copied again, they may be large.

        Raises:
            ValueError: it has written to one of two tensors in the same memory.
        """
        pairs = dict(zip(self._copied, self._clones, strict=True))
        together = {id(t) for pair in self._shared for t in pair}
        for i, clone in pairs.items():
            # The user's object holds the clone, and the other way round.
            mine = self._carried[i]
            frozen = isinstance(mine, nn.Parameter) and mine._version == 0
            if not (frozen or id(mine) in together):
                continue
            if not _equal(mine, clone):
                if id(mine) in together:
                    raise ValueError(
                        f"d_loss writes to a tensor of the discriminator, of shape {tuple(mine.shape)}, that lies in "
                        "the same memory as another: a real step changes both, and an unroll would change one. Give "
                        "each a copy (.clone())."
                    )
            elif frozen:
                self._unwritten.append((mine, clone))
                _exchange(mine, clone)
        unwritten = {id(mine) for mine, _ in self._unwritten}
        self._copied = [i for i in pairs if id(self._carried[i]) not in unwritten]
        self._clones = [pairs[i] for i in self._copied]

    def written_after_all(self) -> list[Tensor]:
        """What a later loss has written to, put back as it was."""
        changed = [(mine, clone) for mine, clone in self._unwritten if not _equal(mine, clone)]
        for mine, clone in changed:
            mine.data.copy_(clone)
        return [mine for mine, _ in changed]


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(((one == other) | (one != one)).all())


def overlapping(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs that lie in the same memory."""
    spans: list[tuple[int, int, Tensor]] = []
    for t in tensors:
        if t.layout is torch.strided and t.numel() and (start := t.data_ptr()):
            entries = 1 + sum((n - 1) * stride for n, stride in zip(t.shape, t.stride(), strict=True))
            spans.append((start, start + entries * t.itemsize, t))
    spans.sort(key=lambda span: span[:2])
    for (_, end, one), (start, _, other) in pairwise(spans):
        if start < end and one is not other:
            yield one, other


def copies(buffers: Iterable[Tensor]) -> list[Tensor]:
    """Tensors with the same content."""
    return [b.detach().clone() for b in buffers]


def _restore(now: dict[str, Any], before: dict[str, Any]) -> None:
    """All that a forward pass leaves on its module: hidden features, a weight that a legacy norm made, a flag, a count.

    A layer that initialises itself from its first batch notes that it has, and here it has not.
    """
    if len(now) != len(before) or not all(map(is_, now.values(), before.values())):
        for name in [n for n in now if n not in before]:
            del now[name]
        now.update(before)


def all_parameters(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Every parameter of these modules, each once, in the order of ``nn.Module.parameters``."""
    return list({id(p): p for m in modules for p in m._parameters.values() if p is not None}.values())


def all_modules(roots: Iterable[nn.Module]) -> list[nn.Module]:
    """Every module under ``roots``, wrappers and what they wrap included, each once, in the order of ``modules()``."""
    found: dict[int, nn.Module] = {}

    def visit(module: nn.Module | None) -> None:
        if module is not None and id(module) not in found:
            found[id(module)] = module
            for child in module._modules.values():
                visit(child)

    for root in roots:
        visit(root)
    return list(found.values())
