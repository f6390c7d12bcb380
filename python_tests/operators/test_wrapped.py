"""from_numpy and straight_through against autograd, and what they refuse."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from helpers import assert_names
from scipy import fft, ndimage
from torch import nn
from toy_flows import SHAPE, AffineFlow

import flowinv_fast as ff
from flowinv_fast import noise, operators
from flowinv_fast.operators import from_numpy, straight_through
from flowinv_fast.protocols import Linear, provides

DTYPES = {torch.float32: 1e-4, torch.float64: 1e-10}


def images(batch=3, dtype=torch.float64):
    return torch.randn(batch, 2, 4, 5, dtype=dtype)


class Sensing:
    """A linear function of whole batches, or of single images, and the same in torch."""

    def __init__(self):
        self.matrix = torch.randn(7, 40, dtype=torch.float64)

    def batch(self, x):
        return x.reshape(len(x), 40) @ self.matrix.numpy().T

    def back(self, y):
        return (y @ self.matrix.numpy()).reshape(len(y), 2, 4, 5)

    def one(self, x):
        return self.matrix.numpy() @ x.ravel()

    def one_back(self, y):
        return (y @ self.matrix.numpy()).reshape(2, 4, 5)

    def operator(self, per_image):
        if per_image:
            return from_numpy(self.one, self.one_back, per_image=True)
        return from_numpy(self.batch, self.back)

    def torch(self, x):
        return x.flatten(1) @ self.matrix.to(x).T


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_a_linear_function_and_its_gradient(dtype, per_image, batch):
    sensing, x = Sensing(), images(batch, dtype).requires_grad_()
    f, weight = sensing.operator(per_image), torch.randn(batch, 7, dtype=dtype)
    got, want = f(x), sensing.torch(x)
    close = {"rtol": DTYPES[dtype], "atol": 10 * DTYPES[dtype]}
    torch.testing.assert_close(got, want, **close)
    gradient = lambda y: torch.autograd.grad((y * weight).sum(), x)[0]
    torch.testing.assert_close(gradient(got), gradient(want), **close)
    torch.testing.assert_close(f.adjoint(weight), gradient(sensing.torch(x)), **close)
    assert provides(f, Linear) and got.dtype == dtype


def test_a_linear_function_has_all_derivatives():
    f = Sensing().operator(False)
    x, y = images(2).requires_grad_(), torch.randn(2, 7).double().requires_grad_()
    assert torch.autograd.gradcheck(f, x) and torch.autograd.gradgradcheck(f, x)
    assert torch.autograd.gradcheck(f.adjoint, y)


def test_a_function_with_a_vjp():
    matrix = torch.randn(7, 40, dtype=torch.float64).numpy()
    product = lambda x: x.reshape(len(x), -1) @ matrix.T
    f = from_numpy(
        lambda x: np.tanh(product(x)),
        vjp=lambda x, v: ((v / np.cosh(product(x)) ** 2) @ matrix).reshape(x.shape),
    )
    x = images(2).requires_grad_()
    assert torch.autograd.gradcheck(f, x) and not provides(f, Linear)
    (gradient,) = torch.autograd.grad(f(x).sum(), x)
    assert not gradient.requires_grad
    with pytest.raises(NotImplementedError, match="second derivatives"):
        torch.autograd.grad(f(x).sum(), x, create_graph=True)


def test_scipy_in_a_composition():
    """An orthonormal cosine transform behind a scaling, and a blur against that of torch."""
    axes = {"axes": (2, 3), "norm": "ortho"}
    f = from_numpy(lambda x: fft.dctn(x, **axes), lambda y: fft.idctn(y, **axes))
    both, x = f @ operators.Scale(2.0), images()
    torch.testing.assert_close(f.adjoint(f(x)), x)
    torch.testing.assert_close(both.adjoint(both(x)), 4 * x)
    kernel = np.random.rand(1, 3, 3)
    blur = from_numpy(
        lambda x: ndimage.convolve(x, kernel, mode="constant"),
        lambda y: ndimage.correlate(y, kernel, mode="constant"),
        per_image=True,
    )
    x = torch.randn(2, 1, 6, 5, dtype=torch.float64)
    weight = torch.from_numpy(kernel)[None].flip(2, 3)
    torch.testing.assert_close(blur(x), nn.functional.conv2d(x, weight, padding=1))


def test_what_a_function_keeps_or_overwrites_is_its_own():
    kept = np.zeros((2, 2, 4, 5))

    def function(x):
        x *= 2
        kept[:] = x
        return kept

    f = from_numpy(function, lambda y: 2 * y)
    x = images(2)
    before = x.clone()
    first = f(x)
    second = f(x + 1)
    assert torch.equal(x, before)
    torch.testing.assert_close(first, 2 * x)
    torch.testing.assert_close(second, 2 * x + 2)


WRONG = {
    "another": lambda y: np.ones_like(y) * y.mean(),
    "scaled": lambda y: 1.01 * 3 * y,
    "flipped": lambda y: 3 * y[..., ::-1],
    "inverse": lambda y: y / 3,
}


@pytest.mark.parametrize("name", WRONG)
def test_an_adjoint_that_is_none(name):
    f = from_numpy(lambda x: 3 * x, WRONG[name])
    message = assert_names("adjoint", lambda: f(images()))
    assert "<f(u), v>" in message and re.search(r"got [-\d.e]+ and [-\d.e]+ for random", message)


def test_a_function_that_is_not_linear():
    assert_names("adjoint", lambda: from_numpy(lambda x: 3 * x + 1, lambda y: 3 * y)(images()))
    assert_names("adjoint", lambda: from_numpy(np.tanh, lambda y: y)(images()))


def test_arguments_that_cannot_be_used():
    same = lambda x: x
    assert_names("function", lambda: from_numpy(3, same))
    assert_names("adjoint", lambda: from_numpy(same))
    assert_names("adjoint", lambda: from_numpy(same, same, vjp=same))
    assert_names("vjp", lambda: from_numpy(same, vjp=2.0))
    assert_names("function", lambda: from_numpy(lambda x: x[:1], same)(images()))
    assert_names("function", lambda: from_numpy(lambda x: 1j * x, same)(images()))
    assert_names("adjoint", lambda: from_numpy(same, lambda y: y[:, :1])(images()))
    assert_names("function", lambda: straight_through(3))
    assert_names("surrogate", lambda: straight_through(same, 3))
    assert_names("function", lambda: straight_through(lambda x: x[:, :1])(images()))
    assert_names("function", lambda: straight_through(lambda x: x.numpy())(images()))


def test_straight_through_takes_each_from_its_own():
    x = images().requires_grad_()
    weight = torch.randn_like(x)
    for f, surrogate in [
        (straight_through(torch.round), lambda x: x),
        (straight_through(torch.sign, torch.tanh), torch.tanh),
        (straight_through(lambda x: torch.from_numpy(np.round(x.numpy()))), lambda x: x),
    ]:
        value = x.detach().sign() if surrogate is torch.tanh else x.detach().round()
        assert torch.equal(f(x).detach(), value)
        got = torch.autograd.grad((f(x) * weight).sum(), x)[0]
        want = torch.autograd.grad((surrogate(x) * weight).sum(), x)[0]
        torch.testing.assert_close(got, want)
    assert torch.equal((f @ operators.Scale(2.0))(x).detach(), (2 * x).detach().round())


def test_a_solve_with_a_numpy_operator_is_that_with_its_torch_twin():
    flow = AffineFlow(torch.randn(SHAPE).double(), torch.rand(SHAPE).double() + 0.5)
    factor = np.random.rand(*SHAPE) + 0.5
    y = torch.randn(3, *SHAPE).double()
    solve = lambda f, law: ff.reconstruct(y, f, flow, law, start="zeros", steps=9, progress=False).x
    gauss, scale = noise.Gaussian(0.3), operators.Scale(torch.from_numpy(factor))
    for f in (
        from_numpy(lambda x: factor * x, lambda y: factor * y),
        from_numpy(lambda x: factor * x, vjp=lambda x, v: factor * v),
    ):
        torch.testing.assert_close(solve(f, gauss), solve(scale, gauss))
    squares = lambda r: -50 * (r**2).sum((1, 2, 3))
    score = from_numpy(squares, vjp=lambda r, v: -100 * v[:, None, None, None] * r)
    law = lambda function: type("Law", (), {"log_prob": staticmethod(function)})()
    torch.testing.assert_close(solve(scale, law(score)), solve(scale, law(squares)))
