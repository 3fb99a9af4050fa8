"""Seconds that `verify` takes on a DCGAN at 64 px, as the PyTorch examples have it, on random images.

python benchmarks/verify_cost.py                        # K = 5, a batch of 8, two threads
python benchmarks/verify_cost.py --steps 10 --batch 16
"""

import argparse
import itertools
import time

import torch
from torch import nn

from unroll_wrap import UnrolledGeneratorLoss, non_saturating, verify


def discriminator(width: int) -> nn.Module:
    """3 → width → 2 width → 4 width → 8 width → 1 logit, each a convolution of 4 × 4 and stride 2."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    for inputs in (width, 2 * width, 4 * width):
        layers += [nn.Conv2d(inputs, 2 * inputs, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * inputs)]
        layers.append(nn.LeakyReLU(0.2, inplace=True))
    return nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, 1, 0, bias=False), nn.Flatten(0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=5, help="K (default: 5)")
    parser.add_argument("--batch", type=int, default=8, help="images (default: 8)")
    parser.add_argument("--width", type=int, default=64, help="of D's first layer (default: 64)")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    D = discriminator(args.width)
    optimizer = torch.optim.Adam(D.parameters(), lr=2e-4, betas=(0.5, 0.999))
    real, fake = (torch.rand(args.batch, 3, 64, 64) * 2 - 1 for _ in range(2))
    for _ in range(10):
        optimizer.zero_grad()
        non_saturating.d_loss(D, real, fake).backward()
        optimizer.step()

    evaluations = itertools.count()

    def d_loss(*batch: torch.Tensor) -> torch.Tensor:
        next(evaluations)
        return non_saturating.d_loss(*batch)

    unrolled = UnrolledGeneratorLoss(D, optimizer, d_loss, non_saturating.g_loss, steps=args.steps)
    began = time.perf_counter()
    report = verify(unrolled, real, fake.requires_grad_())
    seconds = time.perf_counter() - began
    print(
        f"K = {args.steps}, batch {args.batch}, {args.threads} threads: {seconds:.1f} s, "
        f"d_loss evaluated {next(evaluations)} times"
    )
    raise SystemExit(not report.passed)


if __name__ == "__main__":
    main()
