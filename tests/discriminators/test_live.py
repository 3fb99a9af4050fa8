"""A snapshot of live objects: whatever happens to them, `restore` puts it back bit for bit."""

import copy
import functools
import random
import threading
import types
from collections import Counter, OrderedDict, deque
from weakref import WeakKeyDictionary

import numpy
import pytest
import torch
from snapshot import describe
from torch import nn

from unroll_wrap.live.snapshot import Snapshot

CASES = {}


def case(make):
    """A function that returns roots, a function that spoils what they lead to, and one that looks at it."""
    CASES[make.__name__] = make
    return make


class Plain:
    def __init__(self, **attributes):
        vars(self).update(attributes)


class Slotted:
    __slots__ = ("tensor", "count", "later")

    def __init__(self):
        self.tensor, self.count = torch.ones(3), 0


class Checked(dict):
    def __setitem__(self, key, value):
        raise AssertionError("a snapshot asks no container of the user's")


def stepped(kind, **options):
    torch.manual_seed(0)
    D = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    optimizer = kind(D.parameters(), lr=0.1, **options)

    def step():
        optimizer.zero_grad()
        D(torch.randn(4, 2)).square().sum().backward()
        optimizer.step()

    step()
    return D, optimizer, step


@case
def adam():
    D, optimizer, step = stepped(torch.optim.Adam, amsgrad=True)
    return [D, optimizer], step, lambda: (*map(vars, D.modules()), vars(optimizer))


@case
def adam_that_has_not_stepped():
    D, optimizer, step = stepped(torch.optim.Adam)
    optimizer.state.clear()
    return [optimizer], step, lambda: (len(optimizer.state), *D.parameters())


@case
def memory_of_a_parameter():
    p = nn.Parameter(torch.ones(3))
    view = p.data.view(-1)

    def spoil():
        p.data = torch.zeros(2)
        p.grad = torch.ones(2)
        p.requires_grad_(False)
        p.mark = 1

    return [p], spoil, lambda: (p, p.data_ptr(), view, view.data_ptr(), *vars(p))


@case
def gradients():
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    p.grad = torch.full((3,), 2.0)

    def spoil():
        p.grad.mul_(3)
        p.grad, q.grad = None, torch.ones(3)

    return [[p, q]], spoil, lambda: (p, q)


@case
def tensors_that_share_memory():
    flat = torch.arange(6.0)
    parts, wide = [flat[:2], flat[2:].view(2, 2)], torch.ones(1).expand(4)

    def spoil():
        flat.zero_(), parts[1].add_(1)
        wide.untyped_storage().fill_(0)

    return [parts, {"wide": wide}], spoil, lambda: (parts, wide, wide.stride())


@case
def tensor_that_got_a_graph():
    state, p = torch.zeros(3), nn.Parameter(torch.ones(3))
    return [state], lambda: state.add_(p), lambda: state


@case
def not_a_number():
    t = torch.tensor([float("nan"), -0.0, float("inf")])
    return [t], t.zero_, lambda: (t, *torch.signbit(t).tolist())


@case
def containers():
    held = {"list": [1, [2]], "set": {1, 2}, "deque": deque([1, 2], maxlen=2), "bytes": bytearray(b"ab")}
    held |= {"ordered": OrderedDict(a=1, b=2), "counter": Counter("aab"), "tuple": (1, [2]), "frozen": frozenset({1})}
    plain = Plain(**held)

    def spoil():
        held["list"][1].append(3), held["set"].add(3), held["deque"].append(3), held["bytes"].append(3)
        held["ordered"].move_to_end("a"), held["counter"].update("b"), held["tuple"][1].clear()
        held["new"] = 1
        plain.list, plain.more = [], 2
        plain.__dict__ = {}

    def look():
        lists = [held["deque"], held["set"], held["bytes"]]
        return held, *map(tuple, lists), tuple(held["ordered"]), held["deque"].maxlen, vars(plain)

    return [held, plain], spoil, look


@case
def a_dict_of_its_own_class():
    held = Checked()
    dict.__setitem__(held, "a", 1)
    return [held], lambda: dict.update(held, a=2, b=3), lambda: tuple(held.items())


@case
def slots():
    one = Slotted()

    def spoil():
        one.tensor.add_(1)
        one.count += 1000
        one.later = 1

    return [one], spoil, lambda: (one.tensor, one.count, hasattr(one, "later"))


@case
def keys_that_are_tensors():
    p = nn.Parameter(torch.ones(2))
    weak = WeakKeyDictionary({nn.Module(): [1]})
    held = Plain(of={(p, "momentum"): torch.zeros(2)})

    def spoil():
        with torch.no_grad():
            p.add_(1)
        held.of[p, "momentum"].add_(1)

    return [held, weak], spoil, lambda: (p, held.of[p, "momentum"])


@case
def closures_defaults_and_bound_methods():
    count, default, owner = [0], {"n": 0}, Plain(n=0)
    tensor, cell = torch.zeros(2), 0

    def wrapped(n, kept=default, *, other=[0]):  # noqa: B006
        nonlocal cell
        cell += n
        count[0] += n
        kept["n"] += n
        other[0] += n
        tensor.add_(n)
        wrapped.calls = n

    partial = functools.partial(wrapped, n=1)
    method = types.MethodType(lambda self: vars(self).update(n=self.n + 1), owner)
    return (
        [partial, method],
        lambda: (partial(), method()),
        lambda: (cell, count, default, wrapped.__kwdefaults__, tensor, owner.n, hasattr(wrapped, "calls")),
    )


@case
def sources_of_random_numbers():
    torchs, pythons, numpys = torch.Generator(), random.Random(0), numpy.random.default_rng(0)
    old, bits = numpy.random.RandomState(0), numpy.random.PCG64(0)

    def draw():
        drawn = torch.rand((), generator=torchs).item(), pythons.random(), numpys.random(), old.rand()
        return *drawn, bits.random_raw()

    def look():
        states = numpys.bit_generator.state, bits.state, old.get_state()[1].tolist(), torchs.get_state().tolist()
        return str(states), pythons.getstate()

    return [Plain(sources=(torchs, pythons, numpys, old, bits))], draw, look


@case
def arrays():
    held = {"a": numpy.arange(3.0), "view": numpy.broadcast_to(numpy.ones(1), (3,))}
    return [held], lambda: held["a"].fill(0), lambda: (*held["a"].tolist(), id(held["a"]))


@case
def hooks_on_a_parameter():
    p = nn.Parameter(torch.ones(2))
    return [p], lambda: p.register_hook(lambda g: 3 * g), lambda: tuple(torch.autograd.grad(p.sum(), p)[0].tolist())


@case
def scripted():
    D = torch.jit.script(nn.Linear(2, 1))

    def spoil():
        with torch.no_grad():
            D.weight.add_(1)

    return [D], spoil, lambda: str(D.weight.tolist())


@case
def attributes_of_a_class():
    class Shared(Plain):
        count, seen, mean = 0, [1], torch.ones(2)

    def spoil():
        Shared.count += 1
        Shared.seen.append(2)
        Shared.mean.add_(1)

    return [Shared()], spoil, lambda: (Shared.count, *Shared.seen, Shared.mean)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CASES)
def test_everything_is_put_back(name):
    """And the control: it had changed. Twice, since a snapshot may be asked for again."""
    roots, spoil, look = CASES[name]()
    snapshot = Snapshot(roots)
    before = describe(look())
    for _ in range(2):
        spoil()
        assert describe(look()) != before
        snapshot.restore()
        assert describe(look()) == before


def test_nothing_that_has_not_changed_is_touched():
    """Restoring at once: no version moves, no container is refilled."""
    D, optimizer, _ = stepped(torch.optim.Adam)

    class Same(dict):
        clear = __setitem__ = update = None

    optimizer.param_groups[0] = Same(optimizer.param_groups[0])
    before = describe(vars(optimizer)), describe(tuple(D.parameters()))
    Snapshot([optimizer]).restore()
    assert (describe(vars(optimizer)), describe(tuple(D.parameters()))) == before


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_as_a_context(error):
    """Whatever happens inside."""
    D, optimizer, step = stepped(torch.optim.SGD, momentum=0.9)
    before = describe(vars(optimizer)), describe(tuple(D.parameters()))
    try:
        with Snapshot([optimizer]):
            step()
            if error:
                raise error
    except (ValueError, KeyboardInterrupt) as raised:
        assert type(raised) is error
    assert (describe(vars(optimizer)), describe(tuple(D.parameters()))) == before


def test_an_interrupt_while_it_puts_back():
    """It starts over, and the interrupt goes on."""
    tensor, counted = torch.zeros(2), []

    class Late(Snapshot):
        def restore(self):
            counted.append(1)
            if len(counted) == 1:
                raise KeyboardInterrupt
            super().restore()

    with pytest.raises(KeyboardInterrupt), Late([tensor]):
        tensor.add_(1)
    assert tensor.tolist() == [0, 0] and len(counted) == 2


def test_a_graph_made_before_is_differentiated_after():
    """Memory, value and version are what the graph has saved. The control: without the snapshot it refuses."""
    D, optimizer, step = stepped(torch.optim.SGD)
    x = torch.ones(4, 2, requires_grad=True)
    loss = D(x).square().sum()
    expected = torch.autograd.grad(loss, x, retain_graph=True)[0]
    with Snapshot([D, optimizer]):
        step()
    assert torch.equal(torch.autograd.grad(loss, x, retain_graph=True)[0], expected)
    step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, x)


counted = [0]
total = 0


def uses_globals():
    global total
    total += 1
    counted[0] += 1


@pytest.mark.parametrize("names", [False, True])
def test_global_names_are_another_matter(names):
    """Only for those who ask for them."""
    before = total, counted[0]
    with Snapshot([uses_globals], names=names):
        uses_globals()
    assert ((total, counted[0]) == before) is names


CHANGES = {
    "an attribute": (lambda one: setattr(one, "count", 1), ["'count' of a dict"]),
    "a list": (lambda one: one.list.append(2), ["1 of a list"]),
    "a class": (lambda one: setattr(type(one), "shared", 1), ["shared of a type"]),
    "a generator": (lambda one: one.random.random(), ["a Random"]),
    "an array": (lambda one: one.array.fill(2.0), ["a ndarray"]),
    "a tensor": (lambda one: one.tensor.add_(1), []),
    "another tensor": (lambda one: setattr(one, "tensor", torch.zeros(2)), []),
    "the same number": (lambda one: setattr(one, "count", 0), []),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_has_changed_is_told(what):
    """In words, tensors apart."""

    class Kept(Plain):
        shared = 0

    one = Kept(count=0, list=[1], random=random.Random(0), array=numpy.ones(2), tensor=torch.ones(2))
    change, told = CHANGES[what]
    with Snapshot([one]) as before:
        assert list(before.changes()) == []
        change(one)
        assert list(before.changes()) == told


def test_what_it_does_not_look_into():
    """Threads, locks, data sets, classes: as they are, and no error."""
    data = torch.utils.data.TensorDataset(torch.zeros(2))
    loader = torch.utils.data.DataLoader(data)
    held = Plain(
        lock=threading.Lock(), thread=threading.current_thread(), data=data, loader=loader, kind=Plain, it=iter([1])
    )
    with Snapshot([held]):
        data.tensors[0].add_(1)
        next(held.it)
    assert data.tensors[0].tolist() == [1, 1]


def test_circles_end():
    """An optimizer and its scheduler hold each other."""
    one, other = Plain(), Plain(n=0)
    one.other, other.one = other, one
    with Snapshot([one]):
        other.n = 5
    assert other.n == 0


def test_a_copy_is_never_made():
    """Objects that cannot be copied are no obstacle."""
    held = Plain(lock=threading.Lock(), n=0)
    with pytest.raises(TypeError):
        copy.deepcopy(held)
    with Snapshot([held]):
        held.n = 1
    assert held.n == 0
