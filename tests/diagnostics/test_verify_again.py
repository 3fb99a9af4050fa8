"""verify after a call, on what losses capture, and on losses that ask for the graph of a fake."""

import pytest
import torch
from torch import nn

import unroll_wrap
from unroll_wrap import UnrolledGeneratorLoss, verify


def small_gan():
    torch.manual_seed(0)
    D = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 6))
    return D, torch.optim.Adam(D.parameters(), lr=1e-2), nn.Linear(3, 6), torch.randn(8, 6)


@pytest.mark.usefixtures("float64")
@pytest.mark.filterwarnings("ignore::unroll_wrap.UnrollWarning")
def test_a_cut_that_a_call_has_told_passes_after_that_call_too():
    """EBGAN's loss detaches the fake that D reconstructs."""
    D, opt, G, real = small_gan()

    def d_loss(D, real, fake):
        return (D(real) - real).square().mean() + (1 - (D(fake) - fake).square().mean()).relu()

    def g_loss(D, real, fake):
        return (D(fake) - fake.detach()).square().mean()

    unrolled = UnrolledGeneratorLoss(D, opt, d_loss, g_loss, steps=2)
    assert verify(unrolled, real, G(torch.randn(8, 3))).passed
    unrolled(real, G(torch.randn(8, 3)))
    assert verify(unrolled, real, G(torch.randn(8, 3))).passed


@pytest.mark.usefixtures("float64")
def test_captured_tensors_of_which_one_is_made_from_the_other():
    """CycleGAN's fake and its reconstruction, both attributes of the model that the losses belong to."""
    D, opt, _, real = small_gan()
    there, back = nn.Linear(6, 6), nn.Linear(6, 6)

    class Model:
        def forward(self):
            self.fake = there(real)
            self.rec = back(self.fake)
            self.again = back(self.rec) + self.fake

        def d_loss(self, D):
            return torch.nn.functional.softplus(-D(real)).mean() + torch.nn.functional.softplus(D(self.fake)).mean()

        def g_loss(self, D):
            cycles = (self.rec - real).square().mean() + (self.again - real).square().mean()
            return torch.nn.functional.softplus(-D(self.fake)).mean() + cycles

    model = Model()
    model.forward()
    assert verify(UnrolledGeneratorLoss(D, opt, model.d_loss, model.g_loss, steps=2)).passed


@pytest.mark.parametrize("caught", [False, True])
def test_a_gradient_through_the_graph_of_a_fake_is_refused(caught):
    """VQGAN weighs its losses by gradients of the decoder's last layer, which a fake in the batch does not lead to."""
    D, opt, G, real = small_gan()

    def d_loss(D, real, fake, last):
        return (1 - D(real)).relu().mean() + (1 + D(fake)).relu().mean()

    def g_loss(D, real, fake, last):
        loss, reconstruction = -D(fake).mean(), (real - fake).abs().mean()
        try:
            grads = [torch.autograd.grad(one, last, retain_graph=True)[0] for one in (reconstruction, loss)]
        except RuntimeError:
            if not caught:
                raise
            return reconstruction
        return reconstruction + (grads[0].norm() / grads[1].norm()).detach() * loss

    unrolled = UnrolledGeneratorLoss(D, opt, d_loss, g_loss, steps=2)
    with pytest.raises(ValueError, match="g_loss takes a gradient with respect to a tensor from which"):
        unrolled(real, G(torch.randn(8, 3)), G.weight)
    if caught:
        # Real steps have no error, and the same wrong value.
        report = verify(unrolled, real, G(torch.randn(8, 3)), G.weight)
        assert not report.passed
        assert "g_loss takes a gradient with respect to" in report.problems[0]
    # The remedy: what is captured keeps its graph.
    fake = G(torch.randn(8, 3))
    captured = UnrolledGeneratorLoss(
        D,
        opt,
        lambda D, real: d_loss(D, real, fake, None),
        lambda D, real: g_loss(D, real, fake, G.weight),
        steps=2,
    )
    with pytest.warns(unroll_wrap.PartialDetach):
        captured(real)
