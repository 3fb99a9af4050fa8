"""How long the generator's gradient is in a first call, where D's Adam has no state yet, and what can be done about it.

python benchmarks/fresh_state.py                 # D untrained: the first call of all
python benchmarks/fresh_state.py --trained 50    # a D that has been trained, and partial(Adam), fresh in every call
"""

import argparse
import functools
import math
import statistics
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from false_alarms import Game, game

from unroll_wrap import UnrolledGeneratorLoss, non_saturating
from unroll_wrap.optimizers.rules.adam import Adam


@contextmanager
def bounded() -> Iterator[None]:
    """Adam's first step has the slope 0 wherever |g| is below 100 eps: there it is taken for the sign that it is."""
    right = Adam.ascend

    def ascend(self: Adam, numbers: Any, param: Any, grad: Any, *given: Any) -> tuple[Any, ...]:
        of_grad, *others = right(self, numbers, param, grad, *given)
        first = math.isclose(numbers.root_correction, (1 - numbers.beta2) ** 0.5)
        return torch.where(grad.abs() < 100 * numbers.eps, 0, of_grad) if first else of_grad, *others

    Adam.ascend = ascend
    try:
        yield
    finally:
        Adam.ascend = right


def stepped(made: Game) -> None:
    made.optimizer.zero_grad()
    non_saturating.d_loss(made.D, made.batch[0], made.batch[1].detach(), **made.labels).backward()
    made.optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--trained", type=int, default=0, help="steps of D before")
    parser.add_argument("--rows", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    norms: dict[str, list[float]] = {}
    for seed in range(args.seeds):
        made = game("dcgan", seed, False, args.trained, args.rows)
        spec = functools.partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999))
        fresh = UnrolledGeneratorLoss(made.D, spec, *non_saturating, steps=args.steps)
        first = UnrolledGeneratorLoss(made.D, spec, *non_saturating, steps=args.steps, stop_gradient=True)
        live = UnrolledGeneratorLoss(made.D, made.optimizer, *non_saturating, steps=args.steps)

        def norm(loss: UnrolledGeneratorLoss, name: str, context: Any = nullcontext, made: Game = made) -> None:
            with context():
                (grad,) = torch.autograd.grad(loss(*made.batch, **made.labels), made.batch[1], retain_graph=True)
            norms.setdefault(name, []).append(float(grad.norm()))

        norm(fresh, "as it is")
        norm(fresh, "a bounded slope", bounded)
        norm(first, "the first term alone")
        stepped(made)
        norm(live, "D stepped once before")
    for name, found in norms.items():
        middle = statistics.median(found)
        long = sum(one > 3 * middle for one in found)
        print(f"{name:24} median {middle:.3g}, longest {max(found) / middle:.3g} times that, above 3 times: {long}")


if __name__ == "__main__":
    main()
