"""Tensors in and out of the user's own objects.

A loss reaches the discriminator in many ways: as an argument, through ``self.netD``, a loss object, a closure over one
of its parameters. A parameter's class, its attributes and its identity may count as well. So the user's own tensor
objects stay where they are, and for the time of an unroll they exchange what they hold with tensors of the unroll's:
``torch.utils.swap_tensors`` does the same. The exchange is undone whatever happens.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..live.looks import Looks
from ..live.undo import Undo
from .frozen import left_alone, put_back_written
from .holders import Holders
from .shield import shielded, unshield

_exchange = torch._C._swap_tensor_impl


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
        self.rewinds = rewinds
        # The unroll's tensors with which the user's have exchanged what they hold: for parameters, and for the others.
        self._inside: Sequence[Tensor] = ()
        self._clones: Sequence[Tensor] = ()
        self._in_slots = self._entered = False
        self.holders = holders = Holders(modules, params)
        self._params, self._carried = holders.params, holders.carried
        self._places, self._slots = holders.places, holders.slots
        self._looks = Looks(modules, holders.hidden, holders.belongings, holders.live)
        self._copied = list(range(len(self._carried)))
        self._unwritten: list[tuple[Tensor, Tensor]] = []
        self._learned = False
        # Pairs that lie in the same memory, which their clones do not.
        self.shared: Sequence[tuple[Tensor, Tensor]] = ()

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
        self._looks.note()
        self._hooks = [(p, p._backward_hooks) for p in self._params if p._backward_hooks is not None]
        self._handles = RemovableHandle.next_id
        self._entered = True

    def __exit__(self, *_: object) -> None:
        """Put everything back as it was; to do so twice does no harm."""
        self._home()
        self._after_exchange()
        unshield(self._params)
        self._looks.restore()
        self._inside = self._clones = ()
        put_back_written(self._unwritten)
        self._entered = False

    def originals(self) -> tuple[Tensor, ...]:
        """The live buffers, and the parameters that nothing trains."""
        return tuple(self._carried)

    def contents(self) -> Any:
        """What attributes and containers hold now, if that will be asked for."""
        return self._looks.contents() if self.rewinds else None

    def put(self, params: Sequence[Tensor], buffers: Sequence[Tensor], contents: Any = None) -> None:
        """Let the modules use ``params`` and clones of ``buffers``.

        Clones, afresh for every evaluation: an in-place update, or one through ``.data`` that autograd cannot
        see, would otherwise change what an earlier step has saved for its backward pass.
        """
        self.out()
        if contents is not None:
            self._looks.put(contents)
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

    def shielded(self) -> AbstractContextManager[None]:
        """Return a context in which the parameters require grad, whatever a loss asks of them."""
        return shielded(self._params)

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
        pairs = dict(zip(self._copied, self._clones, strict=True))
        alone = left_alone(self._carried, pairs, self.shared)
        for i in alone:
            self._unwritten.append((self._carried[i], pairs[i]))
            _exchange(self._carried[i], pairs[i])
        self._copied = [i for i in pairs if i not in alone]
        self._clones = [pairs[i] for i in self._copied]

    def check_unwritten(self) -> None:
        """Put back the frozen parameters that a later loss has written to.

        Raises:
            ValueError: there are some.
        """
        if written := put_back_written(self._unwritten):
            raise ValueError(
                f"A loss writes to frozen parameters of D, of shapes {written[:4]}, but not when it runs for the first "
                "time. Make them buffers (register_buffer)."
            )


def copies(buffers: Iterable[Tensor]) -> list[Tensor]:
    """Tensors with the same content."""
    return [b.detach().clone() for b in buffers]
