"""Read off the live objects what a step depends on: the tensors it computes with, and everything else as a key.

Two states with equal keys have the same structure, options and counts, so a trace recorded in one serves in the other.
"""

import array
import ctypes
import numbers
import types
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...live.belongings import class_attributes
from ...live.memory import address
from ...live.restore import contents
from ...live.snapshot import ATOMS, parts
from .places import Places, named

# What a step may advance or fill, and a snapshot cannot restore.
_NOT_PUT_BACK = (Iterator, array.array, ctypes._SimpleCData, ctypes.Array, ctypes.Structure, memoryview)


class _Same:
    """A stand-in for an object that is compared by identity, and not looked into."""

    def __init__(self, one: Any) -> None:
        self.one = one

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.one is other.one

    def __hash__(self) -> int:
        return id(self.one)


class Key:
    """All that a step depends on except tensors. Keys compare by content; the costly hash is computed once."""

    def __init__(self, content: list[Any], counts: list[Any]) -> None:
        self.content, self.counts = tuple(content), tuple(counts)
        self._hash = hash((self.content, self.counts))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Key):
            return False
        return self._hash == other._hash and self.content == other.content and self.counts == other.counts

    def __hash__(self) -> int:
        return self._hash


class View(NamedTuple):
    """A tensor in the memory of another one."""

    tensor: Tensor  # The view.
    base: Tensor  # The tensor that covers this memory.
    place: tuple[torch.Size, tuple[int, ...], int]  # The size, strides and offset of the view.

    def of(self, base: Tensor) -> Tensor:
        """Return the same view of another tensor like ``base``."""
        shape, _, start = self.place
        if self.tensor.is_contiguous() or not self.tensor.numel():
            return base.reshape(-1)[start : start + shape.numel()].view(shape)
        return base.as_strided(*self.place)


class Seen(NamedTuple):
    """What was seen of an optimizer in some state."""

    key: Key  # Everything but parameters, gradients and holes.
    holes: list[Tensor]  # The tensors that a step computes with besides parameters and gradients: inputs of its trace.
    constants: list[Tensor]  # Numbers that the optimizer keeps as tensors, such as counts; their values are in the key.
    views: list[View]  # Tensors in the memory of a parameter or a hole.
    foreign: list[Tensor]  # Tensors of the discriminator that the optimizer can reach, but may neither use nor change.
    knows_modules: bool  # Whether the optimizer can reach any module.
    places: Places  # The place of each entry of the key.
    paths: dict[int, str]  # The path of each tensor, by its id.

    def other_counts(self, other: "Seen") -> list[str]:
        """Return the paths of the constants whose values differ, if nothing else does."""
        if self.key.content != other.key.content:
            return []
        pairs = zip(self.constants, self.key.counts, other.key.counts, strict=True)
        return [self.paths[id(t)] for t, one, two in pairs if one != two]

    def difference(self, other: "Seen") -> str:
        """Return the path of the first difference to another state."""
        pairs = zip(self.key.content, other.key.content, strict=False)
        return self.places.path(next((i for i, (a, b) in enumerate(pairs) if a != b), 0))


def look(stepper: Any, params: Sequence[Tensor], promoted: Collection[str] = ()) -> Seen:
    """Return what is seen of an optimizer now, without changing anything.

    ``promoted`` are the paths of numbers, kept as tensors, that depend on gradients and so are no constants.

    Raises:
        TypeError: the optimizer holds a tensor that an unroll cannot carry.
    """
    position = {id(p): i for i, p in enumerate(params)}
    number_of: dict[int, int] = {}
    key: list[Any] = []
    places, paths = Places(), {}
    tensors: list[Tensor] = []
    foreign: list[Tensor] = []
    # The last entry is whether the object is inside a module whose parameters the optimizer steps.
    todo: list[tuple[Any, int, str, bool]] = [(stepper, -1, "", False)]
    classes: set[type] = set()
    # The ids of dicts that hold attributes, whose entries are named with a dot.
    fields: set[int] = set()
    # The numbers of modules and of the objects inside them.
    modular: set[int] = set()
    while todo:
        one, above, name, inside = todo.pop()
        kind, number = type(one), places.add(above, name, len(key))
        # Numbers of numpy's are new objects each time, too.
        if kind in ATOMS or isinstance(one, numbers.Number):
            key += (kind, one if one == one else "nan")
            continue
        if isinstance(one, _NOT_PUT_BACK):
            raise TypeError(f"it holds a {kind.__name__} in {places.of(number)}, which cannot be put back after a step")
        if (known := number_of.get(id(one))) is not None:
            key += (_Same, known)
            continue
        number_of[id(one)] = number
        key.append(kind)
        for cls, attribute, value in class_attributes(kind, classes):
            if type(value) in ATOMS:
                key += (cls, attribute, value)
        if isinstance(one, nn.Module) and not inside:
            inside = any(id(p) in position for p in one.parameters())
            modular.add(number)
        children = parts(one)
        if isinstance(one, Tensor):
            paths[id(one)] = places.of(number)
            if (at := position.get(id(one))) is not None:
                key.append(at)
            elif inside:
                foreign.append(one)
            else:
                _check(one, paths[id(one)], above in modular)
                tensors.append(one)
            key += (one.shape, one.dtype, one.device, one.requires_grad)
        elif isinstance(one, (set, frozenset)):
            # The order in a set depends on ids and hashes, so it says nothing.
            children = sorted(children or (), key=lambda e: (0, repr(e)) if type(e) in ATOMS else (1, str(id(e))))
            key += [_Same(e) for e in children if type(e) not in ATOMS]
        elif (content := contents(one)) is not None:
            key.append(content)
        elif isinstance(one, types.FunctionType):
            key.append(_Same(one.__code__))
        if not children and not isinstance(one, (list, tuple, dict, set, frozenset, Tensor)):
            key.append(_Same(one))
        key.append(len(children or ()))
        if (attributes := getattr(one, "__dict__", None)) is not None:
            fields.add(id(attributes))
        if above in modular:
            modular.add(number)
        todo += [(c, number, n, inside) for n, c in reversed(named(one, children or (), id(one) in fields, position))]
    holes, constants, views = _sorted_out(params, tensors, key, paths, promoted)
    return Seen(Key(key, [t.item() for t in constants]), holes, constants, views, foreign, bool(modular), places, paths)


def _check(tensor: Tensor, path: str, of_a_module: bool) -> None:
    if tensor.requires_grad and tensor.is_leaf and not of_a_module:
        raise TypeError(f"it holds a tensor that requires grad and that it does not step, in {path}")
    if tensor.layout is not torch.strided:
        raise TypeError(f"it holds a tensor that is not dense, in {path}")


def _sorted_out(
    params: Sequence[Tensor],
    tensors: list[Tensor],
    key: list[Any],
    paths: dict[int, str],
    promoted: Collection[str],
) -> tuple[list[Tensor], list[Tensor], list[View]]:
    """Divide the tensors into holes, constants and views, and note that in the key."""
    every = [*params, *tensors]
    holes: list[Tensor] = []
    constants: list[Tensor] = []
    views: list[View] = []
    together: dict[int, list[Tensor]] = {}
    for t in every:
        if t.layout is torch.strided and t.numel():
            together.setdefault(address(t), []).append(t)
    lying = {id(v.tensor): v for group in together.values() if len(group) > 1 for v in _views(group, params, paths)}
    shared = {id(v.base) for v in lying.values()}
    order = {id(t): i for i, t in enumerate(every)}
    for i, t in enumerate(every):
        path = paths.get(id(t), "")
        if (view := lying.get(id(t))) is not None:
            views.append(view)
            key += ("view", i, order[id(view.base)], view.place)
        elif i < len(params):
            continue
        elif id(t) not in shared and path not in promoted and _is_count(t, path):
            constants.append(t)
            key.append("constant")
        else:
            holes.append(t)
            key.append("hole")
    return holes, constants, views


def _is_count(tensor: Tensor, path: str) -> bool:
    """Return whether a tensor may be a count, as torch's optimizers keep it in a tensor and read it out in steps."""
    return tensor.numel() == 1 and (tensor.dim() == 0 or path.endswith("['step']"))


def _views(group: list[Tensor], params: Sequence[Tensor], paths: dict[int, str]) -> Iterable[View]:
    """Return the views among tensors in one memory: all but the one that covers it, or none if no two overlap."""
    whole = group[0].untyped_storage().nbytes()
    base = next(
        (t for t in group if t.is_contiguous() and t.storage_offset() == 0 and t.numel() * t.element_size() == whole),
        None,
    )
    if base is not None and all(t.dtype is base.dtype for t in group):
        return [View(t, base, (t.shape, t.stride(), int(t.storage_offset()))) for t in group if t is not base]
    ends = 0
    for t in sorted(group, key=lambda t: t.storage_offset() * t.element_size()):
        start = t.storage_offset() * t.element_size()
        if start < ends or not t.is_contiguous():
            mine = {id(p) for p in params}
            other = "a parameter's memory" if any(id(o) in mine for o in group) else "memory that others hold, too"
            path = next((paths[id(o)] for o in group if id(o) in paths and id(o) not in mine), paths.get(id(t), ""))
            raise TypeError(f"{path} holds a view of {other}, of another kind or in part")
        ends = start + t.numel() * t.element_size()
    return []
