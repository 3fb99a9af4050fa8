"""What a discriminator, its parameters and its losses carry: each is K real steps of the live objects, or refused.

The oracle builds everything again from the seed for every difference, so that it copies nothing. Each case has a
control: the same without what it carries has another value, so a library that loses that would be noticed.
"""

import collections
import functools

import pytest
import torch
from snapshot import describe
from torch import nn
from torch.nn import functional as F

from unroll_wrap import PartlyFrozen, Recompute, Store, UnrolledGeneratorLoss, non_saturating, verify

pytestmark = pytest.mark.usefixtures("float64")

STEPS, WARM = 3, 12
d_loss, g_loss = non_saturating
CASES, REFUSED = {}, {}


class Situation:
    """D, its optimizer, G and the losses after some steps; always the same, `carrying` what a case is about or not."""

    d_loss, g_loss, options, zero = staticmethod(d_loss), staticmethod(g_loss), {}, True

    def __init__(self, make, carrying=True):
        torch.manual_seed(1)
        self.G = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.D = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        self.optimizer = None
        make(self, carrying)
        self.optimizer = self.optimizer or torch.optim.Adam(self.D.parameters(), lr=0.05)
        for i in range(WARM):
            self.real_step(*self.batch(i))

    def batch(self, seed, shift=0.0):
        torch.manual_seed(seed)
        real, z = torch.randn(8, 2) + 1, torch.randn(8, 3)
        return real, self.G(z + shift)

    def real_step(self, real, fake):
        self.optimizer.zero_grad(set_to_none=self.zero)
        self.d_loss(self.D, real, fake.detach()).backward()
        self.optimizer.step()

    def value(self, shift=0.0):
        real, fake = self.batch(1000, shift)
        for _ in range(STEPS):
            self.real_step(real, fake)
        return self.g_loss(self.D, real, fake).item()

    def unrolled(self, **options):
        return UnrolledGeneratorLoss(
            self.D,
            self.optimizer,
            **{"d_loss": self.d_loss, "g_loss": self.g_loss, "steps": STEPS, **self.options, **options},
        )

    def record(self):
        attributes = {name: dict(vars(p)) for name, p in self.D.named_parameters()}
        state = {id(p): describe(s) for p, s in self.optimizer.state.items()}
        modules = [describe(vars(m)) for m in self.D.modules()]
        return modules, attributes, state, [type(p) for p in self.D.parameters()]


def case(make):
    CASES[make.__name__] = make
    return make


def refused(*words):
    def register(make):
        REFUSED[make.__name__] = make, words
        return make

    return register


class Net(nn.Module):
    """Whose forward pass is given."""

    def __init__(self, forward, **attributes):
        super().__init__()
        self.a, self.b = nn.Linear(2, 4), nn.Linear(4, 1)
        self.run = forward
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.run(self, x)


# What functions around D keep in variables of theirs.


@case
def a_count_in_the_closure_of_a_forward_hook(s, carrying):
    count = 0

    def hook(module, inputs, output):
        nonlocal count
        count += carrying
        return output * (1 + 0.1 * (count % 5))

    s.D[0].register_forward_hook(hook)


@case
def a_count_in_a_bytearray(s, carrying):
    def forward(D, x):
        D.bytes[1] += carrying
        return D.b(torch.tanh(D.a(x))) * (1 + 0.1 * (D.bytes[1] % 5))

    s.D = Net(forward, bytes=bytearray(2))


@case
def a_count_in_an_object_on_a_parameter(s, carrying):
    class Tag:
        count = 0

    def forward(D, x):
        D.a.weight.tag.count += carrying
        return D.b(torch.tanh(D.a(x))) * (1 + 0.1 * (D.a.weight.tag.count % 5))

    s.D = Net(forward)
    s.D.a.weight.tag = Tag()


@case
def statistics_in_the_closure_of_a_forward_hook(s, carrying):
    mean = torch.zeros(4)

    def hook(module, inputs, output):
        if carrying:
            mean.mul_(0.9).add_(0.1)
        return output - mean

    s.D[0].register_forward_hook(hook)


@case
def a_mean_that_a_forward_hook_makes_anew(s, carrying):
    mean = torch.zeros(())

    def hook(module, inputs, output):
        nonlocal mean
        if carrying:
            mean = 0.9 * mean + 0.1
        return output - mean

    s.D[0].register_forward_hook(hook)


@case
def a_forward_of_the_instance_that_counts(s, carrying):
    own, calls = s.D[0].forward, 0

    def counting(x):
        nonlocal calls
        calls += carrying
        return own(x) * (1 + 0.1 * (calls % 5))

    s.D[0].forward = counting


# What a parameter carries.


@case
def an_attribute(s, carrying):
    s.D = Net(lambda D, x: D.b(torch.tanh(F.linear(x, D.a.weight * getattr(D.a.weight, "gain", 1.0), D.a.bias))))
    if carrying:
        s.D.a.weight.gain = 0.5


@case
def an_attribute_without_a_default(s, carrying):
    s.D = Net(lambda D, x: D.b(torch.tanh(F.linear(x, D.a.weight * D.a.weight.gain, D.a.bias))))
    s.D.a.weight.gain = 0.5 if carrying else 1.0


@case
def an_attribute_that_is_a_tensor_and_moves(s, carrying):
    def forward(D, x):
        if carrying:
            D.a.weight.seen.mul_(0.9).add_(0.1)
        return D.b(torch.tanh(D.a(x) - D.a.weight.seen))

    s.D = Net(forward)
    s.D.a.weight.seen = torch.zeros(())


class Kind(nn.Parameter):
    pass


class Function(nn.Parameter):
    """Whose products are twice as large."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **(kwargs or {}))
            return 2 * out if func is torch.matmul or func is torch.Tensor.matmul else out


@case
def a_class(s, carrying):
    s.D = Net(lambda D, x: D.b(torch.tanh(D.a(x)) * (0.5 if isinstance(D.a.weight, Kind) else 1.0)))
    s.D.a.weight = (Kind if carrying else nn.Parameter)(s.D.a.weight.detach())


@case
def the_very_class(s, carrying):
    s.D = Net(lambda D, x: D.b(torch.tanh(D.a(x)) * (0.5 if type(D.a.weight) is Kind else 1.0)))
    s.D.a.weight = (Kind if carrying else nn.Parameter)(s.D.a.weight.detach())


@case
def a_torch_function(s, carrying):
    s.D = Net(lambda D, x: D.b(torch.tanh(torch.matmul(x, D.w))))
    s.D.w = (Function if carrying else nn.Parameter)(torch.randn(2, 4))


@case
def its_identity(s, carrying):
    s.D = Net(lambda D, x: D.b(torch.tanh(D.a(x)) * (0.5 if id(D.a.weight) in slow and D.a.weight in kept else 1.0)))
    slow = {id(s.D.a.weight)} if carrying else set()
    kept = {s.D.a.weight: None}


@case
def a_reference_outside_of_the_modules(s, carrying):
    s.D = Net(lambda D, x: D.b(torch.tanh(D.a(x))))
    held = {"list": list(s.D.parameters())}
    s.d_loss = lambda D, real, fake: (
        d_loss(D, real, fake) + carrying * 0.3 * sum(p.square().sum() for p in held["list"])
    )


@case
def a_frozen_parameter_with_an_attribute(s, carrying):
    s.D = Net(lambda D, x: D.b(torch.tanh(D.a(x)) * D.scale * getattr(D.scale, "gain", 1.0)))
    s.D.scale = nn.Parameter(torch.full((4,), 1.5), requires_grad=False)
    if carrying:
        s.D.scale.gain = 0.5


@case
def a_hook_that_uses_its_parameter(s, carrying):
    w = s.D[0].weight
    if carrying:
        w.register_hook(lambda g: g + 0.3 * w * w.norm())


@case
def a_hook_that_each_loss_registers(s, carrying):
    def registering(D, real, fake):
        handle = D[0].weight.register_hook(lambda g: 3 * g)
        handles.append(handle)
        return d_loss(D, real, fake)

    def step(real, fake):
        torch.optim.Optimizer.zero_grad(s.optimizer)
        s.d_loss(s.D, real, fake.detach()).backward()
        for handle in handles:
            handle.remove()
        s.optimizer.step()

    handles = []
    s.optimizer = torch.optim.SGD(s.D.parameters(), lr=0.5)
    if carrying:
        s.d_loss, s.real_step = registering, step


# What D keeps.


# Statistics move towards this and not towards a mean of the batch: a difference would see through their detach().
TARGET = torch.tensor([0.5, -1.0], dtype=torch.float64)


class Running:
    def __init__(self, moving):
        self.mean, self.n, self.moving = torch.zeros(2), 0, moving

    def __call__(self, x):
        if self.moving:
            self.n += len(x)
            self.mean += (TARGET - self.mean) * len(x) / (8 + self.n)
        return x - self.mean


class Slotted:
    __slots__ = ("count", "mean")

    def __init__(self):
        self.mean, self.count = torch.zeros(2), 0


@case
def an_object_with_statistics(s, carrying):
    s.D = Net(lambda D, x: D.b(torch.tanh(D.a(D.norm(x)))), norm=Running(carrying))


@case
def an_object_with_slots(s, carrying):
    def forward(D, x):
        if carrying:
            D.kept.count += 1
            D.kept.mean = D.kept.mean * 0.5 + 0.5 * TARGET
        return D.b(torch.tanh(D.a(x - D.kept.mean) / (1 + 0.1 * (D.kept.count % 5))))

    s.D = Net(forward, kept=Slotted())


@case
def nested_containers(s, carrying):
    def forward(D, x):
        if carrying:
            D.kept["queue"].append(float(len(D.kept["queue"])))
            D.kept["stats"]["mean"].lerp_(TARGET, 0.1)
            D.kept["seen"].add(len(D.kept["seen"]))
        weight = sum(D.kept["queue"]) + len(D.kept["seen"])
        return D.b(torch.tanh(D.a(x - D.kept["stats"]["mean"])) / (1 + 0.01 * (weight % 11)))

    kept = {"queue": collections.deque([1.0], maxlen=5), "stats": {"mean": torch.zeros(2)}, "seen": set()}
    s.D = Net(forward, kept=kept)


@case
def a_forward_hook_with_a_state(s, carrying):
    class Scaling:
        def __init__(self):
            self.scale = torch.ones(())

        def __call__(self, module, args, out):
            self.scale.mul_(0.9).add_(0.3)
            return out - self.scale

    if carrying:
        s.D[0].register_forward_hook(Scaling())


@case
def a_buffer_that_is_assigned_anew(s, carrying):
    def forward(D, x):
        if carrying:
            D.mean = 0.9 * D.mean + 0.1 * TARGET
        return D.b(torch.tanh(D.a(x - D.mean)))

    s.D = Net(forward)
    s.D.register_buffer("mean", torch.zeros(2))


# What the loss does.


@case
def layers_frozen_by_the_loss(s, carrying):
    def freezing(D, real, fake):
        D.requires_grad_(True)
        D[0].requires_grad_(not carrying)
        return d_loss(D, real, fake)

    s.d_loss = freezing


@case
def gradients_of_zero(s, carrying):
    """A head that the loss reaches at first alone, and Adam moves by its momentum."""
    s.D = Net(lambda D, x: D.b(torch.tanh(D.a(x))))
    s.D.head, count = nn.Linear(4, 1), []

    def with_head(D, real, fake):
        count.append(None)
        h = torch.tanh(D.a(real))
        return d_loss(D, real, fake) + (D.head(h).square().mean() if len(count) <= 5 else 0)

    s.d_loss, s.zero = with_head, not carrying
    s.g_loss = lambda D, real, fake: g_loss(D, real, fake) + D.head(torch.tanh(D.a(fake))).mean()


@case
def a_drawing_that_asks_d(s, carrying):
    def draw(real):
        return real + carrying * torch.tanh(3 * s.D(real)).detach()

    def step(real, fake):
        s.optimizer.zero_grad()
        d_loss(s.D, draw(real), fake.detach()).backward()
        s.optimizer.step()

    s.real_step = step
    real, fake = s.batch(1000)
    s.options = {"resample": lambda k: (draw(real), s.fake)}


@case
def a_transform_that_reads_d(s, carrying):
    def scaled(grads):
        return [
            g * (torch.sigmoid(p.norm() - 1) if carrying else 1) for g, p in zip(grads, s.D.parameters(), strict=True)
        ]

    def step(real, fake):
        s.optimizer.zero_grad()
        d_loss(s.D, real, fake.detach()).backward()
        with torch.no_grad():
            for p, g in zip(s.D.parameters(), scaled([p.grad for p in s.D.parameters()]), strict=True):
                p.grad = g
        s.optimizer.step()

    s.optimizer = torch.optim.SGD(s.D.parameters(), lr=0.5)
    s.real_step, s.options = step, {"grad_transform": scaled}


@case
def transforms_for_one_layer(s, carrying):
    def of_gradients(grads, names):
        return [g * (0.3 if carrying and name.startswith("2.") else 1) for g, name in zip(grads, names, strict=True)]

    def of_parameter(p, name):
        return p.clamp(-0.3, 0.3) if carrying and name == "0.weight" else p

    def step(real, fake):
        s.optimizer.zero_grad()
        d_loss(s.D, real, fake.detach()).backward()
        names = [name for name, _ in s.D.named_parameters()]
        for p, g in zip(s.D.parameters(), of_gradients([p.grad for p in s.D.parameters()], names), strict=True):
            p.grad = g
        s.optimizer.step()
        with torch.no_grad():
            for name, p in s.D.named_parameters():
                p.copy_(of_parameter(p, name))

    s.optimizer = torch.optim.SGD(s.D.parameters(), lr=0.5)
    s.real_step, s.options = step, {"grad_transform": of_gradients, "param_transform": of_parameter}


def fake_of(situation, shift=0.0):
    real, fake = situation.batch(1000, shift)
    situation.fake = fake
    return real, fake


# The loss of gradients_of_zero counts, which no replay knows.
WAYS = [
    (name, way) for name in CASES for way in (Store(), Recompute()) if (name, way) != ("gradients_of_zero", Recompute())
]


@pytest.mark.parametrize(("name", "backward"), WAYS, ids=str)
def test_exact(name, backward):
    """Value and slope are those of real steps, and nothing of the user's has changed."""
    make = CASES[name]
    situation = Situation(make)
    real, fake = fake_of(situation)
    before = situation.record()
    loss = situation.unrolled(backward=backward)(real, fake)
    assert situation.record() == before
    right = Situation(make).value()
    assert abs(loss.item() - right) < 1e-12
    # What real steps make of the same objects afterwards is that too.
    assert abs(situation.value() - right) < 1e-12
    if name == "a_drawing_that_asks_d":
        return  # It detaches what D returns, which a difference would see.
    shift = torch.zeros((), requires_grad=True)
    situation = Situation(make)
    real, fake = fake_of(situation, shift)
    (slope,) = torch.autograd.grad(situation.unrolled(backward=backward)(real, fake), shift)
    h = 1e-5
    difference = (Situation(make).value(h) - Situation(make).value(-h)) / (2 * h)
    assert abs(slope.item() - difference) < 1e-6 * max(abs(difference), 0.1)


@pytest.mark.parametrize("name", CASES)
def test_the_control(name):
    """Without what the case is about real steps come to another value."""
    make = CASES[name]
    assert abs(Situation(make).value() - Situation(make, carrying=False).value()) > 1e-6


# Refused, each with the cause, and nothing has moved.


@refused("same memory")
def an_attribute_in_the_memory_of_a_parameter(s, carrying):
    s.D = Net(lambda D, x: D.b(torch.tanh(D.a(x)) / (1 + D.w.norm())))
    s.D.w = s.D.a.weight.data


@refused("same memory")
def a_view_at_an_offset_within_a_list(s, carrying):
    s.D = Net(lambda D, x: D.b(torch.tanh(D.a(x)) / (1 + D.views[0].norm())), views=[])
    s.D.views.append(s.D.a.weight.data[2:])


@refused("same memory")
def a_buffer_that_is_a_view_of_another(s, carrying):
    def forward(D, x):
        h = torch.tanh(D.a(x))
        D.mean.lerp_(h.detach().mean(0), 0.3)
        return D.b(h - D.stats[0])

    s.D = Net(forward)
    s.D.register_buffer("stats", torch.zeros(2, 4))
    s.D.register_buffer("mean", s.D.stats[0])


@refused("same memory")
def a_parameter_behind_another_view_in_one_buffer(s, carrying):
    s.D = Net(lambda D, x: D.b(torch.tanh(D.a(x)) / (1 + D.flat.norm()) + D.few.norm()))
    weight = s.D.a.weight
    s.D.register_buffer("flat", torch.cat([torch.ones(3), weight.detach().flatten()]))
    s.D.register_buffer("few", s.D.flat[1:2])
    s.D.a.weight.data = s.D.flat[3:].view_as(weight)


@refused("AccumulateGrad")
def a_hook_on_the_node_of_a_parameter(s, carrying):
    s.node = torch.autograd.graph.get_gradient_edge(s.D[0].weight).node
    s.node.register_hook(lambda *_: None)


@refused("calls backward", "step")
def a_loss_that_trains(s, carrying):
    def training(D, real, fake):
        if carrying is None:
            loss = d_loss(D, real, fake)
            loss.backward(retain_graph=True)
            s.optimizer.step()
        return d_loss(D, real, fake)

    s.d_loss = training
    s.carry = lambda: setattr(s, "d_loss", trains)

    def trains(D, real, fake):
        loss = d_loss(D, real, fake)
        loss.backward(retain_graph=True)
        s.optimizer.step()
        return loss


@refused("requires_grad off", "moved")
def layers_frozen_after_they_have_moved(s, carrying):
    count = []

    def freezing(D, real, fake):
        count.append(None)
        D[0].requires_grad_(len(count) % 3 != 2)
        return d_loss(D, real, fake)

    s.carry = lambda: (count.clear(), setattr(s, "d_loss", freezing))


@refused("resample", "graph")
def a_drawing_that_depends_on_d(s, carrying):
    real, _ = s.batch(1000)
    s.options = {"resample": lambda k: (real + s.D(real), s.fake)}


@refused("switches requires_grad on", "frozen so far")
def a_layer_that_the_loss_unfreezes(s, carrying):
    def unfreezing(D, real, fake):
        D[0].requires_grad_(D.calls > WARM)
        D.calls += 1
        return d_loss(D, real, fake)

    s.D.calls = 0
    s.D[0].requires_grad_(False)
    s.optimizer = torch.optim.Adam(s.D.parameters(), lr=0.05)
    s.d_loss = unfreezing


@refused("switches requires_grad off", "and on again")
def a_layer_that_is_frozen_for_half_of_the_loss(s, carrying):
    def halves(D, real, fake):
        D[0].requires_grad_(False)
        of_real = F.softplus(-D(real)).mean()
        D[0].requires_grad_(True)
        return of_real + F.softplus(D(fake)).mean()

    s.d_loss = halves


@refused("set_to_none=False", "zero_grad")
def gradients_that_are_kept(s, carrying):
    gradients_of_zero(s, carrying)
    s.carry = lambda: [p.grad.add_(1) for p in s.D.head.parameters()]


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    make, words = REFUSED[name]
    situation = Situation(make)
    getattr(situation, "carry", lambda: None)()
    real, fake = fake_of(situation)
    before = situation.record()
    with pytest.raises((TypeError, ValueError)) as caught:
        situation.unrolled()(real, fake)
    assert all(word in str(caught.value) for word in words), caught.value
    assert situation.record() == before


def test_a_count_on_the_class_of_an_object_in_d():
    """The first call takes real steps to prove what it has guessed, and puts the count back with the rest."""

    class Scaled:
        times = 0

        def __call__(self, x):
            Scaled.times += 1
            return x * (1 + 0.1 * (Scaled.times % 5))

    def make(s, carrying):
        Scaled.times = 0
        s.D = Net(lambda D, x: D.b(torch.tanh(D.scaled(D.a(x)))), scaled=Scaled())

    situation = Situation(make)
    unrolled, times = situation.unrolled(), Scaled.times
    for _ in range(2):
        found = unrolled(*fake_of(situation)).item()
        assert Scaled.times == times
    assert verify(unrolled, *fake_of(situation)) and Scaled.times == times
    assert abs(found - situation.value()) < 1e-12


def test_a_tensor_of_the_batch_that_d_has_computed():
    """Refused before anything has moved; without its graph it is a constant, as in the loop."""
    situation = Situation(lambda s, carrying: None)
    real, fake = fake_of(situation)
    before = situation.record()

    def matching(D, real, fake, logits):
        return (D(fake).mean() - logits.mean()).square()

    unrolled = situation.unrolled(d_loss=lambda D, real, fake, logits: d_loss(D, real, fake), g_loss=matching)
    with pytest.raises(ValueError, match=r"graph that leads to D's parameters alone.*detach"):
        unrolled(real, fake, situation.D(real))
    assert situation.record() == before
    left = [p.grad.clone() for p in situation.D.parameters()]
    unrolled(real, fake, situation.D(real).detach()).backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(situation.D.parameters(), left, strict=True))


def test_a_transform_and_a_traced_step_put_everything_back():
    """D lets go of its values for the traced step, takes those of the transform, and has its own afterwards."""

    class Mine(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    def make(s, carrying):
        an_object_with_statistics(s, carrying)
        s.optimizer = Mine(s.D.parameters(), lr=0.1)

    situation = Situation(make)
    before = situation.record(), situation.D.norm.n, situation.D.norm.mean.clone()
    unrolled = situation.unrolled(param_transform=lambda p: p.clamp(-9, 9), grad_transform=lambda grads: list(grads))
    found = unrolled(*fake_of(situation)).item()
    assert situation.record() == before[0] and situation.D.norm.n == before[1]
    assert torch.equal(situation.D.norm.mean, before[2])
    assert abs(found - situation.value()) < 1e-12


def test_sharing_that_begins_after_construction():
    situation = Situation(lambda s, carrying: None)
    unrolled = situation.unrolled()
    assert torch.isfinite(unrolled(*fake_of(situation)))
    situation.D.w = situation.D[0].weight.data[1:]
    with pytest.raises(ValueError, match="same memory"):
        unrolled(*fake_of(situation))


def test_a_tensor_subclass_with_a_memory_of_its_own():
    """One with a __torch_dispatch__ is refused by name."""
    from torch.testing._internal.two_tensor import TwoTensor

    D = nn.Linear(2, 1)
    D.weight = nn.Parameter(TwoTensor(D.weight.detach(), D.weight.detach().clone()))
    with pytest.raises(TypeError, match="TwoTensor"):
        UnrolledGeneratorLoss(D, torch.optim.SGD(D.parameters(), lr=0.1))


def test_what_d_returned_before_the_call():
    """In g_loss a closure over D(real) is constant, and D has no gradient of it; a real step of D would follow it."""
    situation = Situation(lambda s, carrying: None)
    real, fake = fake_of(situation)
    before = situation.D(real)
    for p in situation.D.parameters():
        p.grad = None

    def stale(D):
        return F.softplus(-before).mean() + F.softplus(D(fake)).mean()

    with pytest.raises(ValueError, match="^d_loss at inner step 0 captures a tensor whose graph leads to"):
        situation.unrolled()(d_loss=stale, g_loss=lambda D: F.softplus(-D(fake)).mean())
    situation.unrolled()(
        d_loss=lambda D: F.softplus(D(fake)).mean(), g_loss=lambda D: F.softplus(-D(fake)).mean() + before.mean()
    ).backward()
    assert all(p.grad is None for p in situation.D.parameters())
    assert situation.G[0].weight.grad.norm() > 0
    # The control: a plain loss leaves some.
    (F.softplus(-situation.D(situation.batch(1000)[1])).mean() + before.mean()).backward()
    assert all(p.grad is not None for p in situation.D.parameters())


def test_a_buffer_that_carries_the_generators_graph():
    """Its gradient is the generator's, at K = 0 too."""
    for steps in (0, 2):
        situation = Situation(lambda s, carrying: None)
        style = situation.G(torch.ones(1, 3)).mean()
        situation.D.register_buffer("style", style)
        real, fake = fake_of(situation)
        loss = situation.unrolled()(
            real, fake, steps=steps, g_loss=lambda D, real, fake: F.softplus(-D(fake) * D.style).mean()
        )
        (found,) = torch.autograd.grad(loss, style, retain_graph=True)
        assert found.abs() > 1e-4


def test_a_head_that_trains_while_the_body_is_frozen():
    """Built while a head alone requires grad, the body is not frozen if its optimizer has moved it, which is told."""
    situation = Situation(lambda s, carrying: None)
    situation.D[0].requires_grad_(False)
    unrolled = situation.unrolled()
    real, fake = fake_of(situation)
    with pytest.warns(PartlyFrozen, match="2 of 4 parameters of D do not require grad at this call"):
        found = unrolled(real, fake).item()
    # The controls: a D that is frozen as a whole is only resting, and one that trains is no question.
    situation.D.requires_grad_(False)
    assert unrolled(real, fake).item() == found
    situation.D.requires_grad_(True)
    assert unrolled(real, fake).item() == found
    assert abs(found - situation.value()) < 1e-12


def test_a_large_frozen_part_is_copied_once_and_put_back():
    """Not for every evaluation; and what a later loss writes to it is undone and told."""
    situation = Situation(lambda s, carrying: None)
    situation.D.register_parameter("frozen", nn.Parameter(torch.ones(1000), requires_grad=False))
    situation.optimizer = torch.optim.Adam([p for p in situation.D.parameters() if p.requires_grad], lr=0.05)
    places = []

    def noting(D, real, fake):
        places.append(D.frozen.data_ptr())
        return d_loss(D, real, fake) + D.frozen.sum() * 0

    assert torch.isfinite(situation.unrolled(d_loss=noting)(*fake_of(situation)))
    assert places[0] != situation.D.frozen.data_ptr()
    assert set(places[1:]) == {situation.D.frozen.data_ptr()}

    def writing(D, real, fake):
        places.append(None)
        if len(places) % 3 == 0:
            D.frozen.data.mul_(2)
        return d_loss(D, real, fake)

    places.clear()
    with pytest.raises(ValueError, match="frozen"):
        situation.unrolled(d_loss=writing)(*fake_of(situation))
    assert torch.equal(situation.D.frozen, torch.ones(1000))


def test_what_else_d_keeps_is_put_back():
    """A module in a list, arrays and generators, a list of a class of its own, what a partial holds."""
    numpy = pytest.importorskip("numpy")

    class Kept(list):
        count = 0

    def counting(kept, box):
        kept.count += 1
        box.array[0] += 1
        return 0.01 * (kept.count % 5) + torch.rand((), generator=box.draws)

    class Box:
        def __init__(self):
            self.array, self.draws = numpy.zeros(1), torch.Generator().manual_seed(0)

    def make(s, carrying):
        norm, kept, box = nn.BatchNorm1d(2), Kept(), Box()
        s.D = Net(lambda D, x: D.b(torch.tanh(D.a(D.hidden[0](x)))) + D.add(), hidden=[norm])
        s.D.add = functools.partial(counting, kept, box)
        s.kept = lambda: (kept.count, box.array[0], box.draws.get_state().tolist(), int(norm.num_batches_tracked))

    situation = Situation(make)
    before, statistics = situation.kept(), situation.D.hidden[0].running_mean.clone()
    found = situation.unrolled()(*fake_of(situation)).item()
    assert situation.kept() == before and torch.equal(situation.D.hidden[0].running_mean, statistics)
    assert abs(found - situation.value()) < 1e-12
    assert situation.kept() != before


def test_a_spectral_norm_before_the_first_forward_pass():
    """It keeps `weight` in the memory of `weight_orig` until then, and makes it anew before it is used."""
    D = nn.Sequential(nn.utils.spectral_norm(nn.Linear(2, 4)), nn.Tanh(), nn.Linear(4, 1))
    unrolled = UnrolledGeneratorLoss(D, torch.optim.SGD(D.parameters(), lr=0.1), *non_saturating, steps=2)
    assert torch.isfinite(unrolled(torch.randn(8, 2), torch.randn(8, 2, requires_grad=True) * 1))


def test_a_loss_that_sets_the_learning_rate():
    """Refused, with the rate as it was."""
    situation = Situation(lambda s, carrying: None)
    group = situation.optimizer.param_groups[0]

    def warming(D, real, fake):
        group["lr"] = group["lr"] * 0.9
        return d_loss(D, real, fake)

    before = group["lr"]
    with pytest.raises(ValueError, match="options of D's optimizer.*lr"):
        situation.unrolled(d_loss=warming)(*fake_of(situation))
    assert group["lr"] is before


def test_a_loss_that_writes_to_a_learning_rate_that_is_a_tensor():
    """Refused, with the rate as it was."""

    def make(s, carrying):
        s.optimizer = torch.optim.Adam(s.D.parameters(), lr=torch.tensor(0.05), foreach=False)

    situation = Situation(make)
    rate = situation.optimizer.param_groups[0]["lr"]

    def warming(D, real, fake):
        rate.mul_(0.9)
        return d_loss(D, real, fake)

    with pytest.raises(ValueError, match="options of D's optimizer.*lr"):
        situation.unrolled(d_loss=warming)(*fake_of(situation))
    assert rate.item() == pytest.approx(0.05)
