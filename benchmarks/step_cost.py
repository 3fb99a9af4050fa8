"""c = (T(K) - T(0)) / (K · T_grad): what an unrolled step costs, in plain gradients of d_loss.

T_grad is one gradient of d_loss with respect to D's parameters, T(0) the plain g_loss with its gradient down to
`fake`, T(K) the same for the loss after K steps. The ideal is 3 for an exact unroll that keeps its graphs, and 1
for the first term of Eq. 12 alone.

Everything is timed in one run on one thread, in interleaved rounds: machines drift, and only numbers of the same
round are divided. Before anything is timed, every exact contender must give the same gradient in float64. The
data are random tensors of the right shape, and D's Adam has taken some real steps on them.

    python benchmarks/step_cost.py                           # the ring and the stacked-MNIST nets, a minute
    python benchmarks/step_cost.py --nets ring stacked cifar10 --json step_cost.json
"""

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

import unroll_wrap
from unroll_wrap import Objective, UnrolledGeneratorLoss, minimax, non_saturating


@dataclass(frozen=True)
class Config:
    repeats: int = 15  # interleaved rounds
    seconds: float = 0.06  # a timing repeats its function for about so long
    clock: str = "wall"
    warm_up: int = 20  # Adam's real steps before the unroll
    seed: int = 0
    overhead_allowed: tuple[float, float] = (0.05, 100e-6)  # of steps=0: share of T(0), plus seconds


# One thread's processor time is what wall time would be on an idle machine; the better choice on a busy one.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


class Scale(nn.Module):
    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def ring_discriminator() -> nn.Module:
    """Appendix A: x/4, one layer of 128, a logit."""
    D = nn.Sequential(Scale(1 / 4), nn.Linear(2, 128), nn.ReLU(), nn.Linear(128, 1))
    for linear in (D[1], D[3]):
        nn.init.orthogonal_(linear.weight, gain=0.8)
        # With the default biases some units are dead, v is 0 there, and a graph written by hand gives nan.
        nn.init.zeros_(linear.bias)
    return D


def conv_discriminator(channels: tuple[int, ...]) -> nn.Module:
    """Appendices D and E on 32 px: 3x3 convolutions of stride 2, BatchNorm, a leak of 0.3, a logit."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip((3, *channels[:-1]), channels, strict=True):
        # No bias: BatchNorm takes it out again.
        conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.3)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * 4 * 4, 1))


@dataclass(frozen=True)
class Problem:
    title: str
    discriminator: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of real and fake, the batch included
    objective: Objective
    steps: int  # K
    lr: float


NETS = {
    "ring": Problem("ring, Appendix A", ring_discriminator, (512, 2), minimax, steps=10, lr=1e-4),
    "stacked": Problem(
        "stacked MNIST, Appendix E at X=1/2",
        partial(conv_discriminator, (4, 8, 16)),
        (64, 3, 32, 32),
        non_saturating,
        steps=5,
        lr=2e-4,
    ),
    "cifar10": Problem(
        "CIFAR-10, Appendix D",
        partial(conv_discriminator, (64, 128, 256)),
        (64, 3, 32, 32),
        non_saturating,
        steps=5,
        lr=2e-4,
    ),
}


@dataclass
class Setup:
    """A problem with D and its Adam warm, and a batch at hand."""

    problem: Problem
    D: nn.Module
    optimizer: torch.optim.Adam
    real: Tensor
    fake: Tensor  # requires grad: the end of the generator's graph

    def params(self) -> list[Tensor]:
        return list(self.D.parameters())


def set_up(problem: Problem, config: Config, dtype: torch.dtype) -> Setup:
    torch.manual_seed(config.seed)
    D = problem.discriminator().to(dtype)
    optimizer = torch.optim.Adam(D.parameters(), lr=problem.lr, betas=(0.5, 0.999))
    for _ in range(config.warm_up):
        real, fake = torch.randn(problem.shape, dtype=dtype), 0.5 * torch.randn(problem.shape, dtype=dtype)
        optimizer.zero_grad()
        problem.objective.d_loss(D, real, fake).backward()
        optimizer.step()
    return Setup(problem, D, optimizer, real, fake.requires_grad_())


def chained_by_hand(setup: Setup) -> Callable[[], Tensor]:
    """K Adam steps as one graph, differentiated once at the end: what one would write for this very net.

    One flat vector of parameters; `functional_call` puts its pieces and a copy of the buffers into D.
    """
    D, group = setup.D, setup.optimizer.param_groups[0]
    d_loss, g_loss = setup.problem.objective
    names = [name for name, _ in D.named_parameters()]
    shapes = [p.shape for p in D.parameters()]
    sizes = [p.numel() for p in D.parameters()]
    beta1, beta2 = group["betas"]
    lr, eps = group["lr"], group["eps"]

    def flat(tensors: list[Tensor]) -> Tensor:
        return torch.cat([t.detach().reshape(-1) for t in tensors])

    def gradient() -> Tensor:
        states = [setup.optimizer.state[p] for p in D.parameters()]
        theta = flat(setup.params()).requires_grad_()
        m, v = flat([s["exp_avg"] for s in states]), flat([s["exp_avg_sq"] for s in states])
        step = int(states[0]["step"])
        buffers = {name: b.clone() for name, b in D.named_buffers()}

        def call(x: Tensor) -> Tensor:
            return functional_call(D, inside, (x,))

        for _ in range(setup.problem.steps):
            pieces = [t.view(s) for t, s in zip(theta.split(sizes), shapes, strict=True)]
            inside = dict(zip(names, pieces, strict=True)) | buffers
            grads = torch.autograd.grad(d_loss(call, setup.real, setup.fake), pieces, create_graph=True)
            g = torch.cat([t.reshape(-1) for t in grads])
            step += 1
            m = torch.lerp(m, g, 1 - beta1)
            v = torch.addcmul(v * beta2, g, g, value=1 - beta2)
            denominator = v.sqrt() / (1 - beta2**step) ** 0.5 + eps
            theta = torch.addcdiv(theta, m, denominator, value=-lr / (1 - beta1**step))
        pieces = [t.view(s) for t, s in zip(theta.split(sizes), shapes, strict=True)]
        inside = dict(zip(names, pieces, strict=True)) | buffers
        return torch.autograd.grad(g_loss(call, setup.real, setup.fake), setup.fake)[0]

    return gradient


def contenders(setup: Setup) -> dict[str, Callable[[], Tensor]]:
    """Name to a function that computes the gradient of `fake` after K steps. All but the last are exact."""
    D, real, fake = setup.D, setup.real, setup.fake
    d_loss, g_loss = setup.problem.objective
    wrap = partial(UnrolledGeneratorLoss, D, setup.optimizer, d_loss, g_loss, steps=setup.problem.steps)
    unrolled, first_term = wrap(), wrap(stop_gradient=True)

    def by_closure() -> Tensor:
        loss = unrolled(
            real,
            d_loss=lambda D, real: d_loss(D, real, fake),
            g_loss=lambda D, real: g_loss(D, real, fake),
        )
        return torch.autograd.grad(loss, fake)[0]

    return {
        "chained by hand": chained_by_hand(setup),
        "Store, fake as argument": lambda: torch.autograd.grad(unrolled(real, fake), fake)[0],
        "Store, fake in closures": by_closure,
        "stop_gradient=True": lambda: torch.autograd.grad(first_term(real, fake), fake)[0],
    }


def units(setup: Setup) -> dict[str, Callable[[], object]]:
    """T_grad, T(0), and the wrapper's own T(0)."""
    D, real, fake, detached = setup.D, setup.real, setup.fake, setup.fake.detach()
    d_loss, g_loss = setup.problem.objective
    zero = UnrolledGeneratorLoss(D, setup.optimizer, d_loss, g_loss, steps=0)
    return {
        "T_grad": lambda: torch.autograd.grad(d_loss(D, real, detached), setup.params()),
        "T(0)": lambda: torch.autograd.grad(g_loss(D, real, fake), fake),
        "steps=0": lambda: torch.autograd.grad(zero(real, fake), fake),
    }


def stop_gradient_by_hand(setup: Setup) -> Tensor:
    """The first term of Eq. 12: a copy of D takes K real steps."""
    D = copy.deepcopy(setup.D)
    optimizer = torch.optim.Adam(D.parameters())
    optimizer.load_state_dict(copy.deepcopy(setup.optimizer.state_dict()))
    d_loss, g_loss = setup.problem.objective
    for _ in range(setup.problem.steps):
        optimizer.zero_grad()
        d_loss(D, setup.real, setup.fake.detach()).backward()
        optimizer.step()
    return torch.autograd.grad(g_loss(D, setup.real, setup.fake), setup.fake)[0]


def check(setup: Setup, tolerance: float) -> dict[str, float]:
    """The largest error of each contender's gradient, relative to the largest entry of the gradient."""
    found = {name: gradient() for name, gradient in contenders(setup).items()}
    exact, first_term = found["chained by hand"], stop_gradient_by_hand(setup)
    scale = exact.abs().max()
    errors = {
        name: float((g - (first_term if name == "stop_gradient=True" else exact)).abs().max() / scale)
        for name, g in found.items()
    }
    title = setup.problem.title
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    if wrong:
        raise SystemExit(f"{title}: gradients differ by {wrong}, more than {tolerance}. Nothing was timed.")
    # The control: without the second term the gradient is another, so agreement means something.
    gap = float((first_term - exact).abs().max() / scale)
    if gap < 1e-3:
        raise SystemExit(f"{title}: the second term is only {gap:.1e} of the gradient, which checks nothing.")
    return errors


def time_interleaved(functions: dict[str, Callable[[], object]], config: Config) -> dict[str, list[float]]:
    """Seconds per call of every function in every round; the order turns from round to round."""
    clock, calls = CLOCKS[config.clock], {}

    def seconds_per_call(function: Callable[[], object], calls: int) -> float:
        start = clock()
        for _ in range(calls):
            function()
        return (clock() - start) / calls

    for name, function in functions.items():
        seconds_per_call(function, 2)
        calls[name] = max(1, round(config.seconds / seconds_per_call(function, 1)))
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for r in range(config.repeats):
        show(f"  round {r + 1}/{config.repeats}")
        for name in names[r % len(names) :] + names[: r % len(names)]:
            seconds[name].append(seconds_per_call(functions[name], calls[name]))
    show("")
    return seconds


def show(line: str) -> None:
    """A line that the next one overwrites, for someone who watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def spread(values: list[float]) -> dict[str, float]:
    """The median, and the quartiles around it."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def measure(name: str, config: Config) -> dict[str, object]:
    problem = NETS[name]
    errors = check(set_up(problem, config, torch.float64), tolerance=1e-9)
    check(set_up(problem, config, torch.float32), tolerance=1e-3)
    setup = set_up(problem, config, torch.float32)
    unrolls = contenders(setup)
    seconds = time_interleaved(units(setup) | unrolls, config)
    cost = {
        one: [
            (after - before) / (problem.steps * grad)
            for after, before, grad in zip(seconds[one], seconds["T(0)"], seconds["T_grad"], strict=True)
        ]
        for one in unrolls
    }
    extra = [wrapped - plain for wrapped, plain in zip(seconds["steps=0"], seconds["T(0)"], strict=True)]
    share, constant = config.overhead_allowed
    allowed = share * statistics.median(seconds["T(0)"]) + constant
    return {
        "problem": problem.title,
        "steps": problem.steps,
        "batch": problem.shape[0],
        "float64_error": errors,
        "seconds": {one: spread(values) for one, values in seconds.items()},
        "c": {one: spread(values) for one, values in cost.items()},
        "steps=0": {
            "extra_seconds": spread(extra),
            "allowed_seconds": allowed,
            "met": statistics.median(extra) <= allowed,
        },
    }


def print_table(result: dict) -> None:
    seconds = result["seconds"]
    print(f"\n{result['problem']}: K={result['steps']}, batch {result['batch']}")
    print(f"  {'':26}{'ms':>9}{'quartiles':>20}{'c':>8}{'quartiles':>15}{'float64 error':>16}")
    for name, found in seconds.items():
        ms = {key: 1e3 * value for key, value in found.items()}
        line = f"  {name:26}{ms['median']:9.3f}{ms['low']:10.3f} - {ms['high']:7.3f}"
        if c := result["c"].get(name):
            line += f"{c['median']:8.2f}{c['low']:8.2f} - {c['high']:4.2f}{result['float64_error'][name]:16.1e}"
        print(line)
    zero = result["steps=0"]
    extra, plain = zero["extra_seconds"]["median"], seconds["T(0)"]["median"]
    print(
        f"  steps=0: {1e6 * extra:.0f} us over the plain loss's {1e6 * plain:.0f} us; "
        f"allowed {1e6 * zero['allowed_seconds']:.0f} us: {'met' if zero['met'] else 'NOT MET'}"
    )


def machine() -> dict[str, object]:
    cpu, cpuinfo = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        cpu = named[0].split(":", 1)[1].strip() if named else cpu
    return {"cpu": cpu, "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def main() -> None:
    parser = argparse.ArgumentParser(description="What an unrolled step costs (see the top of this file).")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=["ring", "stacked"])
    parser.add_argument("--repeats", type=int, default=Config.repeats, help="interleaved rounds; %(default)s")
    parser.add_argument("--quick", action="store_true", help="3 short rounds: does it run, not what it costs")
    parser.add_argument("--clock", choices=CLOCKS, default=Config.clock, help="cpu where others use the machine")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    args = parser.parse_args()
    if args.repeats < 2:
        parser.error(f"--repeats is {args.repeats}; a spread needs at least 2.")

    config = replace(Config(), repeats=args.repeats, clock=args.clock)
    if args.quick:
        config = replace(config, repeats=3, seconds=0.0)
    torch.set_num_threads(1)
    record = {
        "command": " ".join(["python benchmarks/step_cost.py", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "unroll_wrap": unroll_wrap.__version__,
        },
        "config": asdict(config),
        "nets": {},
    }
    cpu, cores = record["machine"]["cpu"], record["machine"]["cores"]
    print(f"{cpu}, {cores} cores, one thread; torch {torch.__version__}")
    print(f"{config.repeats} interleaved rounds, {config.clock} time")
    for name in args.nets:
        record["nets"][name] = measure(name, config)
        print_table(record["nets"][name])
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(record, indent=1) + "\n")
        print(f"\nwritten: {args.json}")


if __name__ == "__main__":
    main()
