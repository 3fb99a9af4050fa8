"""What training loops make their losses of: outputs of D, methods, penalties, pools, accumulation, Python's numbers."""

import copy
import random

import pytest
import reference
import torch
from checks import (
    MODES,
    assert_exact,
    assert_exact_in,
    assert_value,
    call,
    expect,
    expected_of,
    gradient_of,
    oracle,
    unrolled_of,
    warm_world,
)
from optimizers import OPTIMIZERS
from problems import mlp_module, plain, points, small_generator, softplus
from torch import nn

from unroll_wrap import UnrolledGeneratorLoss, detach, is_unrolling

STEPS = 3


def warm(D, **losses):
    torch.manual_seed(0)
    return plain(D, OPTIMIZERS["adam"], **losses).warm()


# What D returns, and how a loss gets logits and features out of it.
OUTPUTS = {
    "tuple": (lambda logits, features: (logits, features), lambda out: out),
    "list": (lambda logits, features: [logits, features], lambda out: out),
    "dict": (lambda logits, features: {"logits": logits, "features": features}, lambda out: out.values()),
    "nested": (lambda logits, features: {"scales": [(logits, features)]}, lambda out: out["scales"][0]),
}


class Several(nn.Module):
    def __init__(self, made):
        super().__init__()
        self.body, self.head, self.made = nn.Linear(2, 5), nn.Linear(5, 1), made

    def forward(self, x):
        features = torch.tanh(self.body(x))
        return self.made(self.head(features), features)


@pytest.mark.parametrize(("made", "read"), OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_of_d(made, read):
    """Logits beside features, in whatever they come."""

    def d_loss(D, real, fake):
        (on_real, _), (on_fake, features) = read(D(real)), read(D(fake))
        return softplus(-on_real).mean() + softplus(on_fake).mean() + 0.1 * features.square().mean()

    def g_loss(D, real, fake):
        (_, features_of_real), (on_fake, features) = read(D(real)), read(D(fake))
        return softplus(-on_fake).mean() + (features_of_real.mean(0) - features.mean(0)).square().sum()

    torch.manual_seed(0)
    world = warm(Several(made), d_loss=d_loss, g_loss=g_loss)
    assert_exact_in(MODES, world, unrolled_of(world, steps=STEPS), expect(world, steps=STEPS))


class WithLosses(nn.Module):
    """Its own losses."""

    def __init__(self):
        super().__init__()
        self.body = mlp_module()

    def compute_d_loss(self, real, fake):
        return softplus(-self.body(real)).mean() + softplus(self.body(fake)).mean()

    def compute_g_loss(self, fake):
        return softplus(-self.body(fake)).mean()


class Trainer:
    """Holds D and the batch of the iteration."""

    def __init__(self, netD):
        self.netD, self.real, self.fake = netD, None, None

    def d_loss(self, _):
        return softplus(-self.netD.body(self.real)).mean() + softplus(self.netD.body(self.fake)).mean()

    def g_loss(self, _):
        return softplus(-self.netD.body(self.fake)).mean()


class Criterion(nn.Module):
    """A loss that is a module and owns D, as VQGAN's does."""

    def __init__(self, discriminator):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, real, fake, side):
        on_fake = self.discriminator.body(fake)
        if side == "generator":
            return softplus(-on_fake).mean()
        return softplus(-self.discriminator.body(real)).mean() + softplus(on_fake).mean()


def of_d(world):
    return world.batch(), lambda D, r, f: D.compute_d_loss(r, f), lambda D, r, f: D.compute_g_loss(f)


def of_a_trainer(world):
    trainer = Trainer(world.discriminator)
    trainer.real, trainer.fake = world.batch()
    return (), trainer.d_loss, trainer.g_loss


def of_a_loss_object(world):
    criterion = Criterion(world.discriminator)
    return world.batch(), lambda D, r, f: criterion(r, f, "discriminator"), lambda D, r, f: criterion(r, f, "generator")


@pytest.mark.parametrize("methods", [of_d, of_a_trainer, of_a_loss_object])
def test_losses_that_are_methods(methods):
    """They reach D by ways of their own."""
    torch.manual_seed(0)
    world = warm(
        WithLosses(), d_loss=lambda D, r, f: D.compute_d_loss(r, f), g_loss=lambda D, r, f: D.compute_g_loss(f)
    )
    batch, d_loss, g_loss = methods(world)
    unrolled = UnrolledGeneratorLoss(world.discriminator, world.optimizer, d_loss, g_loss, steps=STEPS)
    assert_exact(unrolled(*batch), world, expect(world, steps=STEPS))


def at_real(real, fake):
    return real


def at_fake(real, fake):
    return fake


def around_real(real, fake):
    """DRAGAN."""
    return real + 0.5 * real.std() * torch.rand_like(real)


def between(real, fake):
    """WGAN-GP."""
    alpha = torch.rand(len(real), 1, dtype=real.dtype)
    return alpha * real + (1 - alpha) * fake


PENALTIES = {"R1": at_real, "R2": at_fake, "DRAGAN": around_real, "WGAN-GP": between}


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "reused"])
@pytest.mark.parametrize("where", PENALTIES.values(), ids=PENALTIES)
def test_penalties(where, fresh):
    """On a leaf of their own, or on the batch itself, which other steps have used before."""

    def d_loss(D, real, fake):
        x = where(detach(real), detach(fake)) if fresh else where(real, fake)
        x = x if x.requires_grad else x.requires_grad_()
        (slope,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
        size = (slope.square().sum(1) + 1e-6).sqrt()
        return softplus(-D(real)).mean() + softplus(D(fake)).mean() + (size - 0.1).square().mean()

    torch.manual_seed(0)
    world = warm(mlp_module(), d_loss=d_loss)
    assert_exact_in(MODES, world, unrolled_of(world, steps=STEPS), expect(world, steps=STEPS))


class ImagePool:
    """Shows D old fakes beside the new ones; a guard keeps an unroll from filling it."""

    def __init__(self, guarded):
        self.images, self.guarded = [], guarded

    def query(self, fake):
        old = self.images[:2]
        if not (self.guarded and is_unrolling()):
            self.images.append(fake.detach())
        return torch.cat([fake, *old])


@pytest.mark.parametrize("guarded", [True, False])
def test_an_image_pool(guarded):
    """Guarded it is exact and left alone; without the guard it gets K fakes of one generator's step."""
    world, pool = warm_world(), ImagePool(guarded)
    for i in range(4):
        pool.query(world.draw(i)[1])
    kept, d_loss = list(pool.images), world.d_loss
    world.d_loss = lambda D, real, fake: d_loss(D, real, torch.cat([fake, *kept[:2]]))
    expected = expect(world, steps=STEPS)
    loss = call(world, unrolled_of(world, steps=STEPS), d_loss=lambda D, real, fake: d_loss(D, real, pool.query(fake)))
    assert_exact(loss, world, expected)
    assert len(pool.images) - len(kept) == (0 if guarded else STEPS)


def test_gradient_accumulation():
    """Several backwards before a step: one scalar for each inner step, their sum."""
    world = warm_world()

    def parts(real, fake):
        return zip(real.chunk(3), fake.chunk(3), strict=True)

    def accumulated():
        with torch.random.fork_rng(devices=[]):
            twins = reference.copies(world.discriminator, world.optimizer)
            for _ in range(STEPS):
                twins.optimizers[0].zero_grad()
                for real, fake in parts(*reference.detached(world.batch())):
                    (world.d_loss(twins.discriminator, real, fake) / 3).backward()
                twins.optimizers[0].step()
            return world.g_loss(twins.discriminator, *world.batch()).detach()

    loss = call(
        world,
        unrolled_of(world, steps=STEPS),
        d_loss=lambda D, *batch: sum(world.d_loss(D, *part) / 3 for part in parts(*batch)),
    )
    assert loss.item() == pytest.approx(accumulated().item(), rel=1e-12)
    first = oracle(reference.first_term, world, steps=STEPS)
    gradient = gradient_of(loss, world)
    for way in reference.directions(world.inputs, 2):
        found = reference.central_difference(accumulated, world.inputs, way)
        assert found.error < 1e-8 and abs(reference.along(gradient, way) - found.slope) < 1e-7 * abs(found.slope)
    assert reference.gap(first, gradient) > 1e-2


def test_two_kinds_of_steps():
    """The main loss in one step, a lazy penalty in the next: what kind it is comes with the batch."""

    def d_loss(D, real, fake, lazy):
        if not lazy:
            return softplus(-D(real)).mean() + softplus(D(fake)).mean()
        x = real.detach().requires_grad_()
        return torch.autograd.grad(D(x).sum(), x, create_graph=True)[0].square().sum(1).mean()

    torch.manual_seed(0)
    G = small_generator()
    draw = points(G)
    world = plain(
        mlp_module(), OPTIMIZERS["adam"], d_loss=d_loss, g_loss=lambda D, real, fake, _: softplus(-D(fake)).mean()
    )
    world.generator, world.inputs, world.resample = G, list(G.parameters()), True
    world.draw = lambda i: (*draw(i), i % 2 == 1)
    world.warm()
    assert_exact(call(world, unrolled_of(world, steps=4)), world, expect(world, steps=4))


def test_nan_to_num_on_gradients():
    """As StyleGAN2 has it between backward and step."""
    world = warm_world()

    def clean(g):
        return torch.nan_to_num(g, nan=0, posinf=1e5, neginf=-1e5).clamp(-0.05, 0.05)

    def after_backward(params):
        for p in params:
            p.grad = clean(p.grad)

    expected = expect(world, steps=STEPS, after_backward=after_backward)
    unrolled = unrolled_of(world, steps=STEPS, grad_transform=lambda grads: [clean(g) for g in grads])
    assert_exact(call(world, unrolled), world, expected)


def test_gradient_hooks_on_parameters():
    """`p.register_hook(...)` changes a gradient before the optimizer sees it, in an unroll too."""
    world = warm_world()
    weight = world.discriminator[0].weight
    weight.register_hook(lambda g: 0.5 * g.tanh())

    def after_backward(params):
        (mine,) = (p for p in params if p.shape == weight.shape)
        mine.grad = 0.5 * mine.grad.tanh()

    def without_hooks(**options):
        hooks, weight._backward_hooks = weight._backward_hooks, None
        try:
            return expect(world, steps=STEPS, **options)
        finally:
            weight._backward_hooks = hooks

    expected = without_hooks(after_backward=after_backward)
    assert expected.value != without_hooks().value
    assert_exact(call(world, unrolled_of(world, steps=STEPS)), world, expected)


def test_numbers_of_python_and_numpy(capsys):
    """A branch on a value, a mean by numpy, a weight by Python's random numbers, a line of log."""
    world = warm_world()
    d_loss = world.d_loss

    def with_numbers(D, real, fake):
        loss = d_loss(D, real, fake)
        weight = 1 + 0.1 * float(real.detach().numpy().mean()) + 0.1 * random.random()
        print(f"loss_D {loss.item():.3f}")
        return weight * loss if loss.item() > 0.1 else loss

    world.d_loss = with_numbers
    value, first = reference.value, reference.first_term

    def replayed(function):
        def from_the_same_numbers(*args, **options):
            random.seed(0)
            return function(*args, **options)

        return from_the_same_numbers

    expected = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "value", replayed(value))
        patch.setattr(reference, "first_term", replayed(first))
        expected = expect(world, steps=STEPS)
    capsys.readouterr()
    random.seed(0)
    assert_exact(call(world, unrolled_of(world, steps=STEPS)), world, expected)
    assert capsys.readouterr().out.count("loss_D") == STEPS


def test_a_generator_that_runs_again_moves_its_own_statistics():
    """K + 1 times where the losses run it, once where the fake is passed."""
    torch.manual_seed(0)
    G = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)).double()
    world = warm_world()
    z = torch.randn(6, 2, dtype=torch.float64)
    real = world.batch()[0]
    unrolled = unrolled_of(world, steps=STEPS)
    unrolled(real, G(z))
    assert G[1].num_batches_tracked == 1
    unrolled(d_loss=lambda D: world.d_loss(D, real, G(z)), g_loss=lambda D: world.g_loss(D, real, G(z)))
    assert G[1].num_batches_tracked == 1 + STEPS + 1


def test_exponential_averages_of_g_are_not_seen():
    """They are updated after the generator's step, from values that a call has left alone."""
    expected, world = expected_of("mlp", "adam", STEPS), warm_world()
    average = torch.optim.swa_utils.AveragedModel(
        world.generator, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    average.update_parameters(world.generator)
    before = [p.clone() for p in (*average.parameters(), *world.generator.parameters())]
    assert_exact(call(world, unrolled_of(world, steps=STEPS)), world, expected)
    after = [*average.parameters(), *world.generator.parameters()]
    assert all(map(torch.equal, before, after))


@pytest.mark.filterwarnings("ignore::unroll_wrap.PartialDetach")
def test_a_loss_that_copies_the_discriminator():
    """A frozen twin for a penalty: the copy of an unrolled D is a D with parameters of its own."""
    world = warm_world()
    d_loss = world.d_loss

    def towards_a_copy(D, real, fake):
        twin = copy.deepcopy(D)
        assert not any(a is b for a, b in zip(D.parameters(), twin.parameters(), strict=True))
        return d_loss(D, real, fake) + (D(real) - 2 * twin(real).detach()).square().mean()

    world.d_loss = towards_a_copy
    # The copy is cut off: its value counts, its derivative does not.
    assert_value(call(world, unrolled_of(world, steps=3)), oracle(reference.value, world, steps=3))
