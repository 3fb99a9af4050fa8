"""What people do to optimizers: each is K real steps of the live objects, made after the call, or refused by name.

The oracle builds everything again from the seed for every difference, so that it copies nothing.
"""

import copy
import functools
import linecache
import threading
from collections import defaultdict, deque

import numpy
import pytest
import torch
import torch.optim.adam as torch_adam
from situations import STEPS, Situation, assert_exact, called, d_loss, g_loss
from torch import nn
from torch.fx.graph_module import _loader
from torch.optim import optimizer as torchs

from unroll_wrap import UnrolledGeneratorLoss, verify
from unroll_wrap.optimizers.read import rule_of

pytestmark = pytest.mark.usefixtures("float64")

CASES, REFUSED = {}, {}


def case(make):
    """D → what steps it."""
    CASES[make.__name__] = make
    return make


def refused(*words):
    def register(make):
        REFUSED[make.__name__] = make, words
        return make

    return register


# 1. What a parameter carries.


class Descent(torch.optim.Optimizer):
    """Whatever a subclass makes of a gradient; the momentum is where a user would keep it."""

    def __init__(self, params, lr=0.2):
        super().__init__(params, {"lr": lr})

    def change(self, p):
        return p.grad

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.requires_grad:
                    p.sub_(group["lr"] * self.change(p))


def descent(change, **attributes):
    """An optimizer with that change, and these attributes."""

    def make(D):
        optimizer = type("Mine", (Descent,), {"change": change})(D.parameters())
        vars(optimizer).update({k: v(D) for k, v in attributes.items()})
        return optimizer

    return make


class Kind(nn.Parameter):
    pass


@case
def a_factor_on_the_parameter(D):
    for i, p in enumerate(D.parameters()):
        p.factor = 0.5 + i
    return descent(lambda self, p: p.factor * p.grad)(D)


@case
def a_class_of_parameters(D):
    D[0].weight = Kind(D[0].weight.detach())
    return descent(lambda self, p: p.grad * (0.1 if isinstance(p, Kind) else 1))(D)


CASES["ids_in_a_set"] = descent(
    lambda self, p: p.grad * (0.1 if id(p) in self.slow else 1), slow=lambda D: {id(p) for p in D[2].parameters()}
)
CASES["parameters_in_a_set"] = descent(
    lambda self, p: p.grad * (0.1 if p in self.slow else 1), slow=lambda D: set(D[2].parameters())
)


@case
def a_frozen_parameter(D):
    D[0].bias.requires_grad_(False)
    return descent(lambda self, p: torch.tanh(p.grad))(D)


# 2. Where state is kept.


class Momentum:
    """A helper with slots."""

    __slots__ = ("buffer", "count")

    def __init__(self, p):
        self.buffer, self.count = torch.zeros_like(p), 0

    def __call__(self, g):
        self.count += 1
        self.buffer = 0.9 * self.buffer + g / self.count**0.5
        return self.buffer


def of_each(make):
    return lambda D: {p: make(p.detach()) for p in D.parameters()}


CASES["a_helper_object"] = descent(lambda self, p: self.helpers[p](p.grad), helpers=of_each(Momentum))
CASES["tensors_by_parameter"] = descent(
    lambda self, p: self.buffers[p].mul_(0.9).add_(p.grad), buffers=of_each(torch.zeros_like)
)
CASES["a_closure"] = descent(lambda self, p: self.accumulate(p), accumulate=lambda D: accumulating())


def accumulating():
    sums, count = defaultdict(float), 0

    def accumulate(p):
        nonlocal count
        count += 1
        sums[p] = 0.5 * sums[p] + p.grad
        return sums[p] * (1 + 1 / count)

    return accumulate


def windowed(self, p):
    self.window.setdefault(p, deque(maxlen=2)).append(p.grad.clone())
    return sum(self.window[p])


CASES["a_window_of_gradients"] = descent(windowed, window=lambda D: {})


def nested(self, p):
    state = self.state[p]
    if not state:
        state["inner"] = {"moments": [torch.zeros_like(p), torch.zeros_like(p)], "n": numpy.zeros(1)}
    first, second = state["inner"]["moments"]
    state["inner"]["n"] += 1
    first.lerp_(p.grad, 0.1), second.lerp_(p.grad**2, 0.1)
    return first / (1 + second.sqrt()) / state["inner"]["n"].item()


CASES["nested_in_the_state"] = descent(nested)


def normalised(self, p):
    """A number kept as a tensor, which depends on gradients."""
    state = self.state[p]
    size = state.setdefault("size", torch.ones(()))
    size.mul_(0.9).add_(0.1 * p.grad.norm())
    return p.grad / (0.1 + size)


CASES["a_number_that_depends_on_gradients"] = descent(normalised)


def counted(self, p):
    """Whole numbers: how often an entry was large."""
    visits = self.state[p].setdefault("visits", torch.zeros(p.shape, dtype=torch.long))
    visits += p.grad.abs() > 0.05
    return p.grad / (1 + visits) ** 0.5


CASES["whole_numbers"] = descent(counted)


def grown(self, p):
    group = next(g for g in self.param_groups if any(p is q for q in g["params"]))
    mean = group.setdefault("means", {}).setdefault(p, torch.zeros_like(p))
    mean.lerp_(p.grad, 0.3)
    return mean


CASES["tensors_in_the_groups"] = descent(grown)


@case
def a_learning_rate_that_is_a_tensor(D):
    class Decaying(Descent):
        def step(self):
            super().step()
            self.param_groups[0]["lr"] *= 0.9

    return Decaying(D.parameters(), lr=torch.tensor(0.3))


# 3. Memory.


def viewing(view):
    """Its step writes to views of the parameters that it made when it was built."""

    def make(D):
        class Viewing(torch.optim.Optimizer):
            def __init__(self, params):
                super().__init__(params, {})
                self._views = [view(p.data) for p in self.param_groups[0]["params"]]

            @torch.no_grad()
            def step(self):
                for p, v in zip(self.param_groups[0]["params"], self._views, strict=True):
                    v.sub_(torch.tanh(view(p.grad)), alpha=0.2)

        return Viewing(D.parameters())

    return make


CASES["flat_views_of_parameters"] = viewing(lambda t: t.view(-1))
CASES["transposed_views_of_parameters"] = viewing(lambda t: t.t() if t.dim() == 2 else t[:])


@case
def parameters_in_one_vector(D):
    """The optimizer steps a vector in which the parameters lie."""
    params = list(D.parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in params])
    start = 0
    for p in params:
        p.data = flat[start : start + p.numel()].view(p.shape)
        start += p.numel()

    class Flat(torch.optim.Optimizer):
        @torch.no_grad()
        def step(self):
            self.momentum.mul_(0.8).add_(torch.cat([p.grad.reshape(-1) for p in self.param_groups[0]["params"]]))
            self.flat.sub_(self.momentum, alpha=0.1)

    optimizer = Flat(params, {})
    optimizer.flat, optimizer.momentum = flat, torch.zeros_like(flat)
    return optimizer


def sharpened(self, p):
    """Changes hands: data is replaced, and put back."""
    old = p.data
    p.data = p.data + 0.01 * p.grad / p.grad.norm()
    change = p.grad + 0.1 * p.data
    p.data = old
    return change


CASES["data_replaced_and_put_back"] = descent(sharpened)


@case
def data_assigned(D):
    class Assigning(Descent):
        def step(self):
            for p in self.param_groups[0]["params"]:
                p.data = p.data - 0.2 * torch.tanh(p.grad)

    return Assigning(D.parameters())


# 4. Steps around steps.


class Around:
    """A wrapper that is no optimizer."""

    def __init__(self, inner):
        self.inner, self.count = inner, 0

    param_groups = property(lambda self: self.inner.param_groups)


def around(step, **attributes):
    def make(D):
        wrapper = type("Mine", (Around,), {"step": step})(adam(D))
        vars(wrapper).update({k: v(D) for k, v in attributes.items()})
        return wrapper

    return make


def warming(self):
    self.count += 1
    for group in self.param_groups:
        group["lr"] = 0.1 / self.count**0.5
    self.inner.step()


def clipping(self):
    nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], 0.1)
    self.inner.step()


def every_second(self):
    """Returns early."""
    self.count += 1
    if self.count % 2:
        return
    self.inner.step()


def centralizing(self):
    for p in self.param_groups[0]["params"]:
        if p.grad.dim() > 1:
            p.grad.sub_(p.grad.mean(1, keepdim=True))
    self.inner.step()


def looking_back(self):
    self.count += 1
    self.inner.step()
    if self.count % 2 == 0:
        with torch.no_grad():
            for p, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
                slow.lerp_(p, 0.5)
                p.copy_(slow)


def averaging(self):
    """An average of D, which it pulls D to."""
    self.inner.step()
    with torch.no_grad():
        for p, mean in zip(self.D.parameters(), self.mean.parameters(), strict=True):
            mean.lerp_(p, 0.1)
            p.lerp_(mean, 0.2)


def several(self):
    for one in self.parts.values():
        one.step()


CASES |= {
    "warming": around(warming),
    "clipping": around(clipping),
    "returning_early": around(every_second),
    "centralizing": around(centralizing),
    "looking_back": around(looking_back, slow=lambda D: [p.detach().clone() for p in D.parameters()]),
    "averaging_a_copy_of_D": around(averaging, D=lambda D: D, mean=copy.deepcopy),
}


@case
def several_in_a_dict(D):
    class Several:
        step = several

        def __init__(self, **parts):
            self.parts = parts

    one, other = torch.optim.SGD(D[0].parameters(), lr=0.2), torch.optim.Adam(D[2].parameters(), lr=0.05)
    return Several(first=one, second=other)


@case
def a_wrapper_in_a_list(D):
    wrapper = type("Mine", (Around,), {"step": clipping})(torch.optim.SGD(D[0].parameters(), lr=0.3))
    return [wrapper, torch.optim.Adam(D[2].parameters(), lr=0.05)]


@case
def a_step_on_the_instance(D):
    optimizer = torch.optim.Adam(D.parameters(), lr=0.05)
    step = optimizer.step

    def clipped():
        nn.utils.clip_grad_norm_(D.parameters(), 0.1)
        step()

    optimizer.step = clipped
    return optimizer


@case
def a_step_on_the_instance_that_says_whom_it_wraps(D):
    optimizer = torch.optim.Adam(D.parameters(), lr=0.05)
    step = optimizer.step

    @functools.wraps(step)
    def shrunk():
        for p in D.parameters():
            p.grad.mul_(1 + p.grad.norm())
        step()

    optimizer.step = shrunk
    return optimizer


@case
def hooks_before_and_after_a_step(D):
    optimizer = torch.optim.Adam(D.parameters(), lr=0.05)

    def before(optimizer, args, kwargs):
        nn.utils.clip_grad_value_(optimizer.param_groups[0]["params"], 0.05)

    @torch.no_grad()
    def after(optimizer, args, kwargs):
        for p in optimizer.param_groups[0]["params"]:
            p.mul_(0.95)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    return optimizer


@case
def a_scheduler_in_the_step(D):
    optimizer = torch.optim.SGD(D.parameters(), lr=0.3, momentum=0.5)
    optimizer.scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    class Scheduled(Around):
        def step(self):
            self.inner.step()
            self.inner.scheduler.step()

    return Scheduled(optimizer)


class OtherGroup(torch.optim.Adam):
    """Leaves step() alone, and changes what it calls."""

    def _init_group(self, group, *lists):
        found = super()._init_group(group, *lists)
        lists[1][:] = [g.clamp(-0.05, 0.05) for g in lists[1]]
        return found


CASES["another_init_group"] = lambda D: OtherGroup(D.parameters(), lr=0.05)


# 5. The operators on lists of tensors.

FOREACH = {
    "Adadelta": {"lr": 1.0},
    "Adagrad": {"lr": 0.05},
    "Adam": {"lr": 0.05, "amsgrad": True},
    "AdamW": {"lr": 0.05},
    "Adamax": {"lr": 0.05},
    "NAdam": {"lr": 0.05},
    "RAdam": {"lr": 0.05},
    "RMSprop": {"lr": 0.02, "centered": True, "momentum": 0.5},
    "SGD": {"lr": 0.2, "momentum": 0.5, "nesterov": True},
}


def overridden(name):
    """A subclass that clips, then steps."""

    def step(self, closure=None):
        nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 0.3, foreach=True)
        return super(kind, self).step(closure)

    kind = type(f"My{name}", (getattr(torch.optim, name),), {"step": step})
    return lambda D: kind(D.parameters(), **FOREACH[name], weight_decay=0.01, foreach=True)


CASES |= {f"{name}_foreach": overridden(name) for name in FOREACH}


@pytest.mark.parametrize("name", CASES)
def test_it_is_exact_and_nothing_has_moved(name):
    """All that people do."""
    assert_exact(CASES[name])


@pytest.mark.parametrize("name", ["ids_in_a_set", "clipping", "parameters_in_one_vector", "a_window_of_gradients"])
def test_verify_agrees(name):
    """From the same objects, as often as asked."""
    situation = Situation(CASES[name])
    unrolled = UnrolledGeneratorLoss(situation.D, situation.stepper, d_loss, g_loss, steps=STEPS)
    assert [bool(verify(unrolled, *situation.batch(1000))) for _ in range(2)] == [True, True]


# 6. What is refused: numbers that leave the tensors, chance, kernels that do everything.


@refused(r"\.item\(\)")
def a_number_read_by_item(D):
    return descent(lambda self, p: p.grad / (1 + p.grad.norm().item()))(D)


@refused(r"\.tolist\(\)")
def a_number_read_by_tolist(D):
    return descent(lambda self, p: p.grad / (1 + sum(map(abs, p.grad.view(-1).tolist()))))(D)


@refused(r"\.numpy\(\)")
def a_number_read_by_numpy(D):
    return descent(lambda self, p: p.grad / (1 + numpy.abs(p.grad.numpy()).sum()))(D)


@refused("numbers|DLPack|dlpack")
def a_number_read_by_dlpack(D):
    return descent(lambda self, p: p.grad / (1 + float(numpy.abs(numpy.from_dlpack(p.grad)).sum())))(D)


@refused(r"bits of numbers")
def numbers_swapped_by_their_bits(D):
    def change(self, p):
        other = torch.tanh(p.grad)
        for one, two in ((p.grad, other), (other, p.grad), (p.grad, other)):
            one.view(torch.uint8).bitwise_xor_(two.view(torch.uint8))
        return p.grad

    return descent(change)(D)


@refused(r"\.mean is not the same for other gradients")
def a_number_kept_in_python(D):
    def change(self, p):
        self.mean = 0.9 * self.mean + 0.1 * sum(p.grad.view(-1).tolist())
        return p.grad

    return descent(change, mean=lambda D: 0.0)(D)


@refused("random")
def noise(D):
    return descent(lambda self, p: p.grad + 0.01 * torch.randn_like(p))(D)


@refused("_fused_adam_", "fused=False")
def a_fused_kernel(D):
    return type("Mine", (torch.optim.Adam,), {"step": lambda self: torch.optim.Adam.step(self)})(
        D.parameters(), fused=True
    )


@refused("closure")
def a_closure_that_must_be_given(D):
    optimizer = descent(lambda self, p: p.grad)(D)
    step = optimizer.step

    def closed(closure=None):
        if closure is None and not WARMING:
            raise ValueError("step() needs a closure")
        step()

    optimizer.step = closed
    return optimizer


@refused(r"requires grad", r"\.rate")
def a_learned_rate(D):
    return descent(lambda self, p: self.rate.detach() * p.grad, rate=lambda D: torch.tensor(0.1, requires_grad=True))(D)


@refused(r"\[0\]\.running_mean|none of its parameters|buffers of the modules")
def buffers_of_the_discriminator(D):
    D.append(nn.BatchNorm1d(1))
    return descent(lambda self, p: p.grad * (1 + self.D[-1].running_var.sum()), D=lambda D: D)(D)


WARMING = True


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_and_nothing_has_moved(name, monkeypatch):
    """By name and with the cause."""
    make, words = REFUSED[name]
    situation = Situation(make)
    monkeypatch.setattr("test_live_steps.WARMING", False)
    situation.batch(1000)
    before, drawn = situation.record(), torch.get_rng_state()
    with pytest.raises(TypeError, match=rf"(?s){type(situation.stepper).__name__} cannot be unrolled") as error:
        called(situation)
    assert "INTERNAL ASSERT" not in str(error.value)
    for word in words:
        error.match(f"(?s){word}")
    assert situation.record() == before
    assert torch.equal(torch.get_rng_state(), drawn)


# 7. When a rule holds.


def adam(D):
    return torch.optim.Adam(D.parameters(), lr=0.05)


def test_a_class_that_is_patched_has_no_rule(monkeypatch):
    """And is exact; with the patch gone, the rule is back."""
    optimizer = Situation(adam).stepper
    assert rule_of(optimizer) is not None
    step = torch.optim.Adam.step

    @functools.wraps(step)
    def centralized(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.grad = p.grad - p.grad.mean()
        return step(self, closure)

    for patch in (centralized, lambda self, closure=None: centralized(self, closure)):
        monkeypatch.setattr(torch.optim.Adam, "step", patch)
        assert rule_of(optimizer) is None
        assert_exact(adam)
    monkeypatch.undo()
    assert rule_of(optimizer) is not None


@pytest.mark.parametrize("when", ["pre", "post"])
def test_global_step_hooks(when):
    """They are in every step, so no rule holds; once removed, it does."""

    def squash(optimizer, args, kwargs):
        with torch.no_grad():
            for p in optimizer.param_groups[0]["params"]:
                (p.grad if when == "pre" else p).mul_(0.9)

    handle = getattr(torchs, f"register_optimizer_step_{when}_hook")(squash)
    try:
        assert rule_of(Situation(adam).stepper) is None
        assert_exact(adam)
    finally:
        handle.remove()
    assert rule_of(Situation(adam).stepper) is not None


# From torch 2.7 on AdamW has Adam's step, which is in another file than AdamW.
ADAMS = [kind for kind in (torch.optim.Adam, torch.optim.AdamW) if issubclass(kind, torch.optim.Adam)]


@pytest.mark.parametrize("kind", ADAMS)
@pytest.mark.parametrize("name", ["adam", "_single_tensor_adam"])
def test_a_function_of_torchs_that_is_replaced_in_its_module(name, kind, monkeypatch):
    """Then no rule holds, whatever the class looks like; once it is put back, it does."""

    def make(D):
        return kind(D.parameters(), lr=0.05)

    own = getattr(torch_adam, name)
    calls = []

    def replaced(params, grads, *args, **kwargs):
        calls.append(name)
        return own(params, [g * g.abs() for g in grads], *args, **kwargs)

    monkeypatch.setattr(torch_adam, name, replaced)
    assert rule_of(Situation(make).stepper) is None
    assert_exact(make)
    assert calls
    monkeypatch.undo()
    assert rule_of(Situation(make).stepper) is not None


def test_a_step_that_skips_what_does_not_require_grad():
    """As D is around the generator's step, in most loops: it is on in real steps, and so it is in the unroll."""

    class Skipping(torch.optim.Adam):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.requires_grad and p.grad is not None:
                        p.data.add_(p.grad, alpha=-0.1)

    def make(D):
        return Skipping(D.parameters())

    right = Situation(make).value().item()
    situation = Situation(make)
    batch = situation.batch(1000)
    situation.D.requires_grad_(False)
    loss = UnrolledGeneratorLoss(situation.D, situation.stepper, d_loss, g_loss, steps=STEPS)(*batch)
    assert abs(loss.item() - right) < 1e-12
    assert not any(p.requires_grad for p in situation.D.parameters())
    assert abs(g_loss(situation.D, *batch).item() - right) > 1e-6  # the control: without the steps


def test_traces_in_several_threads():
    """Torch replaces methods of nn.Module while it traces: each is right, and these are what they were."""

    class Clipped(torch.optim.Adam):
        def step(self, closure=None):
            torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 0.1)
            return super().step(closure)

    def make(D):
        return Clipped(D.parameters(), lr=0.05)

    right, found = Situation(make).value().item(), []
    situations = [Situation(make) for _ in range(3)]
    batches = [s.batch(1000) for s in situations]
    before = torch.nn.Module.__call__, torch.nn.Module.__getattr__

    def work(s, batch):
        found.append(UnrolledGeneratorLoss(s.D, s.stepper, d_loss, g_loss, steps=STEPS)(*batch).item())

    threads = [threading.Thread(target=work, args=given) for given in zip(situations, batches, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and all(abs(value - right) < 1e-12 for value in found)
    assert before == (torch.nn.Module.__call__, torch.nn.Module.__getattr__)


def test_wrappers_that_change_nothing_leave_the_rule():
    """A scheduler's, a compiler's, a profiler's."""
    optimizer = Situation(adam).stepper
    torch.optim.lr_scheduler.ConstantLR(optimizer)
    assert "step" in vars(optimizer) and rule_of(optimizer) is not None
    del optimizer.step
    optimizer.step = torch.compile(optimizer.step, backend="eager")
    assert rule_of(optimizer) is not None


def test_a_spec_may_make_a_wrapper():
    """From fresh state in every call."""
    situation = Situation(adam)

    def spec(params):
        return type("Mine", (Around,), {"step": clipping})(torch.optim.SGD(params, lr=0.3))

    real, fake = situation.batch(1000)
    loss = UnrolledGeneratorLoss(situation.D, spec, d_loss, g_loss, steps=STEPS)(real, fake)
    situation.stepper = spec(list(situation.D.parameters()))
    assert abs(loss.item() - situation.value().item()) < 1e-12


def test_a_wrapper_that_passes_step_on_is_the_optimizer_inside():
    """By __getattr__: the rule holds."""

    class Delegating:
        def __init__(self, optimizer):
            self.optimizer = optimizer

        def __getattr__(self, name):
            return getattr(self.optimizer, name)

    situation = Situation(lambda D: Delegating(adam(D)))
    unrolled = UnrolledGeneratorLoss(situation.D, situation.stepper, d_loss, g_loss, steps=STEPS)
    assert unrolled.parts()[1] == [situation.stepper.optimizer]
    loss = unrolled(*situation.batch(1000))
    assert abs(loss.item() - situation.value().item()) < 1e-12


# 8. What is left behind.


def test_state_that_a_loss_asks_for():
    """`state` makes an entry for whoever asks: afterwards there are as many as before."""
    situation = Situation(adam)
    optimizer = situation.stepper
    del optimizer.state[situation.D[0].bias]

    def asking(D, real, fake):
        return d_loss(D, real, fake) + 0 * sum(len(optimizer.state[p]) for p in optimizer.param_groups[0]["params"])

    unrolled = UnrolledGeneratorLoss(situation.D, optimizer, asking, g_loss, steps=1)
    unrolled(*situation.batch(1000))
    assert len(optimizer.state) == 3


def test_traces_leave_no_source_behind():
    """A hundred calls, a step apart: torch's and Python's stores of sources stay as they are."""
    situation = Situation(descent(lambda self, p: self.helpers[p](p.grad), helpers=of_each(Momentum)))
    unrolled = UnrolledGeneratorLoss(situation.D, situation.stepper, d_loss, g_loss, steps=1)
    sizes = []
    for i in range(6):
        unrolled(*situation.batch(i))
        situation.real_step(*situation.batch(i))
        sizes.append((len(_loader.eval_cache), len(linecache.cache)))
    assert sizes[1:] == sizes[:1] * 5


def test_a_step_that_is_interrupted():
    """Ctrl-C in the middle of the live step: all is put back."""

    def change(self, p):
        if self.stop:
            p.data.zero_()
            raise KeyboardInterrupt
        return p.grad

    situation = Situation(descent(change, stop=lambda D: False))
    situation.stepper.stop = True
    before = situation.record()
    with pytest.raises(KeyboardInterrupt):
        called(situation)
    assert situation.record() == before
