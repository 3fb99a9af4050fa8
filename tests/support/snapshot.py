"""Nothing of the user's changes: a full record of modules and optimizers, and what differs between two of them."""

import weakref

import torch
from reference import discriminators

PLAIN = (bool, int, float, str, type(None))


def describe(value, seen=(), rebuilt=False):
    """A comparable record: tensors by identity, version, flags, value and grad; containers by identity and content.

    A list may be another one of the same content if `rebuilt`.
    """
    if isinstance(value, torch.Tensor):
        grad = None if value.grad_fn is not None or value.grad is None else describe(value.grad)
        flags = value._version, value.requires_grad, value.is_leaf, type(value.grad_fn).__name__
        return ("tensor", id(value), *flags, Bits(value.detach().clone()), grad)
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, weakref.ref):
        return ("weakref", id(value()))
    if id(value) in seen:
        return ("again", id(value))
    seen = (*seen, id(value))
    if isinstance(value, dict):
        items = [(key if isinstance(key, PLAIN) else id(key), describe(one, seen)) for key, one in value.items()]
        return ("dict", id(value), items)
    if isinstance(value, (list, tuple)):
        place = 0 if rebuilt or isinstance(value, tuple) else id(value)
        return (type(value), place, [describe(one, seen) for one in value])
    return (type(value), id(value))


class Bits:
    """A tensor's dtype, shape and exact content, NaN equal to itself."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __eq__(self, other):
        a, b = self.tensor, other.tensor
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
            and torch.equal(torch.isnan(a), torch.isnan(b))
        )

    def __repr__(self):
        return repr(self.tensor)


def snapshot(world) -> dict:
    """Everything reachable from the world's discriminators, generator and optimizers, under readable names."""
    record = {}
    for place, root in [*enumerate(discriminators(world.discriminator)), ("generator", world.generator)]:
        for name, module in root.named_modules():
            for key, value in vars(module).items():
                # torch itself makes these lists anew whenever a weight is assigned; their content has to be the same.
                record[f"{place}.{name}.{key}"] = describe(value, rebuilt=key.startswith("_flat_weight"))
            record[f"{place}.{name}.type"] = type(module)
    for place, optimizer in enumerate(world.optimizers()):
        for key, value in vars(optimizer).items():
            record[f"optimizer{place}.{key}"] = describe(value)
        record[f"optimizer{place}.type"] = type(optimizer)
    return record


def changed(before, after) -> list[str]:
    """The names whose record differs, added and removed ones included."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
