"""How often `verify` accuses a call that is right: README's net and a conditional DCGAN, seed by seed.

python benchmarks/false_alarms.py --net readme --seeds 200                 # fresh Adam, float32
python benchmarks/false_alarms.py --net dcgan --seeds 200 --warm --double
"""

import argparse
import time
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unroll_wrap import UnrolledGeneratorLoss, non_saturating, verify


class Game(NamedTuple):
    """One user's objects, and a batch of theirs."""

    D: nn.Module
    optimizer: torch.optim.Optimizer
    batch: tuple[Tensor, Tensor]
    labels: dict[str, Tensor]

    def unrolled(self, steps: int) -> UnrolledGeneratorLoss:
        return UnrolledGeneratorLoss(self.D, self.optimizer, *non_saturating, steps=steps)


class Conditional(nn.Module):
    """A small DCGAN discriminator of 16 px that is told the class by an embedding on a channel of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Embedding(10, 16 * 16)
        self.net = nn.Sequential(
            *(nn.Conv2d(2, 16, 4, 2, 1), nn.LeakyReLU(0.2)),
            *(nn.Conv2d(16, 32, 4, 2, 1), nn.BatchNorm2d(32), nn.LeakyReLU(0.2)),
            *(nn.Flatten(), nn.Linear(32 * 16, 1)),
        )

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.net(torch.cat([x, self.classes(labels).view(-1, 1, 16, 16)], 1))


def game(net: str, seed: int, double: bool, warm: int, rows: int = 8) -> Game:
    torch.manual_seed(seed)
    labels: dict[str, Tensor] = {}
    if net == "readme":
        G: nn.Module = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 2))
        D: nn.Module = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1))
        noise, real, lr = torch.randn(rows, 16), torch.randn(rows, 2) + 2, 1e-3
    else:
        G = nn.Sequential(nn.Linear(16, 256), nn.Tanh(), nn.Unflatten(1, (1, 16, 16)))
        D = Conditional()
        noise, real, lr = torch.randn(rows, 16), torch.rand(rows, 1, 16, 16) * 2 - 1, 2e-4
        labels = {"labels": torch.randint(10, (rows,))}
    if double:
        D, G, noise, real = D.double(), G.double(), noise.double(), real.double()
    optimizer = torch.optim.Adam(D.parameters(), lr=lr, betas=(0.5, 0.999))
    for _ in range(warm):
        optimizer.zero_grad()
        non_saturating.d_loss(D, real, G(noise).detach(), **labels).backward()
        optimizer.step()
    return Game(D, optimizer, (real, G(noise)), labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--net", choices=("readme", "dcgan"), default="readme")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm", action="store_true", help="after three steps of D")
    parser.add_argument("--double", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    began, alarms, noted = time.perf_counter(), [], 0
    for seed in range(args.first, args.first + args.seeds):
        made = game(args.net, seed, args.double, 3 if args.warm else 0)
        report = verify(made.unrolled(args.steps), *made.batch, **made.labels)
        noted += bool(report.notes)
        if not report.passed:
            alarms.append(seed)
            print(f"seed {seed}\n{report}", flush=True)
    seconds = (time.perf_counter() - began) / args.seeds
    kind = f"{args.net}, {'warm' if args.warm else 'fresh'}, {'float64' if args.double else 'float32'}"
    print(f"{kind}: {len(alarms)} alarms in {args.seeds} seeds {alarms}, {noted} with a note, {seconds:.2f} s each")


if __name__ == "__main__":
    main()
