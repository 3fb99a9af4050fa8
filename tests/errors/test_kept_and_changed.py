"""A batch that a loss changes, gradients that a hook keeps, and a second call after a first one that was refused."""

import pytest
import torch
from torch import nn

from unroll_wrap import UnrolledGeneratorLoss, non_saturating

d_loss, g_loss = non_saturating


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))


def of(loss, D=None, **options):
    D = D or net()
    return UnrolledGeneratorLoss(D, torch.optim.SGD(D.parameters(), lr=0.3), loss, g_loss, **options)


def batch():
    torch.manual_seed(2)
    return torch.randn(8, 2), nn.Linear(3, 2)(torch.randn(8, 3))


def noisy(D, real, fake):
    real += 0.1
    return d_loss(D, real, fake)


def test_a_batch_that_a_loss_changes_in_place():
    """It is refused, and has its values back."""
    real, fake = batch()
    before = real.clone()
    with pytest.raises(ValueError, match="changes a tensor of the batch in place, of shape"):
        of(noisy, steps=1)(real, fake)
    assert torch.equal(real, before)
    with pytest.raises(ValueError, match="d_loss at inner step 0 changes a tensor of the batch in place"):
        of(noisy, steps=3)(real, fake)
    assert torch.equal(real, before)


def test_a_batch_that_a_loss_copies_first():
    """The remedy."""
    of(lambda D, real, fake: noisy(D, real.clone(), fake), steps=3)(*batch())


@pytest.mark.parametrize("of_parameter", [torch.Tensor.detach, lambda p: p.data, lambda p: p.detach()[:2]])
def test_a_batch_in_the_memory_of_a_parameter(of_parameter):
    """A real step would move it in place; a copy is constant, in real steps too."""
    D = net()
    weight = of_parameter(D[0].weight)

    def near(D, real, fake, anchor):
        return d_loss(D, real, fake) + (D[0].weight[: len(anchor)] - anchor).square().sum()

    def returned(D, real, fake, anchor):
        return g_loss(D, real, fake) + 0 * anchor.sum()

    unrolled = UnrolledGeneratorLoss(D, torch.optim.SGD(D.parameters(), lr=0.1), near, returned, steps=2)
    with pytest.raises(ValueError, match="lies in the memory of a tensor of D"):
        unrolled(*batch(), weight)
    unrolled(*batch(), weight.clone())


def test_a_momentum_in_the_batch():
    """A real step moves it too."""
    D = net()
    opt = torch.optim.SGD(D.parameters(), lr=0.1, momentum=0.9)
    d_loss(D, *batch()).backward()
    opt.step()
    momentum = opt.state[D[0].weight]["momentum_buffer"]

    def scaled(D, real, fake, momentum):
        return d_loss(D, real, fake) * (1 + momentum.norm())

    unrolled = UnrolledGeneratorLoss(D, opt, scaled, lambda D, real, fake, _: g_loss(D, real, fake), steps=2)
    with pytest.raises(ValueError, match="of D or of its optimizer"):
        unrolled(*batch(), momentum)
    unrolled(*batch(), momentum.clone())


class Weighted(nn.Module):
    """Weighs its output by the length of the last gradient of its features."""

    def __init__(self, keep):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.out, self.keep = nn.Linear(2, 5), nn.Linear(5, 1), keep
        self.register_buffer("length", torch.ones(()))

    def forward(self, x):
        h = torch.tanh(self.a(x))
        if h.requires_grad:
            h.register_hook(lambda g: self.keep(self, g))
        return self.out(h) * (1 + self.length.clone())


def replaced(D, g):
    D.length = g.norm()


def written(D, g):
    D.length.copy_(g.norm())


@pytest.mark.parametrize("keep", [replaced, written])
def test_a_hook_that_keeps_a_gradient_in_d(keep):
    """A real backward pass has no graph, so nobody writes detach there; a later step depends on what is kept."""
    D = Weighted(keep)
    with pytest.raises(ValueError, match="hook on the graph of d_loss.*keeps a gradient in D"):
        of(d_loss, D, steps=3)(*batch())
    assert D.length == 1


def test_a_hook_that_keeps_a_detached_gradient():
    """That path is cut by the user."""
    of(d_loss, Weighted(lambda D, g: replaced(D, g.detach())), steps=3)(*batch())


def clipped(D, real, fake):
    with torch.no_grad():
        for p in D.parameters():
            p.clamp_(-0.3, 0.3)
    return d_loss(D, real, fake)


def test_a_refused_call_is_refused_again():
    """As in a notebook, where a cell is run twice."""
    unrolled = of(clipped, steps=3)
    for _ in range(2):
        with pytest.raises(ValueError, match="writes to parameters"):
            unrolled(*batch())


def test_another_loss_in_a_later_call_is_watched_too():
    """A loop may change its losses in mid-training."""
    unrolled = of(d_loss, steps=3)
    unrolled(*batch())
    with pytest.raises(ValueError, match="writes to parameters"):
        unrolled(*batch(), d_loss=clipped)
