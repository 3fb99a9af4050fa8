"""A call in a training loop, held against real steps of the live objects; and how many lines a loop changes."""

import difflib
import inspect
import re
from contextlib import contextmanager, nullcontext

import pytest
import reference
import torch

from unroll_wrap import UnrolledGeneratorLoss, verify

CALL = UnrolledGeneratorLoss.__call__
LOSS = re.compile(r"^( *)def [dg]_loss\(.*\n(?:\1 +.*\n)+", re.MULTILINE)


def changed_lines(before, after):
    """Lines that a diff adds or, if there are more, takes away, without blank ones and the two losses as functions."""
    after = LOSS.sub("", after)
    diff = [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[2:].strip()]
    return max(sum(line.startswith(sign) for line in diff) for sign in "+-")


def found(loss):
    """Tensors with a graph that a loss captures: in its closure, its globals, or as attributes of a captured object."""
    captured = inspect.getclosurevars(loss)
    values = [*captured.nonlocals.values(), *captured.globals.values()]
    values += [one for value in values if not isinstance(value, torch.nn.Module) for one in vars_of(value)]
    return [v for v in values if isinstance(v, torch.Tensor) and v.grad_fn is not None]


def vars_of(value):
    return vars(value).values() if hasattr(value, "__dict__") else ()


class Held:
    """A context in which a function of a script gives what it gave the first time round, call by call."""

    def __init__(self, names, name):
        self.names, self.name, self.original, self.first = names, name, names[name], None

    @contextmanager
    def __call__(self):
        recorded, replaying = self.first or [], iter(self.first or [])

        def stand_in(*args):
            if self.first is None:
                recorded.append(self.original(*args))
                return recorded[-1]
            return next(replaying)

        self.names[self.name] = stand_in
        try:
            yield
        finally:
            self.names[self.name], self.first = self.original, recorded


class Audit:
    """Stands in for the call: the third one is held against real steps of the live objects."""

    def __init__(self, name):
        self.name, self.calls, self.done = name, 0, False

    def __call__(self, unrolled, *batch, **options):
        self.calls += 1
        if self.calls == 3:
            self.audit(unrolled, batch, options)
            self.done = True
        return CALL(unrolled, *batch, **options)

    def audit(self, unrolled, batch, options):
        d_loss, g_loss = (options.get(key) or getattr(unrolled, key) for key in ("d_loss", "g_loss"))
        D = unrolled.discriminator
        modules = reference.discriminators(D)
        optimizers = [getattr(unrolled.optimizer, "optimizer", unrolled.optimizer)]
        names, held = inspect.getclosurevars(d_loss).globals, nullcontext
        inputs = [x for x in batch if x.requires_grad] or list({id(t): t for t in found(d_loss)}.values())
        if self.name == "biggan":
            # Its losses run the generator again, so there is no fake; and its power iteration is under no_grad, which
            # the derivative honours and a difference would see through.
            inputs, held = (
                list(names["GD"].G.parameters()),
                Held(type(names["GD"].D.linear).forward.__globals__, "power_iteration"),
            )
        assert inputs

        def steps():
            return reference.in_place(modules, optimizers, lambda: d_loss(D, *batch), 5)

        def value():
            with held(), steps():
                return g_loss(D, *batch).item()

        expected = value()
        ways = reference.directions(inputs, 2)
        slopes = [reference.central_difference(value, inputs, way, first=2e-5) for way in ways]
        with steps():
            first = reference.filled(g_loss(D, *batch), inputs)
        state = torch.get_rng_state()
        loss = CALL(unrolled, *batch, **options)
        torch.set_rng_state(state)
        gradient = reference.filled(loss, inputs)
        assert loss.item() == pytest.approx(expected, rel=1e-12)
        size = sum(s.slope**2 for s in slopes) ** 0.5
        assert max(s.error for s in slopes) < 1e-8 * size, "the oracle is unsure"
        off = sum((reference.along(gradient, w) - s.slope) ** 2 for w, s in zip(ways, slopes, strict=True)) ** 0.5
        assert off < 1e-7 * size, f"off by {off / size:.1e}"
        assert reference.gap(first, gradient) > 1e-3, reference.gap(first, gradient)
        report = verify(unrolled, *batch, **options)
        assert report.passed, report
        torch.set_rng_state(state)
