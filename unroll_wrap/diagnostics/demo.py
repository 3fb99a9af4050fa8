"""Train a plain GAN and an unrolled one on the ring of eight Gaussians of the paper's section 3.1."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..gan import UnrolledGeneratorLoss
from ..objectives import minimax

MODES, STD, RATE, NOISE = 8, 0.02, 3e-3, 256


def demo(steps: int = 5, updates: int = 1000, batch: int = 256, seed: int = 0) -> tuple[int, int]:
    """Train with K = 0 and K = ``steps`` side by side from the same weights, and print how many modes each covers.

    Returns:
        The numbers of modes that the plain and the unrolled GAN cover at the end.
    """
    print(f"A ring of {MODES} Gaussians: modes covered by the samples of a generator, of {MODES}\n")
    print(f"{'update':>8}  {'plain GAN':>10}  {f'unrolled, K = {steps}':>16}")
    plain, unrolled = (train(k, updates, batch, seed) for k in (0, steps))
    covered = 0, 0
    for update, (of_plain, of_unrolled) in enumerate(zip(plain, unrolled, strict=True), 1):
        if update % max(1, updates // 10) == 0 or update == updates:
            covered = modes(of_plain), modes(of_unrolled)
            print(f"{update:8,}  {covered[0]:10}  {covered[1]:16}", flush=True)
    return covered


def train(steps: int, updates: int, batch: int, seed: int) -> Iterator[nn.Module]:
    """Run the loop of a plain GAN with the unrolled loss in it, and yield the generator after each update."""
    draws = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        G, D = networks()
    opt_G = torch.optim.Adam(G.parameters(), lr=RATE, betas=(0.5, 0.999))
    opt_D = torch.optim.Adam(D.parameters(), lr=RATE, betas=(0.5, 0.999))
    unrolled = UnrolledGeneratorLoss(D, opt_D, *minimax, steps=steps)
    for update in range(updates):
        for optimizer in (opt_G, opt_D):
            optimizer.param_groups[0]["lr"] = RATE * (1 - update / updates)

        real, fake = ring(batch, draws), G(torch.randn(batch, NOISE, generator=draws))
        opt_D.zero_grad()
        minimax.d_loss(D, real, fake.detach()).backward()
        opt_D.step()

        real, fake = ring(batch, draws), G(torch.randn(batch, NOISE, generator=draws))
        opt_G.zero_grad()
        unrolled(real, fake).backward()
        opt_G.step()
        yield G


def networks() -> tuple[nn.Sequential, nn.Sequential]:
    """Return G and D of the paper's Appendix A, with weights drawn from torch's default generator."""
    G = nn.Sequential(nn.Linear(NOISE, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))
    D = nn.Sequential(nn.Linear(2, 128), nn.ReLU(), nn.Linear(128, 1))
    for layer in (*G, *D):
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain=0.8)
            nn.init.zeros_(layer.bias)
    with torch.no_grad():
        next(D.parameters()).div_(4)
    return G, D


def centers() -> Tensor:
    """Return the centers of the eight Gaussians on a circle of radius 2, with shape (8, 2)."""
    angles = torch.arange(MODES) * math.pi / 4
    return 2 * torch.stack([angles.cos(), angles.sin()], dim=1)


def ring(count: int, generator: torch.Generator) -> Tensor:
    """Return ``count`` samples of the data, with shape (count, 2)."""
    of = torch.randint(MODES, (count,), generator=generator)
    return centers()[of] + STD * torch.randn(count, 2, generator=generator)


def modes(G: nn.Module) -> int:
    """Return how many modes have at least 1 % of 2,000 generated samples within a distance of 0.3."""
    with torch.no_grad():
        samples = G(torch.randn(2000, NOISE, generator=torch.Generator().manual_seed(0)))
    near = torch.cdist(samples, centers()) < 0.3
    return int((near.float().mean(0) >= 0.01).sum())
