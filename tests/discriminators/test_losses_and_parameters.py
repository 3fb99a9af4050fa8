"""What losses do to D's parameters and read of them: the class, the version, the gradient, and writes to them."""

import pytest
import torch
from torch import nn

from unroll_wrap import FiniteDifference, Recompute, Store, UnrolledGeneratorLoss, non_saturating, verify

pytestmark = pytest.mark.usefixtures("float64")

d_loss, g_loss = non_saturating
BACKWARDS = [Store(), Recompute(), FiniteDifference()]


class World:
    """D after some steps, always the same; `value` takes real steps of the live objects and ends its use."""

    def __init__(self, D, d_loss=d_loss, g_loss=g_loss, warm=12):
        torch.manual_seed(1)
        self.D, self.d_loss, self.g_loss = D(), d_loss, g_loss
        self.G = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.optimizer = torch.optim.Adam(self.D.parameters(), lr=0.05)
        self.real, self.z = torch.randn(8, 2) + 1, torch.randn(8, 3)
        for _ in range(warm):
            self.step(self.fake())

    def fake(self, shift=0.0):
        return self.G(self.z + shift)

    def step(self, fake):
        self.optimizer.zero_grad()
        self.d_loss(self.D, self.real, fake.detach()).backward()
        self.optimizer.step()

    def unrolled(self, **options):
        return UnrolledGeneratorLoss(self.D, self.optimizer, self.d_loss, self.g_loss, **{"steps": 3, **options})

    def value(self, shift=0.0):
        fake = self.fake(shift)
        for _ in range(3):
            self.step(fake)
        return self.g_loss(self.D, self.real, fake).item()

    def state(self):
        tensors = [*self.D.state_dict().values(), *(t for s in self.optimizer.state.values() for t in s.values())]
        grads = [None if p.grad is None else p.grad.clone() for p in self.D.parameters()]
        return [t.to_dense().clone() for t in tensors], grads, list(self.D.named_modules())


def same(one, other):
    pairs = [*zip(one[0], other[0], strict=True), *zip(one[1], other[1], strict=True)]
    return one[2] == other[2] and all(a is b if a is None else torch.equal(a, b) for a, b in pairs)


def assert_exact(make, backward=BACKWARDS[0], tolerance=1e-6):
    world, shift = make(), torch.zeros((), requires_grad=True)
    before = world.state()
    loss = world.unrolled(backward=backward)(world.real, world.fake(shift))
    (slope,) = torch.autograd.grad(loss, shift)
    assert same(before, world.state())
    assert abs(loss.item() - world.value()) < 1e-12
    h = 1e-5
    difference = (make().value(h) - make().value(-h)) / (2 * h)
    assert abs(slope.item() - difference) < tolerance * abs(difference)


class Net(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.a, self.b, self.factor = nn.Linear(2, 5), nn.Linear(5, 1), factor

    def forward(self, x):
        return self.b(torch.tanh(self.a(x))) * self.factor(self)


# What is read.

READ = {
    "the_class": lambda D: 1.5 if type(D.a.weight) is nn.Parameter else 1.0,
    "the_name_of_the_class": lambda D: 1.5 if D.a.weight.__class__.__name__ == "Parameter" else 1.0,
    "the_flag": lambda D: 1.5 if D.a.weight.requires_grad and D.a.weight.is_leaf else 1.0,
}


@pytest.mark.parametrize("backward", BACKWARDS, ids=str)
@pytest.mark.parametrize("name", READ)
def test_what_a_loss_reads_is_there_in_g_loss_too(name, backward):
    assert_exact(lambda: World(lambda: Net(READ[name])), backward)


def keeping(D):
    """A factor that is computed again only if the weight's version is another one."""
    if getattr(D, "version", None) != D.a.weight._version:
        D.version, D.kept = D.a.weight._version, D.a.weight.detach().norm().item()
    return D.kept


def test_what_is_kept_by_the_version_of_a_parameter():
    """Every step is another version, as in training. The detach cuts the slope, so the value alone is compared."""
    world = World(lambda: Net(keeping))
    found = world.unrolled()(world.real, world.fake()).item()
    assert abs(found - world.value()) < 1e-12
    world = World(lambda: Net(keeping))
    world.D.factor = lambda D: D.kept
    assert abs(world.unrolled()(world.real, world.fake()).item() - found) > 1e-6


def of_its_gradient(D):
    return 1.0 if D.a.weight.grad is None else 1 + D.a.weight.grad.norm()


@pytest.mark.parametrize("of", ["d_loss", "g_loss"])
def test_a_loss_that_reads_a_gradient_is_refused(of):
    """In a loop it is there in g_loss, and in d_loss as zero_grad leaves it."""
    losses = {"d_loss": d_loss, "g_loss": g_loss}
    losses[of] = lambda D, real, fake: (d_loss if of == "d_loss" else g_loss)(D, real, fake) * of_its_gradient(D)
    world = World(lambda: Net(lambda D: 1.0), **losses)
    before = world.state()
    with pytest.raises(ValueError, match=rf"{of} reads \.grad of a parameter of D, at test_losses_and_parameters.py"):
        world.unrolled()(world.real, world.fake())
    assert same(before, world.state())


def momentum(world, D):
    (first,) = [s["exp_avg"] for p, s in world.optimizer.state.items() if p is D.a.bias]
    return first.norm()


def kept(world, D):
    """That of the last step, which backward() has put there."""
    before, D.hidden = getattr(D, "hidden", None), D.a(world.real)
    D.hidden.retain_grad()
    return D.hidden.square().mean() + (0.0 if before is None or before.grad is None else before.grad.norm())


def by_offset(world, D):
    return D.a.weight.as_strided((2,), (1,), D.a.weight.storage_offset() + 1).square().sum()


MISSING = {
    "the state of D's optimizer": momentum,
    "a gradient that retain_grad": kept,
    "parameters of D by as_strided with an offset": by_offset,
}


@pytest.mark.parametrize(
    ("of", "what"),
    [(of, what) for of in ("d_loss", "g_loss") for what in MISSING if (of, MISSING[what]) != ("g_loss", kept)],
)
def test_a_loss_that_reads_what_an_unroll_does_not_have_is_refused(of, what):
    """Real steps would move it, or put it there. The gradient that ``g_loss`` keeps is of a later call."""
    world = World(lambda: Net(lambda D: 1.0))
    whole = getattr(world, of)
    setattr(world, of, lambda D, real, fake: whole(D, real, fake) + MISSING[what](world, D))
    before = world.state()
    with pytest.raises(ValueError, match=rf"{of} reads {what}.* at test_losses_and_parameters.py"):
        world.unrolled()(world.real, world.fake())
    assert same(before, world.state())


BEFORE = {
    "state_dict": lambda world: world.D.state_dict()["a.weight"],
    "detach": lambda world: world.D.a.weight.detach(),
    "a slice of data": lambda world: world.D.a.weight.data[0],
    "numpy": lambda world: torch.from_numpy(world.D.a.weight.detach().numpy()),
}


@pytest.mark.parametrize("of", ["d_loss", "g_loss"])
@pytest.mark.parametrize("what", BEFORE)
def test_a_view_of_a_parameter_from_before_the_call_is_refused(of, what):
    """In training it follows the steps; the control is a copy."""
    world = World(lambda: Net(lambda D: 1.0))
    whole, kept = getattr(world, of), BEFORE[what](world)
    setattr(world, of, lambda D, real, fake: whole(D, real, fake) + kept.square().sum())
    before = world.state()
    with pytest.raises(ValueError, match=rf"{of} reads D's own memory .* at test_losses_and_parameters.py"):
        world.unrolled()(world.real, world.fake())
    assert same(before, world.state())
    kept = kept.clone()
    world.unrolled()(world.real, world.fake()).backward()


def test_a_d_that_keeps_its_optimizers_state_is_refused():
    """Its forward would read the state before the call; the control is a copy."""
    world = World(lambda: Net(lambda D: 1.0))
    world.D.kept = next(iter(world.optimizer.state.values()))["exp_avg"]
    before = world.state()
    with pytest.raises(ValueError, match="D keeps a tensor of its optimizer's state, of shape"):
        world.unrolled()(world.real, world.fake())
    assert same(before, world.state())
    world.D.kept = world.D.kept.clone()
    world.unrolled()(world.real, world.fake()).backward()


def test_a_look_at_a_copy_is_not_refused():
    """The control: copies of the state and of parameters, and as_strided without an offset."""
    world = World(lambda: Net(lambda D: 1.0))
    copy = next(iter(world.optimizer.state.values()))["exp_avg"].clone()

    def looking(D, real, fake):
        return d_loss(D, real, fake) + copy.norm() + D.a.weight.as_strided((2,), (1,)).square().sum()

    world.d_loss = looking
    world.unrolled()(world.real, world.fake()).backward()


def test_a_loss_that_clears_gradients_is_not_refused():
    """The control."""

    def clearing(D, real, fake):
        D.zero_grad()
        return d_loss(D, real, fake)

    world = World(lambda: Net(lambda D: 1.0), clearing)
    world.unrolled()(world.real, world.fake()).backward()


# What is written.


def clamped(loss):
    def run(D, real, fake):
        for p in D.parameters():
            p.data.clamp_(-0.4, 0.4)
        return loss(D, real, fake)

    return run


def decayed(loss):
    def run(D, real, fake):
        with torch.no_grad():
            for p in D.parameters():
                p.mul_(0.95)
        return loss(D, real, fake)

    return run


def ascended(loss):
    def run(D, real, fake):
        gradients = torch.autograd.grad(loss(D, real, fake), list(D.parameters()))
        with torch.no_grad():
            for p, g in zip(D.parameters(), gradients, strict=True):
                p.add_(g, alpha=0.05)
        return loss(D, real, fake)

    return run


WRITING = {
    "clamped": (clamped(d_loss), g_loss),
    "decayed": (decayed(d_loss), g_loss),
    "ascended": (ascended(d_loss), g_loss),
    "in g_loss": (d_loss, decayed(g_loss)),
}


@pytest.mark.parametrize("backward", BACKWARDS, ids=str)
@pytest.mark.parametrize("name", WRITING)
def test_a_loss_that_writes_to_parameters_is_refused(name, backward):
    """The value would be right, and the second term would not."""
    world = World(lambda: Net(lambda D: 1.0), *WRITING[name])
    before = world.state()
    with pytest.raises(ValueError, match=r"writes to parameters of D, of shapes.*param_transform="):
        world.unrolled(backward=backward)(world.real, world.fake())
    assert same(before, world.state())


@pytest.mark.parametrize("name", WRITING)
def test_the_first_term_has_no_need_of_that(name):
    """With stop_gradient=True, and where no gradient is asked for."""
    world = World(lambda: Net(lambda D: 1.0), *WRITING[name])
    found = world.unrolled(stop_gradient=True)(world.real, world.fake()).item()
    with torch.no_grad():
        assert world.unrolled()(world.real, world.fake()).item() == found
    assert abs(found - world.value()) < 1e-12


def test_the_first_run_of_a_call_may_write():
    """The parameters that it finds depend on nothing, so one step is exact, and a second one is told."""
    world = World(lambda: Net(lambda D: 1.0), *WRITING["clamped"])
    unrolled = world.unrolled(steps=1)
    for _ in range(2):
        assert verify(unrolled, world.real, world.fake()).passed
        unrolled(world.real, world.fake())
        world.step(world.fake())
    with pytest.raises(ValueError, match="d_loss at inner step 1 writes to parameters of D"):
        unrolled(world.real, world.fake(), steps=2)


def test_drawing_a_batch_that_writes_or_freezes_is_refused():
    """What resample= does before a step is a part of the step."""
    world = World(lambda: Net(lambda D: 1.0))
    before = world.state()

    def clamping(k):
        for p in world.D.parameters():
            p.data.clamp_(-0.4, 0.4)
        return world.real, world.fake()

    def freezing(k):
        world.D.a.requires_grad_(False)
        return world.real, world.fake()

    with pytest.raises(ValueError, match="resample for inner step 1 writes to parameters of D"):
        world.unrolled(resample=clamping)(world.real, world.fake())
    with pytest.raises(ValueError, match="resample for inner step 0 switches requires_grad off for parameters of D"):
        world.unrolled(resample=freezing)(world.real, world.fake())
    assert same(before, world.state())
    assert all(p.requires_grad for p in world.D.parameters())
    world.unrolled(resample=lambda k: (world.real, world.fake()))(world.real, world.fake()).backward()


class ActNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale, self.ready = nn.Parameter(torch.ones(5)), False

    def forward(self, x):
        if not self.ready:
            self.ready = True
            self.scale.data = 1 / x.detach().std(0)
        return x * self.scale


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("backward", [Store(), Recompute()], ids=str)
def test_a_layer_that_initialises_itself_is_not_refused(steps, backward):
    """The control: in call after call before the first real step, and in those after it."""
    world = World(lambda: nn.Sequential(nn.Linear(2, 5), ActNorm(), nn.Tanh(), nn.Linear(5, 1)), warm=0)
    unrolled = world.unrolled(steps=steps, backward=backward)
    for _ in range(2):
        unrolled(world.real, world.fake()).backward()
    world.step(world.fake())
    for _ in range(2):
        unrolled(world.real, world.fake()).backward()


# What hooks keep.


def test_a_gradient_hook_that_keeps_momentum_on_its_parameter_is_refused():
    """The value would be right, and the derivative would miss that the next step depends on it."""

    def make():
        D = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
        for p in D.parameters():
            p.mean = torch.zeros_like(p)
            p.register_hook(lambda g, p=p: p.mean.mul_(0.9).add_(g, alpha=0.1).clone())
        return D

    world = World(make)
    before = world.state()
    with pytest.raises(ValueError, match="A gradient hook on a parameter of D changes a tensor"):
        world.unrolled()(world.real, world.fake())
    assert same(before, world.state())


# What a forward pass registers.


class Built(nn.Module):
    """Builds a layer from its first batch."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.late = nn.Linear(2, 5), nn.Linear(5, 1), None

    def forward(self, x):
        if self.late is None:
            self.late = nn.Linear(5, 5)
            self.late.register_forward_hook(lambda module, inputs, output: 1.1 * output)
        return self.b(torch.tanh(self.late(torch.tanh(self.a(x)))))


class Growing(nn.Module):
    """Appends a layer in the middle of training."""

    def __init__(self):
        super().__init__()
        self.layers, self.b, self.count = nn.ModuleList([nn.Linear(2, 2)]), nn.Linear(2, 1), 0

    def forward(self, x):
        self.count += 1
        if self.count == 28:
            self.layers.append(nn.Linear(2, 2))
            self.layers[0].register_forward_hook(lambda module, inputs, output: 1.1 * output)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.b(x)


@pytest.mark.parametrize(("kind", "warm"), [(Built, 0), (Growing, 12)])
def test_a_layer_that_a_loss_builds_is_gone_after_the_call(kind, warm):
    world = World(kind, warm=warm)
    before, hooks = world.state(), [len(m._forward_hooks) for m in world.D.modules()]
    torch.manual_seed(7)
    loss = world.unrolled()(world.real, world.fake())
    assert same(before, world.state())
    assert [len(m._forward_hooks) for m in world.D.modules()] == hooks
    torch.manual_seed(7)
    assert abs(loss.item() - world.value()) < 1e-12


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 5), nn.Linear(5, 1)
        self.register_buffer("graph", (torch.eye(5) + torch.eye(5).roll(1, 0)).to_sparse())

    def forward(self, x):
        return self.b(torch.sparse.mm(self.graph, torch.tanh(self.a(x)).T).T)


@pytest.mark.parametrize("backward", BACKWARDS, ids=str)
def test_a_sparse_buffer(backward):
    assert_exact(lambda: World(Sparse), backward)
