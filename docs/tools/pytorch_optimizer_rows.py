"""Every class of the package pytorch_optimizer: how to build it, and what becomes of it in an unroll.

`test_pytorch_optimizer.py` holds every row to what it says; `optimizer_table.py` writes them into docs/optimizers.md.
"""

import inspect

import pytorch_optimizer
import torch

Optimizer = torch.optim.Optimizer


def classes():
    """Its own optimizers; torch's, which it exports as well, are rows of their own."""
    return {
        name: kind
        for name, kind in sorted(vars(pytorch_optimizer).items())
        if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind.__module__.startswith("pytorch_optimizer")
    }


def sgd(D):
    return torch.optim.SGD(D.parameters(), lr=0.05, momentum=0.5)


def matrices_and_vectors(D, **options):
    """For those that move matrices by another rule."""
    params = list(D.parameters())
    return [
        {"params": [p for p in params if p.dim() > 1], "use_muon": True, **options},
        {"params": [p for p in params if p.dim() < 2], "use_muon": False, **options},
    ]


def around(name):
    return lambda D: getattr(pytorch_optimizer, name)(sgd(D))


def for_matrices(name):
    return lambda D: getattr(pytorch_optimizer, name)(matrices_and_vectors(D))


def with_model(name):
    return lambda D: getattr(pytorch_optimizer, name)(D)


def with_base(name):
    return lambda D: getattr(pytorch_optimizer, name)(D.parameters(), torch.optim.SGD, lr=0.05)


def schedule_free(D):
    optimizer = pytorch_optimizer.ScheduleFreeWrapper(sgd(D))
    optimizer.train()
    return optimizer


class Constant:
    """A schedule."""

    def step(self):
        return 0.1


FACTORIES = {
    **{n: around(n) for n in ("Lookahead", "Magma", "OrthoGrad", "PCGrad", "SafeFP16Optimizer", "TRAC")},
    **{n: for_matrices(n) for n in ("AdaGO", "AdaMuon", "DistributedMuon", "Muon", "MuonClip", "NorMuon")},
    **{n: with_model(n) for n in ("AdaLOMO", "AdamMini", "LOMO")},
    **{n: with_base(n) for n in ("FriendlySAM", "LookSAM", "SAM")},
    "BSAM": lambda D: pytorch_optimizer.BSAM(D.parameters(), num_data=8),
    "GSAM": lambda D: pytorch_optimizer.GSAM(D.parameters(), sgd(D), D, Constant()),
    "Ranger21": lambda D: pytorch_optimizer.Ranger21(D.parameters(), num_iterations=100),
    "ScheduleFreeWrapper": schedule_free,
    "SpectralSphere": lambda D: pytorch_optimizer.SpectralSphere([p for p in D.parameters() if p.dim() > 1]),
    "WSAM": lambda D: pytorch_optimizer.WSAM(D, D.parameters(), torch.optim.SGD, lr=0.05),
}


def factory(name):
    """D → one of that class."""
    return FACTORIES.get(name) or (lambda D: classes()[name](D.parameters()))


ITEM = "it reads numbers out of tensors, by .item()"
CLOSURE = "its step() needs a closure, which evaluates the loss again"
REFUSED = {
    **dict.fromkeys(("ASGD", "AvaGrad", "MADGRAD", "Prodigy", "Ranger21"), ITEM),
    **dict.fromkeys(("DAdaptAdaGrad", "DAdaptAdam", "DAdaptAdan", "DAdaptLion", "DAdaptSGD"), ITEM),
    **dict.fromkeys(("AliG", "BSAM", "FriendlySAM", "GSAM", "LookSAM", "SAM", "WSAM"), CLOSURE),
    **dict.fromkeys(("AdaHessian", "SophiaH"), "it differentiates the gradients' graph, which an unroll takes apart"),
    **dict.fromkeys(("AdaLOMO", "LOMO"), "it steps inside the backward pass, by hooks on the parameters"),
    **dict.fromkeys(("Kron", "Magma"), "it draws random numbers"),
    "SCION": "operators on lists of tensors round otherwise; with foreach=False it is traced",
    "SCIONLight": "operators on lists of tensors round otherwise, and it keeps momentum in .grad",
    **dict.fromkeys(("DeMo", "DistributedMuon"), "it exchanges what it holds with other processes"),
    "FAdam": "it does not step float64 parameters",
    "SPAM": "it holds a parameter that it does not step",
    "SafeFP16Optimizer": "it steps copies of the parameters",
}
ROUNDS = "it rounds on its way: the value is that of its own steps, the derivative that of the same steps unrounded"
SIGN = "moves by a sign: the second term of Eq. 12 is zero almost everywhere"
NOTES = {
    **dict.fromkeys(("AdaFactor", "AdaGO", "AdaMuon", "AdamMini", "FlashAdamW", "Muon", "MuonClip", "NorMuon"), ROUNDS),
    "SpectralSphere": ROUNDS,
    **dict.fromkeys(("EmoFact", "EmoLynx", "FOCUS", "Lion", "SPlus", "SaRA", "SignSGD", "Tiger"), SIGN),
}


def rows():
    """Name, verdict and why, in the order of the names."""
    for name in classes():
        yield name, "refused" if name in REFUSED else "traced", REFUSED.get(name) or NOTES.get(name, "")
