"""Transforms to which no derivative passes: the value would be that of real steps, and the second term would not."""

import pytest
import torch
from situations import Situation, d_loss, g_loss

from unroll_wrap import FiniteDifference, Recompute, Store, UnrolledGeneratorLoss, clip_grad_norm

pytestmark = pytest.mark.usefixtures("float64")

BACKWARDS = [Store(), Recompute(), FiniteDifference()]


def past_autograd(p):
    with torch.no_grad():
        return p.clamp_(-0.3, 0.3)


def halved_past_autograd(grads):
    with torch.no_grad():
        for g in grads:
            g.mul_(0.5)
    return grads


def one_detached(grads):
    return [g.detach() if g.dim() == 1 else 2 * g for g in grads]


def scaled_by_a_number(grads):
    norm = torch.stack([g.norm() for g in grads]).norm().item()
    return [g * min(1.0, 0.01 / norm) for g in grads]


def centred_on_a_detached_mean(grads):
    return [g - g.mean().detach() for g in grads]


def projected_by_a_detached_share(grads):
    """A projection whose coefficient does not change with the gradient's length, as that of PCGrad."""
    first = grads[0]
    return [g - (g.flatten()[0] / first.flatten()[0]).detach() * first.flatten()[0] * g.sign() for g in grads]


def divided_by_its_length(p):
    with torch.no_grad():
        length = p.norm()
    return p / length


CUT = {
    "p.data.clamp_": {"param_transform": lambda p: p.data.clamp_(-0.3, 0.3)},
    "p.detach()": {"param_transform": lambda p: p.detach().clamp(-0.3, 0.3)},
    "no_grad() on p": {"param_transform": past_autograd},
    "g.detach()": {"grad_transform": lambda grads: [g.detach() * 0.5 for g in grads]},
    "g.data": {"grad_transform": lambda grads: [g.data.mul_(0.5) for g in grads]},
    "no_grad() on g": {"grad_transform": halved_past_autograd},
    "one of several": {"grad_transform": one_detached},
    "a number": {"grad_transform": scaled_by_a_number},
    "a part": {"grad_transform": centred_on_a_detached_mean},
    "a share": {"grad_transform": projected_by_a_detached_share},
    "a length": {"param_transform": divided_by_its_length},
}


def made(D):
    return torch.optim.Adam(D.parameters(), lr=0.05)


def unrolled(situation, **options):
    return UnrolledGeneratorLoss(situation.D, situation.stepper, d_loss, g_loss, steps=3, **options)


@pytest.mark.parametrize("backward", BACKWARDS, ids=str)
@pytest.mark.parametrize("name", CUT)
def test_refused(name, backward):
    situation = Situation(made)
    real, fake = situation.batch(1000)
    before = situation.record()
    transform = next(iter(CUT[name]))
    with pytest.raises(ValueError, match=rf"{transform} returns a tensor of shape \(.*\) whose derivative is not"):
        unrolled(situation, **CUT[name], backward=backward)(real, fake)
    assert situation.record() == before
    # The first term has no need of it, nor has the value.
    loss = unrolled(situation, **CUT[name], backward=backward, stop_gradient=True)(real, fake)
    with torch.no_grad():
        assert torch.equal(loss, unrolled(situation, **CUT[name], backward=backward)(real, fake))


@pytest.mark.parametrize("backward", BACKWARDS, ids=str)
def test_momentum_in_a_closure(backward):
    """A graph that goes on in an earlier step, which the derivative would miss."""
    situation, sums = Situation(made), []

    def momentum(grads):
        sums[:] = [0.9 * s + g for s, g in zip(sums, grads, strict=True)] if sums else grads
        return list(sums)

    real, fake = situation.batch(1000)
    with pytest.raises(ValueError, match="A transform computes with a tensor of shape .* none of this step's"):
        unrolled(situation, grad_transform=momentum, backward=backward)(real, fake)


FINE = {
    "in place": {"grad_transform": lambda grads: [g.mul_(0.5) for g in grads]},
    "clamp_": {"param_transform": lambda p: p.clamp_(-0.3, 0.3)},
    "zeros": {"grad_transform": lambda grads: [torch.zeros_like(g) if g.dim() == 1 else g for g in grads]},
    "the package's": {"grad_transform": clip_grad_norm(0.1)},
    "of D's parameters": {"grad_transform": lambda grads: [g + 0.1 * g.norm() for g in grads]},
    "a branch": {"grad_transform": lambda grads: [g if g.norm().item() > 1e-3 else 2 * g for g in grads]},
    "noise": {"grad_transform": lambda grads: [g + 0.1 * torch.randn_like(g) for g in grads]},
    "the largest": {"grad_transform": lambda grads: [g * (g.abs() >= g.abs().median()) for g in grads]},
    "signs": {"grad_transform": lambda grads: [g + 0.01 * g.sign() for g in grads]},
    "nothing": {"grad_transform": lambda grads: grads, "param_transform": lambda p: p},
}


@pytest.mark.parametrize("backward", BACKWARDS, ids=str)
@pytest.mark.parametrize("name", FINE)
def test_the_control(name, backward):
    """What autograd sees passes, and a constant zero is no cut."""
    situation = Situation(made)
    unrolled(situation, **FINE[name], backward=backward)(*situation.batch(1000)).backward()


def test_a_kink():
    """Where a bound is just reached, the derivative is that of one side."""
    situation, largest = Situation(made), []

    def noted(grads):
        largest.append(max(float(g.abs().max()) for g in grads))
        return grads

    batch = situation.batch(1000)
    with torch.no_grad():
        unrolled(situation, grad_transform=noted)(*batch)
    unrolled(situation, grad_transform=lambda grads: [g.clamp(max=largest[0]) for g in grads])(*batch).backward()


def test_what_a_transform_keeps_is_not_disturbed():
    """The comparison calls it more often, and puts back what it keeps."""
    situation, norms = Situation(made), []

    def noting(grads):
        norms.append(float(torch.stack([g.detach().norm() for g in grads]).norm()))
        return clip_grad_norm(0.05)(grads)

    unrolled(situation, grad_transform=noting)(*situation.batch(1000)).backward()
    assert len(norms) == 3


def decayed(D, cut):
    """A decay that is added to the gradient, as an orthogonal regulariser is in BigGAN."""
    return lambda grads: [g + 0.3 * (p.detach() if cut else p) for g, p in zip(grads, D.parameters(), strict=True)]


@pytest.mark.parametrize("backward", BACKWARDS, ids=str)
def test_what_a_transform_reads_of_d(backward):
    """D's parameters depend on the generator after the first step, and not before it."""
    situation = Situation(made)
    real, fake = situation.batch(1000)
    before = situation.record()
    with pytest.raises(ValueError, match="grad_transform returns a tensor of shape .* whose derivative is not"):
        unrolled(situation, grad_transform=decayed(situation.D, cut=True), backward=backward)(real, fake)
    assert situation.record() == before
    one = UnrolledGeneratorLoss(situation.D, situation.stepper, d_loss, g_loss, steps=1, backward=backward)
    losses = []
    for cut in (True, False):
        one.grad_transform = decayed(situation.D, cut)
        losses.append(one(real, fake))
    first, second = (torch.autograd.grad(loss, fake)[0] for loss in losses)
    assert torch.equal(first, second)
    whole = unrolled(situation, grad_transform=decayed(situation.D, cut=False), backward=backward)
    whole(*situation.batch(1000)).backward()


def largest_tenth(grads):
    least = [g.abs().flatten().topk(max(1, g.numel() // 10)).values[-1] for g in grads]
    return [g * (g.abs() >= bound) for g, bound in zip(grads, least, strict=True)]


def below_a_quantile(grads):
    return [g.clamp(-bound, bound) for g in grads for bound in [g.abs().flatten().quantile(0.9)]]


def through_16_bits(grads):
    return [g.half().to(g.dtype) for g in grads]


def standardised(grads):
    """The gradient of a single bias has no deviation, whose derivative is finite and has none of its own."""
    return [g / (g.std(unbiased=False) + 1e-3) for g in grads]


def only_in_32_bits(grads):
    assert all(g.dtype is torch.float32 for g in grads)
    return [0.5 * g for g in grads]


def with_the_gradient_of_a_penalty(grads):
    """It has to be computed with gradients on."""
    weight = torch.ones_like(grads[0], requires_grad=True)
    (more,) = torch.autograd.grad(weight.pow(4).sum(), weight)
    return [grads[0] + 0.1 * more, *grads[1:]]


WIDE = [largest_tenth, below_a_quantile, through_16_bits, standardised, only_in_32_bits, with_the_gradient_of_a_penalty]


@pytest.mark.parametrize("transform", WIDE)
def test_what_differences_in_32_bits_say_nothing_of(transform):
    """Among many elements a quantile bends all the time; 16 bits are coarser than a difference."""
    torch.manual_seed(0)
    D = torch.nn.Sequential(
        torch.nn.Linear(2, 200), torch.nn.Tanh(), torch.nn.Linear(200, 200), torch.nn.Linear(200, 1)
    )
    D, (real, fake) = D.float(), torch.randn(2, 8, 2, dtype=torch.float32)
    optimizer = made(D)
    d_loss(D, real, fake).backward()
    optimizer.step()
    fake.requires_grad_()
    UnrolledGeneratorLoss(D, optimizer, d_loss, g_loss, steps=1, grad_transform=transform)(real, fake).backward()
    assert fake.grad is not None and fake.grad.any()


def test_a_cut_in_32_bits_of_a_computation_in_64():
    """A norm is often computed in 32 bits."""
    situation = Situation(made)

    def clipped(grads):
        norm = torch.stack([g.detach().float().norm() for g in grads]).norm()
        return [g * (0.01 / norm).clamp(max=1.0) for g in grads]

    with pytest.raises(ValueError, match="whose derivative is not"):
        unrolled(situation, grad_transform=clipped)(*situation.batch(1000))


@pytest.mark.parametrize("cut", [True, False])
def test_a_gradient_hook(cut):
    """A hook of the user's is differentiated with the update, as a transform is."""
    situation = Situation(made)
    p = next(situation.D.parameters())
    p.register_hook(lambda g: g / (g.norm().item() if cut else g.norm()))
    loss = unrolled(situation)
    if cut:
        with pytest.raises(ValueError, match="A gradient hook on a parameter of D returns a tensor of shape"):
            loss(*situation.batch(1000))
    else:
        loss(*situation.batch(1000)).backward()
