"""What an unroll puts in the place of torch's operators and of their derivatives: up to the third, against others."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unroll_wrap.evaluation.graph import reach
from unroll_wrap.operators import convolution
from unroll_wrap.operators.batch_norm import batch_norm
from unroll_wrap.operators.convolution import conv2d, parameters_only
from unroll_wrap.operators.repairs import repair


def derivatives(function, inputs: list[Tensor], order: int, mended: int | None = None) -> list[Tensor]:
    """The value, then gradients of a cubic of the value, of a cubic of those gradients, and so on.

    ``mended`` is the order of the derivative that is taken with repaired nodes.
    """
    found = [function(*inputs)]
    latest = found
    for i in range(order):
        scalar = sum((t**3 * (1 + 0.1 * n)).sum() for n, t in enumerate(latest))
        handles = repair(reach(scalar.grad_fn, set(), 0).fragile) if i + 1 == mended else []
        latest = list(torch.autograd.grad(scalar, inputs, create_graph=i < order - 1, materialize_grads=True))
        for handle in handles:
            handle.remove()
        found += latest
    return [t.detach() for t in found]


def assert_same(one: list[Tensor], other: list[Tensor], rtol: float = 1e-10) -> None:
    for a, b in zip(one, other, strict=True):
        assert (a - b).abs().max() <= rtol * b.abs().max()


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


CONVOLUTIONS = [  # inputs, outputs, height, width, kernel, stride, padding
    (3, 4, 8, 8, 3, 2, 1),
    (2, 3, 9, 7, 3, 2, 1),
    (3, 2, 8, 8, 4, 2, 1),
    (3, 2, 11, 11, 5, 3, 0),
    (1, 2, 7, 7, 1, 2, 0),
    (2, 2, 10, 10, 3, 4, 2),
    (2, 2, 8, 8, 3, 1, 1),
    (9, 2, 6, 6, 3, 2, 1),
]


@pytest.mark.parametrize("by_phases", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("geometry", CONVOLUTIONS, ids=str)
def test_convolution(geometry, bias, by_phases, monkeypatch):
    """In 64 bits, where rounding is small, by way of the phases too."""
    monkeypatch.setattr(convolution, "_BY_PHASES", {torch.float64} if by_phases else set())
    inputs, outputs, height, width, k, stride, padding = geometry
    tensors = [normal(2, inputs, height, width), normal(outputs, inputs, k, k), *([normal(outputs)] if bias else [])]

    def of(function):
        return lambda x, w, b=None: function(x, w, b, stride, padding)

    assert_same(derivatives(of(conv2d), tensors, 3), derivatives(of(torch.conv2d), tensors, 3))


def test_the_batch_gets_its_gradient_unless_nobody_wants_it():
    x, weight = normal(2, 3, 8, 8), torch.nn.Parameter(normal(4, 3, 3, 3).detach())
    data = conv2d(x.clone(), weight, None, 2, 1).square().sum()
    of_x, of_weight = torch.autograd.grad(data, [x, weight], retain_graph=True)
    with parameters_only():
        nothing, same = torch.autograd.grad(data, [x, weight], allow_unused=True)
        hidden = conv2d(conv2d(x, weight, None, 2, 1)[:, :3], weight, None, 2, 1).square().sum()
        (through,) = torch.autograd.grad(hidden, [weight])
    assert nothing is None
    assert torch.equal(same, of_weight)
    assert of_x.abs().max() > 0
    hidden = torch.conv2d(torch.conv2d(x, weight, None, 2, 1)[:, :3], weight, None, 2, 1).square().sum()
    assert_same([through], list(torch.autograd.grad(hidden, [weight])))


def by_hand(x, running_mean, running_var, weight, bias, training, momentum, eps):
    """Batch normalization written out; torch's own has no third derivative."""
    dims = [d for d in range(x.dim()) if d != 1]
    shape = (1, -1, *[1] * (x.dim() - 2))
    mean, var = x.mean(dims, keepdim=True), x.var(dims, correction=0, keepdim=True)
    with torch.no_grad():
        running_mean.lerp_(mean.flatten(), momentum)
        running_var.lerp_(x.var(dims), momentum)
    y = (x - mean) / (var + eps).sqrt()
    return y if weight is None else y * weight.view(shape) + bias.view(shape)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 6), (3, 2, 4, 5), (2, 2, 3, 2, 3)], ids=str)
def test_batch_normalization(shape, affine):
    tensors = [normal(*shape), *([normal(shape[1]), normal(shape[1])] if affine else [])]

    def found(function, order):
        mean, var = torch.zeros(shape[1], dtype=torch.float64), torch.ones(shape[1], dtype=torch.float64)

        def of(x, weight=None, bias=None):
            return function(x, mean, var, weight, bias, True, 0.1, 1e-2)

        return [*derivatives(of, tensors, order), mean, var]

    assert_same(found(batch_norm, 3), found(by_hand, 3))
    assert_same(found(batch_norm, 2), found(F.batch_norm, 2))


def test_batch_normalization_elsewhere_is_torchs():
    x, mean, var = normal(4, 3), torch.randn(3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    assert torch.equal(batch_norm(x, mean, var), F.batch_norm(x, mean, var))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm(normal(1, 3), None, None, training=True)


@pytest.mark.parametrize("dim", [0, 1])
def test_weight_normalization(dim):
    v = normal(3, 4)
    g = normal(*torch.norm_except_dim(v, 2, dim).shape)

    def written_out(v, g):
        return g * v / v.square().sum(1 - dim, keepdim=True).sqrt()

    def torchs(v, g):
        return torch._weight_norm(v, g, dim)

    assert_same(derivatives(torchs, [v, g], 2, mended=1), derivatives(written_out, [v, g], 2))
    # The control.
    with pytest.raises(AssertionError):
        assert_same(derivatives(torchs, [v, g], 2), derivatives(written_out, [v, g], 2))


def test_an_empty_batch_of_images():
    images = torch.randn(0, 3, 8, 8, requires_grad=True)
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    out = conv2d(images, weight, None, 2, 1)
    first = torch.autograd.grad(out.sum(), [images, weight], create_graph=True)
    assert [g.shape for g in first] == [images.shape, weight.shape]
    assert torch.autograd.grad(first[0].square().sum(), weight)[0].shape == weight.shape


def test_an_empty_batch():
    """Batch norm of nothing is nothing, as torch has it, and no error of a kernel."""
    x = torch.zeros(0, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    found = [f(x, torch.zeros(3).double(), torch.ones(3).double(), training=True) for f in (batch_norm, F.batch_norm)]
    assert found[0].shape == found[1].shape == x.shape
    assert all(torch.autograd.grad(y.sum(), x)[0].shape == x.shape for y in found)


def test_arguments_by_name_have_torchs_names():
    images, weight = normal(2, 2, 8, 8), normal(3, 2, 3, 3)
    named = conv2d(input=images, weight=weight, stride=2, padding=1)
    assert torch.equal(named, conv2d(images, weight, None, 2, 1))
    assert torch.allclose(
        batch_norm(input=images, running_mean=None, running_var=None, training=True).mean(),
        images.new_zeros(()),
        atol=1e-12,
    )


def normalised(x, dims, weight, bias):
    y = (x - x.mean(dims, keepdim=True)) / (x.var(dims, correction=0, keepdim=True) + 1e-2).sqrt()
    return y if weight is None else y * weight + bias


NORMS = {  # torch's, the shapes of its input and of its weight, and the same written out
    "layer": (lambda x, w, b: torch.layer_norm(x, w.shape, w, b, 1e-2), (4, 2, 5), (2, 5), (1, 2)),
    "layer plain": (lambda x, w, b: torch.layer_norm(x, (5,), None, None, 1e-2), (4, 5), None, (1,)),
    "batch": (lambda x, w, b: torch.batch_norm(x, w, b, None, None, True, 0.1, 1e-2, False), (4, 3, 2), (3,), (0, 2)),
    "instance": (
        lambda x, w, b: torch.instance_norm(x, w, b, None, None, True, 0.1, 1e-2, False),
        (4, 3, 5),
        (3,),
        (2,),
    ),
    "instance plain": (
        lambda x, w, b: torch.instance_norm(x, None, None, None, None, True, 0.1, 1e-2, False),
        (2, 3, 2, 2),
        None,
        (2, 3),
    ),
}


@pytest.mark.parametrize("name", list(NORMS))
def test_the_third_derivative_of_a_norm(name):
    """From the node of torch's second; without the repair it is wrong or raises."""
    torchs, shape, of_weight, dims = NORMS[name]
    x, weight, bias = normal(*shape), *((normal(*of_weight), normal(*of_weight)) if of_weight else (None, None))
    tensors = [x] if weight is None else [x, weight, bias]

    def of(x, weight=None, bias=None):
        return torchs(x, weight, bias)

    def written_out(x, *affine):
        wide = [t if name == "layer" else t.view(-1, *[1] * (x.dim() - 2)) for t in affine]
        return normalised(x, dims, *(wide or (None, None)))

    right = derivatives(written_out, tensors, 3)
    assert_same(derivatives(of, tensors, 3, mended=2), right)
    with pytest.raises((AssertionError, RuntimeError), match=r"3rd\+ order|assert"):
        assert_same(derivatives(of, tensors, 3), right)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_norm_of_16_bits_is_repaired_in_32(dtype):
    """In float16 the square of 300 is infinite."""
    wide = (300 * torch.randn(4, 8)).to(dtype)

    def found(x):
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(torch.layer_norm(x, (8,)).pow(3).sum(), x, create_graph=True)
        scalar = (100 * slope).square().sum()
        (handle,) = repair(reach(scalar.grad_fn, set(), 0).fragile)
        (second,) = torch.autograd.grad(scalar, x)
        handle.remove()
        return second

    second, right = found(wide), found(wide.double())
    assert second.dtype == dtype
    assert (second.double() - right).norm() <= 32 * torch.finfo(dtype).eps * right.norm()
