"""Inference via optimization: which image of a generator comes nearest to a target; section 3.4.1.

scipy's L-BFGS-B minimises for every target and every start alone, with a line search and a stopping rule of its own, in
a thread of its own. What all threads ask for at a time is computed in one batch.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

Function = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Nearest(NamedTuple):
    """For every target the best of its starts.

    Attributes:
        mse: Mean squared error over the pixels, shape (n,).
        z: Where it was found, shape (n, noise).
        images: G(z), of the shape of the targets.
    """

    mse: Tensor
    z: Tensor
    images: Tensor


def nearest(G: nn.Module, targets: Tensor, starts: Tensor, *, iterations: int, batch: int = 96) -> Nearest:
    """argmin_z ‖G(z) - x‖² for every target x: Eq. 13 and 14.

    Args:
        G: A generator whose image of z does not depend on the rest of the batch: in evaluation mode, if it has
            BatchNorm.
        targets: Images, shape (n, ...).
        starts: Values of z to start from, shape (starts, n, noise).
        iterations: Of L-BFGS, at most.
        batch: Problems that are solved side by side.

    Returns:
        The best over the starts.
    """
    count, size = len(targets), targets[0].numel()
    z0 = starts.flatten(0, 1)

    def squares(z: np.ndarray, problems: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        wanted = targets[torch.from_numpy(problems).to(targets.device) % count]
        leaf = torch.from_numpy(z).to(targets).requires_grad_()
        values = (G(leaf) - wanted).square().flatten(1).sum(dim=1)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach().double().cpu().numpy(), gradient.double().cpu().numpy()

    found = minimize_each(squares, z0.double().cpu().numpy(), iterations=iterations, batch=batch)
    z, values = (torch.from_numpy(part).to(targets) for part in found)
    values, best = values.view(-1, count).min(dim=0)
    z = z.view(-1, count, z.shape[1])[best, torch.arange(count, device=best.device)]
    with torch.no_grad():
        images = torch.cat([G(part) for part in z.split(batch)])
    return Nearest(values / size, z, images)


def minimize_each(function: Function, x0: np.ndarray, *, iterations: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """argmin_x f_i(x) for every i, each by an L-BFGS of its own.

    Args:
        function: From points, shape (m, size), and the numbers i of their problems, shape (m,), to values, shape
            (m,), and gradients, shape (m, size). A point's value must not depend on the other points.
        x0: Where each problem starts, float64 of shape (problems, size).
        iterations: Of L-BFGS, at most.
        batch: Problems that are solved side by side, hence the largest m.

    Returns:
        The points and their values.
    """
    found = []
    for first in range(0, len(x0), batch):
        found += _side_by_side(function, x0, range(first, min(first + batch, len(x0))), iterations)
    points, values = zip(*found, strict=True)
    return np.stack(points), np.array(values)


def _side_by_side(
    function: Function, x0: np.ndarray, problems: range, iterations: int
) -> list[tuple[np.ndarray, float]]:
    asked, answers = SimpleQueue(), {problem: SimpleQueue() for problem in problems}

    def solve(problem: int) -> tuple[np.ndarray, float]:
        def ask(x: np.ndarray) -> tuple[float, np.ndarray]:
            asked.put((problem, x.copy()))
            answer = answers[problem].get()
            if isinstance(answer, BaseException):
                raise answer
            return answer

        try:
            options = {"maxiter": iterations, "maxfun": 2 * iterations}
            result = minimize(ask, x0[problem], jac=True, method="L-BFGS-B", options=options)
            return result.x, float(result.fun)
        finally:
            asked.put((problem, None))

    with ThreadPoolExecutor(len(problems)) as pool:
        solved = [pool.submit(solve, problem) for problem in problems]
        running = set(problems)
        while running:
            points = {}
            # Everybody who is still at work asks once, or ends, before anybody is answered.
            for _ in range(len(running)):
                problem, x = asked.get()
                if x is None:
                    running.discard(problem)
                else:
                    points[problem] = x
            if points:
                order = sorted(points)
                try:
                    values, gradients = function(np.stack([points[i] for i in order]), np.array(order))
                except BaseException as error:
                    for i in order:
                        answers[i].put(error)
                    raise
                for i, value, gradient in zip(order, values, gradients, strict=True):
                    answers[i].put((float(value), gradient))
    return [future.result() for future in solved]
