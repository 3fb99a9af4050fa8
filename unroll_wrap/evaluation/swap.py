"""Put an unroll's tensors into the user's own tensor objects, and take them out again.

A loss reaches the discriminator in many ways: as an argument, through ``self.netD``, a loss object, a closure over one
of its parameters. A parameter's class, its attributes and its identity may matter as well. So the user's own tensor
objects stay where they are, and during an unroll they exchange their contents with the unroll's tensors, as
``torch.utils.swap_tensors`` does; where torch refuses that, the unroll's tensors stand in for them. Either is undone
whatever happens.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..live.module_state import ModuleState
from ..live.undo import Undo
from .carried import copies, without_graph
from .exchange import Exchange
from .holders import Holders
from .shield import shielded
from .written import left_alone, put_back_written


class Swap:
    """The exchange of contents between the tensors of some modules and those of an unroll.

    As a context manager, it restores every parameter, buffer, attribute, flag and container entry at the end. If it
    ``rewinds``, steps run in another order than in training, so that what a forward pass leaves in containers has to be
    restored before each step.
    """

    def __init__(self, modules: Sequence[nn.Module], params: Sequence[Tensor], rewinds: bool = False) -> None:
        self.modules = modules
        self.rewinds = rewinds
        # The unroll's tensors that hold the user's contents now: those of parameters, and those of carried tensors.
        self._inside: Sequence[Tensor] = ()
        self._clones: Sequence[Tensor] = ()
        self._in_slots = self._entered = False
        self.holders = holders = Holders(modules, params)
        self._params, self._carried = holders.params, holders.carried
        self._exchange = Exchange([*self._params, *self._carried])
        # Of the user's tensors that take part.
        self.ids = {*map(id, self._params), *map(id, self._carried)}
        self._places, self._slots = holders.places, holders.slots
        self.frozen = [t for t in holders.carried if isinstance(t, nn.Parameter)]
        self._state = ModuleState(modules, holders.hidden, holders.belongings, [*holders.live, *self.frozen])
        self._copied = list(range(len(self._carried)))
        self._unwritten: list[tuple[Tensor, Tensor]] = []
        self._learned = False
        # Pairs that share memory, unlike their clones.
        self.shared: Sequence[tuple[Tensor, Tensor]] = ()

    def stand_in(self) -> None:
        """Let the unroll's tensors stand in for the user's from now on, in this call."""
        self._exchange.stand_in()

    def enter(self, undo: Undo) -> None:
        """Enter this context until ``undo`` leaves it."""
        self.__enter__()
        undo.later(self.__exit__)

    def __enter__(self) -> None:
        """Note the state to return to."""
        self._exchange.note()
        self._state.note()
        self._hooks = [(p, p._backward_hooks) for p in self._params if p._backward_hooks is not None]
        self._handles = RemovableHandle.next_id
        self._entered = True

    def __exit__(self, *_: object) -> None:
        """Put everything back as it was, as often as you like."""
        self._exchange.home()
        self._after_exchange()
        self._state.restore()
        self._inside = self._clones = ()
        put_back_written(self._unwritten)
        self._entered = False

    def originals(self) -> tuple[Tensor, ...]:
        """Return the live buffers, frozen parameters and unregistered tensors."""
        return tuple(without_graph(t) if t.grad_fn is not None else t for t in self._carried)

    def contents(self) -> Any:
        """Return what attributes and containers hold now, or None if no step needs it restored."""
        return self._state.contents() if self.rewinds else None

    def put(self, params: Sequence[Tensor], buffers: Sequence[Tensor], contents: Any = None) -> None:
        """Put ``params`` and clones of ``buffers`` into the modules.

        Every evaluation gets fresh clones: an in-place update, or one through ``.data`` that autograd cannot see,
        would otherwise change what an earlier step has saved for its backward pass.
        """
        self.out()
        if contents is not None:
            self._state.put(contents)
        clones = copies(buffers[i] for i in self._copied)
        self._inside, self._clones = params, clones
        self._put_inside()
        for container, key, i in self._places:
            if container.get(key) is not self._carried[i] and isinstance(container.get(key), Tensor):
                container[key] = self._carried[i]

    def out(self) -> None:
        """Return their own contents to the user's tensors."""
        if self._in_slots:
            self._fill_slots(self._params, self._carried)
            self._in_slots = False
        if self._inside or self._clones:
            if self._hooks or self._handles != RemovableHandle.next_id:
                for p in self._params:
                    p._backward_hooks = None
            self._exchange.out()
            self._inside = self._clones = ()
            self._after_exchange()

    def _put_inside(self) -> None:
        if not (self._inside or self._clones):
            return
        copied = [self._carried[i] for i in self._copied]
        self._exchange.put([*self._params, *copied], [*self._inside, *self._clones])
        for p, _ in self._hooks:
            p._backward_hooks = None

    def _after_exchange(self) -> None:
        for p, hooks in self._hooks:
            p._backward_hooks = hooks

    def put_in_slots(self, params: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
        """Put tensors in the places of the user's instead, for a tracer, which knows tensors by their objects."""
        self.out()
        self._in_slots = True
        self._fill_slots(params, copies(buffers))

    def _fill_slots(self, params: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
        for container, key, i in self._slots:
            container[key] = params[i]
        for container, key, i in self._places:
            container[key] = buffers[i]

    def inside(self) -> Sequence[Tensor]:
        """Return the parameters that are in the modules now, as passed to ``put``."""
        return self._inside

    def handles(self, params: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the objects that hold the contents of ``params``: the user's own, while ``params`` are in D."""
        return self._params if params is self._inside and not self._exchange.stand_ins else params

    def lent(self, params: Sequence[Tensor]) -> set[int]:
        """Return the ids of the objects that hold the user's contents while ``params`` are in D."""
        if params is not self._inside:
            return set()
        return set(map(id, self._params if self._exchange.stand_ins else params))

    @contextmanager
    def holding(self, params: Sequence[Tensor], buffers: Sequence[Tensor]) -> Iterator[None]:
        """Put ``params`` and clones of ``buffers`` into the modules, and at the end what was there before."""
        before, inside = (self._inside, self._clones), self._entered
        try:
            with nullcontext() if inside else self:
                self.put(params, buffers)
                yield
        finally:
            if inside:
                # Not out(), which assumes that the exchange was completed.
                self._exchange.home()
                self._after_exchange()
                self._inside, self._clones = before
                self._put_inside()

    def shielded(self) -> AbstractContextManager[None]:
        """Return a context in which the parameters require grad, whatever a loss asks of them."""
        return shielded(self._params)

    def buffers(self) -> tuple[Tensor, ...]:
        """Return the buffers as the last loss has left them."""
        now = list(self._carried)
        for i in () if self._in_slots else self._copied:
            now[i] = without_graph(now[i])
        for container, key, i in self._places:
            value = container.get(key)
            if value is not self._carried[i] and isinstance(value, Tensor):
                now[i] = without_graph(value)
        return tuple(now)

    def marks(self) -> list[tuple[int, int]]:
        """Return the identity and version of each buffer and unregistered tensor, as a write changes one of them."""
        return [(id(t), t._version) for t in self._kept()]

    def attached(self) -> set[int]:
        """Return the ids of buffers and unregistered tensors that have a graph now."""
        return {id(t) for t in self._kept() if t.requires_grad}

    def _kept(self) -> list[Tensor]:
        now = [*self._carried, *(container.get(key) for container, key, _ in self._places)]
        return [t for t in now if isinstance(t, Tensor)]

    def after_loss(self) -> tuple[tuple[Tensor, ...], Any]:
        """Return the buffers and contents that ``d_loss`` has left."""
        if not (self._learned or self._in_slots):
            self._learned = True
            self._learn()
        return self.buffers(), self.contents()

    def _learn(self) -> None:
        """Take frozen parameters that the first loss has not written to out of the exchange: they need no clones."""
        if stand_ins := self._exchange.stand_ins:
            left_alone(self._carried, {i: stand_ins.contents[id(t)] for i, t in enumerate(self._carried)}, self.shared)
            return
        pairs = dict(zip(self._copied, self._clones, strict=True))
        unwritten = left_alone(self._carried, pairs, self.shared)
        self._unwritten = [(self._carried[i], pairs[i]) for i in unwritten]
        self._exchange.give_back(self._unwritten)
        self._copied = [i for i in pairs if i not in unwritten]
        self._clones = [pairs[i] for i in self._copied]

    def check_returned(self) -> None:
        """Raise RuntimeError if the user's tensors hold their contents, but could not take them back."""
        self._exchange.check_refused()

    def check_unwritten(self) -> None:
        """Raise ValueError if a later loss has written to frozen parameters, and restore these."""
        if written := put_back_written(self._unwritten):
            raise ValueError(
                f"A loss writes to frozen parameters of D, of shapes {written[:4]}, but not when it runs for the first "
                "time. Make them buffers (register_buffer)."
            )
