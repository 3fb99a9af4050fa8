"""The same gradient by other libraries, each as its documentation has it; one that is not installed is None.

A contender is made from a setup and K, and returns the gradient of ``fake`` when called.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from nets import Scale, Setup
from torch import Tensor, nn
from torch.func import functional_call

from unroll_wrap import minimax

Contender = Callable[[Setup, int], Callable[[], Tensor]]


def by_higher(setup: Setup, steps: int) -> Callable[[], Tensor]:
    higher = importlib.import_module("higher")
    d_loss, g_loss = setup.problem.objective
    eps, beta2 = setup.optimizer.defaults["eps"], setup.optimizer.defaults["betas"][1]

    def gradient() -> Tensor:
        with higher.innerloop_ctx(setup.D, setup.optimizer) as (D, optimizer):
            states, group = optimizer.state[0].values(), optimizer.param_groups[0]
            for state in states:
                # A float32 count would make the bias corrections float32.
                state["step"] = int(state["step"])
            for _ in range(steps):
                # higher follows an older torch, whose eps came before the bias correction.
                group["eps"] = eps * (1 - beta2 ** (next(iter(states))["step"] + 1)) ** 0.5
                optimizer.step(d_loss(D, setup.real, setup.fake))
            return torch.autograd.grad(g_loss(D, setup.real, setup.fake), setup.fake)[0]

    return gradient


def by_torchopt(setup: Setup, steps: int) -> Callable[[], Tensor]:
    torchopt = importlib.import_module("torchopt")
    D, options = setup.D, setup.optimizer.defaults
    d_loss, g_loss = setup.problem.objective
    adam = torchopt.adam(options["lr"], options["betas"], options["eps"])
    names = [name for name, _ in D.named_parameters()]

    def gradient() -> Tensor:
        states = [setup.optimizer.state[p] for p in D.parameters()]
        buffers = {name: b.clone() for name, b in D.named_buffers()}
        params = tuple(p.detach().requires_grad_() for p in D.parameters())
        scaling, rest = adam.init(params)
        state = scaling._replace(
            mu=[s["exp_avg"] for s in states],
            nu=[s["exp_avg_sq"] for s in states],
            # A whole number would make the bias corrections float32.
            count=[s["step"].to(setup.fake.dtype) for s in states],
        )
        state = (state, rest)

        def call(x: Tensor) -> Tensor:
            return functional_call(D, dict(zip(names, params, strict=True)) | buffers, (x,))

        for _ in range(steps):
            grads = torch.autograd.grad(d_loss(call, setup.real, setup.fake), params, create_graph=True)
            updates, state = adam.update(grads, state, inplace=False)
            params = torchopt.apply_updates(params, updates, inplace=False)
        return torch.autograd.grad(g_loss(call, setup.real, setup.fake), setup.fake)[0]

    return gradient


def by_jax(setup: Setup, steps: int) -> Callable[[], Tensor]:
    """One jitted function of the whole unroll; K steps in a scan, the net and the losses written in jax.numpy."""
    jax, optax = importlib.import_module("jax"), importlib.import_module("optax")
    jnp = jax.numpy
    jax.config.update("jax_enable_x64", True)
    options, layers = setup.optimizer.defaults, list(setup.D)
    adam = optax.adam(options["lr"], *options["betas"], eps=options["eps"])

    def logits(params: list[Any], x: Any) -> Any:
        left = iter(params)
        for layer in layers:
            x = apply(layer, left, x)
        return x

    def apply(layer: nn.Module, left: Any, x: Any) -> Any:
        match layer:
            case Scale():
                return x * layer.factor
            case nn.Linear():
                return x @ next(left).T + next(left)
            case nn.Conv2d():
                p = [(n, n) for n in layer.padding]
                layout = ("NCHW", "OIHW", "NCHW")
                return jax.lax.conv_general_dilated(x, next(left), layer.stride, p, dimension_numbers=layout)
            case nn.BatchNorm2d():
                mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
                weight, bias = (next(left).reshape(1, -1, 1, 1) for _ in range(2))
                return (x - mean) * jax.lax.rsqrt(var + layer.eps) * weight + bias
            case nn.ReLU():
                return jax.nn.relu(x)
            case nn.LeakyReLU():
                return jax.nn.leaky_relu(x, layer.negative_slope)
            case nn.Flatten():
                return x.reshape(x.shape[0], -1)
        raise NotImplementedError(f"{type(layer).__name__} has no line in by_jax. Add one.")

    def d_loss(params: list[Any], real: Any, fake: Any) -> Any:
        return jax.nn.softplus(-logits(params, real)).mean() + jax.nn.softplus(logits(params, fake)).mean()

    def g_loss(params: list[Any], real: Any, fake: Any) -> Any:
        if setup.problem.objective is minimax:
            return -d_loss(params, real, fake)
        return jax.nn.softplus(-logits(params, fake)).mean()

    def unrolled(fake: Any, params: list[Any], state: Any, real: Any) -> Any:
        def step(carried: Any, _: None) -> Any:
            params, state = carried
            updates, state = adam.update(jax.grad(d_loss)(params, real, fake), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, state), None, length=steps)
        return g_loss(params, real, fake)

    compiled = jax.jit(jax.grad(unrolled))
    given = [jnp.asarray(p.detach().numpy()) for p in setup.params()]
    states = [setup.optimizer.state[p] for p in setup.params()]
    first, *rest = adam.init(given)
    first = first._replace(
        count=jnp.asarray(int(states[0]["step"]), dtype=first.count.dtype),
        mu=[jnp.asarray(s["exp_avg"].numpy()) for s in states],
        nu=[jnp.asarray(s["exp_avg_sq"].numpy()) for s in states],
    )
    real, fake = jnp.asarray(setup.real.numpy()), jnp.asarray(setup.fake.detach().numpy())

    def gradient() -> Tensor:
        return torch.from_dlpack(compiled(fake, given, (first, *rest), real).block_until_ready())

    return gradient


JAX = "JAX with optax, jit"
PACKAGES: dict[str, tuple[Contender, tuple[str, ...]]] = {
    "higher": (by_higher, ("higher",)),
    "TorchOpt": (by_torchopt, ("torchopt",)),
    JAX: (by_jax, ("jax", "optax")),
}


def libraries() -> tuple[dict[str, Contender], list[str]]:
    """Those that can be imported, and the names of the packages that cannot."""
    found, missing = {}, []
    for name, (contender, packages) in PACKAGES.items():
        absent = [p for p in packages if importlib.util.find_spec(p) is None]
        missing += absent
        if not absent:
            found[name] = contender
    return found, missing


def one_core() -> None:
    """XLA takes every core that it sees, whatever its flags say; the others take as many threads as they are told."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
