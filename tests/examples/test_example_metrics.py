"""The metrics of the examples on data whose answers are known."""

import math
import sys
from pathlib import Path

import pytest
import torch

np = pytest.importorskip("numpy")
pytest.importorskip("sklearn", reason="the examples' extra is not installed")
sys.path.append(str(Path(__file__).parents[2] / "examples"))

from common import colors, data, fidelity, inversion, metrics, mnist, training  # noqa: E402
from unroll_wrap import hinge, minimax, non_saturating, relativistic  # noqa: E402


def test_kl_of_equal_shares_is_0():
    outcomes = torch.arange(1000).repeat(7)
    assert metrics.kl_from_uniform(outcomes, 1000) == pytest.approx(0, abs=1e-12)
    assert metrics.entropy(outcomes, 1000) == pytest.approx(math.log(1000))


def test_kl_of_fair_draws_is_its_bias():
    """Of n fair draws KL is about (count - 1) / 2n; 25,600 draws give 0.0195."""
    outcomes = torch.randint(1000, (25_600,))
    assert metrics.kl_from_uniform(outcomes, 1000) == pytest.approx(999 / 51_200, rel=0.15)


def test_kl_of_one_mode_is_log_of_the_count():
    outcomes = torch.full((25_600,), 123)
    assert metrics.kl_from_uniform(outcomes, 1000) == pytest.approx(math.log(1000))
    assert metrics.entropy(outcomes, 1000) == pytest.approx(0)


def test_kl_of_half_the_modes_is_log_2():
    assert metrics.kl_from_uniform(torch.arange(500), 1000) == pytest.approx(math.log(2))


@pytest.mark.parametrize("distance", [0.0, 1.0, 2.0, 8.0])
def test_js_of_two_gaussians(distance):
    """Against quadrature: a kernel density of N(m, 1) is N(m, 1 + h²) but for noise, h being the bandwidth."""
    n = 2000
    random = np.random.default_rng(0)
    samples = random.normal(distance, 1, (n, 1)), random.normal(0, 1, (n, 1))
    found = colors.js_divergence(*samples)

    variance = 1 + n ** (-2 / 5)
    x = np.linspace(-20, 28, 100_001)
    p, q = (np.exp(-((x - mean) ** 2) / 2 / variance) / math.sqrt(2 * math.pi * variance) for mean in (distance, 0))
    p, q = np.maximum(p, 1e-300), np.maximum(q, 1e-300)
    expected = (p * np.log(2 * p / (p + q)) + q * np.log(2 * q / (p + q))).sum() * (x[1] - x[0]) / 2
    assert found == pytest.approx(expected, abs=0.02)
    assert -0.02 < found < math.log(2) + 0.02


def test_js_of_a_single_colour():
    """A generator of one colour has a density all the same, far from the data's."""
    many = np.random.default_rng(0).normal(0, 0.5, (500, 3))
    assert 0.3 < colors.js_divergence(np.zeros((500, 3)), many) < math.log(2)


def test_the_colour_is_recovered():
    """From a flat square the very colour; from the data's digits one that follows the colour drawn."""
    images = torch.full((2, 3, 32, 32), -1.0)
    color = torch.tensor([[0.5, -0.25, 0.75], [-0.9, -0.8, 1.0]])
    images[:, :, 8:20, 8:20] = color[:, :, None, None]
    np.testing.assert_allclose(colors.foreground_colors(images), color, atol=1e-6)
    blank = colors.foreground_colors(torch.full((1, 3, 32, 32), -1.0))
    np.testing.assert_array_equal(blank, [[-1.0, -1.0, -1.0]])


def test_colours_of_the_data():
    digits = torch.zeros(1, 28, 28, dtype=torch.uint8)
    digits[:, 6:22, 10:18] = 255
    found = colors.foreground_colors(mnist.sample_colored(400, digits))
    # N(0, 0.5²) clipped to [-1, 1], with the noise averaged out over the pixels.
    assert np.abs(found.mean(axis=0)).max() < 0.1
    assert found.std(axis=0) == pytest.approx(0.48, abs=0.05)


def test_stacked_digits_are_three_of_the_digits():
    digits = torch.randint(256, (5, 28, 28), dtype=torch.uint8)
    images = mnist.sample_stacked(8, digits)
    assert images.shape == (8, 3, 32, 32)
    assert images[..., :2, :].eq(-1).all()
    for digit in data.to_bytes(mnist.crop_to_28(images)).flatten(0, 1):
        assert any(torch.equal(digit, one) for one in digits)


@pytest.mark.parametrize("objective", [minimax, non_saturating, hinge, relativistic])
def test_in_one_batch_is_the_same_game(objective):
    """Without normalization nothing changes; with it D is called once, on both halves."""
    real, fake = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    plain = torch.nn.Linear(4, 1, dtype=torch.float64)
    normalised = torch.nn.Sequential(plain, torch.nn.BatchNorm1d(1, dtype=torch.float64))
    joint = training.in_one_batch(objective)
    for loss, apart in zip(joint, objective, strict=True):
        torch.testing.assert_close(loss(plain, real, fake), apart(plain, real, fake), rtol=1e-12, atol=0)
        logits = dict(zip(("real", "fake"), normalised(torch.cat([real, fake])).chunk(2), strict=True))
        expected = apart(lambda x, logits=logits: logits["real" if x is real else "fake"], real, fake)
        torch.testing.assert_close(loss(normalised, real, fake), expected, rtol=1e-12, atol=0)
        assert (loss(normalised, real, fake) - apart(normalised, real, fake)).abs() > 1e-3


def test_fidelity_of_two_sets_of_one_distribution():
    one, other = torch.randn(2, 1000, 4)
    found = fidelity.fidelity(one, other)
    assert min(found.precision, found.recall, found.coverage) > 0.9
    assert found.density == pytest.approx(1, abs=0.1)


def test_fidelity_tells_quality_from_diversity():
    """One of two clusters is good and half as diverse; twice as many clusters are diverse and half as good."""
    one, other, far = (torch.randn(500, 4) + place for place in (0, 100, 200))
    both = torch.cat([one, other])
    few = fidelity.fidelity(torch.randn(500, 4), both)
    assert few.precision > 0.9 and few.density > 0.85
    assert few.recall == pytest.approx(0.5, abs=0.03) and few.coverage == pytest.approx(0.5, abs=0.03)
    many = fidelity.fidelity(torch.cat([torch.randn(500, 4), far]), one)
    assert many.precision == pytest.approx(0.5, abs=0.03) and many.density == pytest.approx(0.5, abs=0.06)
    assert many.recall > 0.9 and many.coverage > 0.9
    assert fidelity.fidelity(far, one) == (0, 0, 0, 0)


def test_frechet_distance_of_two_gaussians():
    """In d dimensions N(0, I) and N(1, 4 I) are d (1 + (2 - 1)²) apart, and a set is 0 from itself."""
    one, other = torch.randn(2, 20_000, 6)
    network = torch.nn.Identity()
    network.num_features = 6
    assert fidelity.frechet_distance(network, one, 2 * other + 1) == pytest.approx(12, rel=0.05)
    assert fidelity.frechet_distance(network, one, one) == pytest.approx(0, abs=1e-6)


def test_distances_are_of_different_images():
    apart = torch.zeros(2, 3, 4, 4)
    apart[1] = 0.5
    distances = fidelity.pair_distances(apart, 50)
    torch.testing.assert_close(distances, torch.full((50,), 0.5 * math.sqrt(48)))


def test_nearest_to_a_linear_generator():
    """G(z) = W z with orthonormal columns: the residual is what W cannot reach, whatever the start."""
    basis, _ = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))
    W, rest = basis[:, :4], basis[:, 4]
    G = torch.nn.Linear(4, 12, bias=False, dtype=torch.float64)
    G.weight.data = W
    z = torch.randn(3, 4, dtype=torch.float64)
    targets = z @ W.T + torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)[:, None] * rest
    found = inversion.nearest(G, targets, torch.randn(2, 3, 4, dtype=torch.float64), iterations=50)
    torch.testing.assert_close(found.mse, torch.tensor([0, 1 / 12, 9 / 12], dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.z, z, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.images, z @ W.T, rtol=0, atol=1e-3)


def test_batching_changes_no_image():
    """All at once, in batches of 4, and alone: the same image; one L-BFGS over all images finds others."""
    net = torch.nn.Sequential(
        torch.nn.Linear(6, 20), torch.nn.Tanh(), torch.nn.Linear(20, 12), torch.nn.Tanh()
    ).double()
    torch.nn.init.normal_(net[0].weight)
    targets = torch.rand(5, 12, dtype=torch.float64) * 2 - 1
    starts = torch.randn(3, 5, 6, dtype=torch.float64)
    together = inversion.nearest(net, targets, starts, iterations=25)
    in_fours = inversion.nearest(net, targets, starts, iterations=25, batch=4)
    alone = [inversion.nearest(net, targets[[i]], starts[:, [i]], iterations=25) for i in range(5)]
    for field in inversion.Nearest._fields:
        expected = torch.cat([getattr(one, field) for one in alone])
        for found in (together, in_fours):
            torch.testing.assert_close(getattr(found, field), expected, rtol=1e-5, atol=1e-5)

    def of_all(z, _):
        leaf = torch.from_numpy(z).view(-1, 6).requires_grad_()
        value = (net(leaf) - targets.repeat(3, 1)).square().sum()
        (gradient,) = torch.autograd.grad(value, leaf)
        return np.array([value.item()]), gradient.view(1, -1).numpy()

    z, _ = inversion.minimize_each(of_all, starts.reshape(1, -1).numpy(), iterations=25, batch=1)
    errors = (net(torch.from_numpy(z).view(3, 5, 6)) - targets).square().mean(dim=2).min(dim=0).values
    assert (errors / together.mse - 1).abs().max() > 1e-3


def test_an_error_ends_every_thread():
    def refuse(x, problems):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        inversion.minimize_each(refuse, np.zeros((3, 2)), iterations=5, batch=3)
