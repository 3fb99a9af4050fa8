"""The discriminator that a user passes: one module, or a list, tuple or dict of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from ..messages import described


def modules_of(discriminator: Any) -> list[nn.Module]:
    """Return every module of the discriminator, submodules included, each once."""
    return all_modules(given_modules(discriminator))


def given_modules(discriminator: Any, who: str = "the discriminator") -> list[nn.Module]:
    """Return the modules that the user passed, without their submodules; messages call them ``who``."""
    found = list(discriminator.values()) if isinstance(discriminator, Mapping) else discriminator
    found = list(found) if isinstance(found, (list, tuple)) else [found]
    wrong = [m for m in found if not isinstance(m, nn.Module)]
    if wrong or not found:
        raise TypeError(
            f"{who.removeprefix('the ')} is {described(discriminator)}. Pass an instance of torch.nn.Module, or a "
            "list, tuple or dict of them, and after a player its optimizer, as in (D, opt_D, ...)."
        )
    return found


def named_parameters(discriminator: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield each parameter with its name; in a list or dict of modules the name begins with the index or the key."""
    if isinstance(discriminator, nn.Module):
        yield from discriminator.named_parameters()
        return
    parts = discriminator.items() if isinstance(discriminator, Mapping) else enumerate(discriminator)
    for key, module in parts:
        yield from ((f"{key}.{name}", p) for name, p in module.named_parameters())


def all_parameters(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Return every parameter of these modules, each once, in the order of ``nn.Module.parameters``."""
    return list({id(p): p for m in modules for p in m._parameters.values() if p is not None}.values())


def all_modules(roots: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the modules under ``roots``, wrappers and what they wrap included, each once, in ``modules()``'s order."""
    found: dict[int, nn.Module] = {}
    # No function that calls itself: as a reference cycle, it would keep the modules until a garbage collection.
    stack: list[nn.Module | None] = [*reversed([*roots])]
    while stack:
        module = stack.pop()
        if module is not None and id(module) not in found:
            found[id(module)] = module
            stack += reversed(module._modules.values())
    return list(found.values())


def check_modules(modules: Sequence[nn.Module], who: str) -> None:
    """Raise for a scripted module, whose parameters are not in Python, and for a lazy one before its first batch."""
    for module in modules:
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"{type(module).__name__} holds its parameters outside Python, where nothing can stand in for them. "
                "Pass the module that it was scripted or traced from."
            )
        if isinstance(module, LazyModuleMixin) and cast("Any", module).has_uninitialized_params():
            raise ValueError(
                f"{type(module).__name__}, a lazy module of {who}, has no tensors yet. Run {who} once on a batch "
                "before."
            )


def check_gradient_hooks(params: Iterable[Tensor]) -> None:
    """Raise ValueError if a hook is on the node that adds to a parameter's ``.grad``, which in an unroll never runs."""
    p: Any
    for p in params:
        # Without such a node there is no hook on it, and a node would be one more who uses the tensor.
        if p._use_count() == 1:
            continue
        # Most loops freeze D for the generator's step.
        frozen = not p.requires_grad
        try:
            node = torch.autograd.graph.get_gradient_edge(p.requires_grad_()).node
        finally:
            p.requires_grad_(not frozen)
        for register in (node.register_hook, node.register_prehook):
            handle: Any = register(lambda *_: None)
            others = len(handle.hooks_dict_ref()) - 1
            handle.remove()
            if others:
                raise ValueError(
                    f"A parameter of shape {tuple(p.shape)} has a hook on its AccumulateGrad node, which in an unroll "
                    "never runs. Remove the hook, and pass what it does as grad_transform=, or use p.register_hook."
                )
