"""c = (T(K) - T(0)) / (K · T_grad): what an unrolled step costs, in plain gradients of d_loss.

T_grad is one gradient of d_loss with respect to D's parameters, T(0) the plain g_loss with its gradient down to
`fake`, T(K) the same for the loss after K steps. The ideal is 3 for an exact unroll that keeps its graphs, 4 for one
that runs each step again, 2 for one-sided differences and 1 for the first term of Eq. 12 alone. K real steps of D by
torch's own Adam stand beside them, (backward, step and nothing else) / (K · T_grad).

Everything is timed in one run on one core, in interleaved rounds. Before that, every exact contender must give the
chained graph's gradient in float64, at the K of the targets. Other libraries are timed up to that K.

    python benchmarks/step_cost.py
    python benchmarks/step_cost.py --nets ring --steps 10 --json out/ring.json --plot out/ring.png
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import launches
import libraries
import plots
import record
import torch
from contenders import (
    APPROXIMATE,
    COMPILED,
    EVERY,
    EXACT,
    FIRST_TERM,
    FIRST_TERM_FOR_SMALL,
    FOR_SMALL,
    errors,
    real_steps,
)
from nets import NETS, Setup, set_up
from timing import CLOCKS, interleaved, spread

from unroll_wrap import UnrolledGeneratorLoss

# Of c at the K of the targets, where the machine is quiet.
TARGETS = {"ring": 3.5, "stacked": 3.3, "cifar10": 3.3}
RECOMPUTE_OVER_STORE, FIRST_TERM_AT_MOST, COMPILED_AT_MOST = 1.35, 1.1, 1.5
# Of steps=0, over the plain loss: a share of it, plus seconds.
OVERHEAD = 0.05, 100e-6
TOLERANCE = 1e-9
REAL = "K real steps"
UNITS = "T_grad", "T(0)", "steps=0"


def units(setup: Setup, steps: int) -> dict[str, Any]:
    """T_grad, T(0), the wrapper's own T(0), and K real steps of D."""
    D, real, fake, detached = setup.D, setup.real, setup.fake, setup.fake.detach()
    d_loss, g_loss = setup.problem.objective
    zero = UnrolledGeneratorLoss(D, setup.optimizer, d_loss, g_loss, steps=0)
    return {
        "T_grad": lambda: torch.autograd.grad(d_loss(D, real, detached), setup.params()),
        "T(0)": lambda: torch.autograd.grad(g_loss(D, real, fake), fake),
        "steps=0": lambda: torch.autograd.grad(zero(real, fake), fake),
        REAL: real_steps(setup, steps)[1],
    }


def measure(
    name: str, steps: list[int], budget: float, clock: str, beside: bool = True, device: str = "cpu"
) -> dict[str, Any]:
    problem = NETS[name]
    others, missing = libraries.libraries() if beside else ({}, [])
    if not problem.jax:
        others.pop(libraries.JAX, None)
    begin = time.perf_counter()
    # An eighth of the batch shows whether a gradient is right.
    small = replace(problem, shape=(problem.shape[0] // 8, *problem.shape[1:]))
    exact = EXACT | (FOR_SMALL if problem.small else {})
    approximate = APPROXIMATE | (FIRST_TERM_FOR_SMALL if problem.small else {})
    found = errors(set_up(small, torch.float64), problem.steps, exact | others, approximate, TOLERANCE)
    setup = set_up(problem, device=device)
    differences = difference_errors(setup, problem.steps)
    rows = {}
    # In proportion to K, but so that small ones get their share.
    shares = {k: (k + 3) / sum(j + 3 for j in steps) for k in steps}
    for k in steps:
        made = exact | (others if k <= problem.steps else {}) | approximate
        if k < EVERY:
            made = {n: make for n, make in made.items() if "every" not in n}
        made = {n: make for n, make in made.items() if not isinstance(differences.get(n), str)}
        functions = units(setup, k) | {n: make(setup, k) for n, make in made.items()}
        compiled = [n for n in made if COMPILED in n or "jit" in n]
        rounds = (3 if k == problem.steps else 1, 15)
        seconds = interleaved(functions, rounds, budget * shares[k], clock=clock, compiled=compiled)
        rows[str(k)] = costs(seconds, k)
    counted = launches.of_all(exact | approximate, others, lambda: set_up(small), COMPILED)
    return {
        "problem": problem.title,
        "batch": problem.shape[0],
        "target_steps": problem.steps,
        "missing": missing,
        "error_float64": found,
        "differences_float32": differences,
        "launches": counted,
        "steps": rows,
        "targets": [*targets(name, rows.get(str(problem.steps))), *launches.targets(name, counted)],
        "seconds": time.perf_counter() - begin,
    }


def difference_errors(setup: Setup, steps: int) -> dict[str, dict[str, float] | str]:
    """In float32, against Store, in the Euclidean norm: of the gradient, and of its second term alone.

    Where the package refuses, what it says.
    """
    exact, first_term = EXACT["Store"](setup, steps)(), APPROXIMATE[FIRST_TERM](setup, steps)()
    found: dict[str, dict[str, float] | str] = {}
    for name in ("FiniteDifference", "FiniteDifference(central)"):
        try:
            off = float((APPROXIMATE[name](setup, steps)() - exact).norm())
        except RuntimeError as error:
            found[name] = str(error)
            continue
        found[name] = {"gradient": off / float(exact.norm()), "second_term": off / float((exact - first_term).norm())}
    return found


def costs(seconds: dict[str, list[float]], k: int) -> dict[str, Any]:
    """Milliseconds and c of everything that was timed at one K."""

    def cost(name: str) -> list[float]:
        rounds = zip(seconds[name], seconds["T(0)"], seconds["T_grad"], strict=True)
        return [(after - before * (name != REAL)) / (k * grad) for after, before, grad in rounds]

    names = [name for name in seconds if name not in UNITS]
    extra = [a - b for a, b in zip(seconds["steps=0"], seconds["T(0)"], strict=True)]
    allowed = OVERHEAD[0] * spread(seconds["T(0)"])["median"] + OVERHEAD[1]
    return {
        "rounds": len(extra),
        "ms": {name: spread([1e3 * s for s in values]) for name, values in seconds.items()},
        "c": {name: spread(cost(name)) for name in names},
        "recompute_over_store": spread([a / b for a, b in zip(cost("Recompute"), cost("Store"), strict=True)]),
        "steps=0": {"extra_us": 1e6 * spread(extra)["median"], "allowed_us": 1e6 * allowed},
    }


def targets(name: str, row: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Each target with what was found; none where the targets' K was not asked for."""
    if row is None:
        return []
    c = {contender: of_c["median"] for contender, of_c in row["c"].items()}
    found = [
        ("Store, c", c["Store"], TARGETS[name]),
        ("Recompute over Store", row["recompute_over_store"]["median"], RECOMPUTE_OVER_STORE),
        ("Store over chained by hand", c["Store"] / c["chained by hand"], 1.0),
        (f"{FIRST_TERM} over {REAL}", c[FIRST_TERM] / c[REAL], FIRST_TERM_AT_MOST),
        ("steps=0, extra us", row["steps=0"]["extra_us"], row["steps=0"]["allowed_us"]),
    ]
    if COMPILED in c:
        # Where convolutions compute, their arithmetic bounds c, and no compiler takes it away.
        on_ring = ("Compiled, c", c[COMPILED], COMPILED_AT_MOST)
        found.append(on_ring if name == "ring" else ("Compiled over Store", c[COMPILED] / c["Store"], 1.0))
    return [{"target": t, "found": f, "at_most": m, "met": f <= m} for t, f, m in found]


def print_tables(result: dict[str, Any]) -> None:
    print(f"\n{result['problem']}, batch {result['batch']}: c, with its quartiles ({result['seconds']:.0f} s)")
    rows = result["steps"]
    print(f"  {'':26}" + "".join(f"{f'K={k}':>20}" for k in rows) + f"{'launches':>10}{'error':>10}")
    names = list(dict.fromkeys(name for row in rows.values() for name in row["c"]))
    for name in names:
        line = f"  {name:26}"
        for row in rows.values():
            c = row["c"].get(name)
            line += f"{c['median']:8.2f} {c['low']:5.2f}-{c['high']:5.2f}" if c else f"{'-':>20}"
        line += f"{result['launches'].get(name) or '-':>10}"
        print(line + (f"{result['error_float64'][name]:10.0e}" if name != REAL else ""))
    for name in ("T_grad", "T(0)"):
        print(f"  {f'{name}, ms':26}" + "".join(f"{row['ms'][name]['median']:8.2f}{'':12}" for row in rows.values()))
    print(f"  {'rounds':26}" + "".join(f"{row['rounds']:8d}{'':12}" for row in rows.values()))
    if result["missing"]:
        print(f"  MISSING, so not measured: {', '.join(result['missing'])}. pip install -e '.[bench]'")
    for name, error in result["differences_float32"].items():
        if isinstance(error, str):
            print(f"  {name} REFUSED in float32, so not timed: {error}")
            continue
        whole, part = error["gradient"], error["second_term"]
        print(f"  {name} against Store in float32: {whole:.1e} of the gradient, {part:.1e} of its second term")
    for t in result["targets"]:
        print(f"  K={result['target_steps']}, {t['target']}: {t['found']:.3g}, at most {t['at_most']:.3g}: "
              f"{'met' if t['met'] else 'NOT MET'}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="What an unrolled step costs (see the top of this file).")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--steps", nargs="+", type=int, default=[1, 5, 10, 20], metavar="K", help="default: 1 5 10 20")
    parser.add_argument(
        "--budget",
        type=float,
        default=45.0,
        help="seconds of rounds for each net; at least 3 rounds at the K of its targets, elsewhere 1",
    )
    parser.add_argument("--libraries", action=argparse.BooleanOptionalAction, default=True, help="other libraries too")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu where others use the machine")
    parser.add_argument("--device", default="cpu", help="what is timed there; gradients are checked on the CPU before")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--plot", type=Path, help="and a plot here")
    args = parser.parse_args()
    if min(args.steps) < 1:
        parser.error(f"--steps is {args.steps}; c divides by K. Pass whole numbers >= 1.")
    torch.set_num_threads(1)
    libraries.one_core()
    found: dict[str, Any] = {"environment": record.environment(), "nets": {}}
    print(record.headline(found["environment"]))
    for name in args.nets:
        found["nets"][name] = measure(name, args.steps, args.budget, args.clock, args.libraries, args.device)
        print_tables(found["nets"][name])
    if args.json:
        record.write(args.json, found)
    if args.plot:
        plots.plot(args.plot, found["nets"])


if __name__ == "__main__":
    main()
