"""Forward operators: adjoints, independent computations, gradients, bad arguments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import assert_names
from scipy import ndimage

from flowinv_fast import operators

SHAPE = (2, 6, 9)


def images(batch=3):
    return torch.randn(batch, *SHAPE, dtype=torch.float64)


LINEAR = {
    "identity": lambda: operators.Identity(),
    "scale": lambda: operators.Scale(0.3),
    "scale-per-image": lambda: operators.Scale(torch.rand(3, 1, 1, 1)),
    "inpaint": lambda: operators.Inpaint((torch.rand(SHAPE[1:]) > 0.5).double()),
    "inpaint-per-image": lambda: operators.Inpaint((torch.rand(3, *SHAPE) > 0.5).double()),
    "blur": lambda: operators.Blur(torch.randn(3, 5)),
    "downsample": lambda: operators.Downsample(3),
    "sensing": lambda: operators.GaussianSensing(7, SHAPE, seed=2),
    "composed": lambda: (
        operators.GaussianSensing(5, (2, 2, 3)) @ operators.Downsample(3) @ operators.Scale(2.0)
    ),
}


@pytest.mark.parametrize("name", LINEAR)
def test_adjoint(name):
    """<f(x), y> = <x, f^T y> for every image, and f is linear."""
    f, x = LINEAR[name](), images()
    fx = f(x)
    y = torch.randn_like(fx)
    left, right = (fx * y).flatten(1).sum(1), (x * f.adjoint(y)).flatten(1).sum(1)
    torch.testing.assert_close(left, right)
    other = images()
    torch.testing.assert_close(f(2 * x - other), 2 * fx - f(other))


@pytest.mark.parametrize("name", LINEAR)
def test_gradient_is_the_adjoint_and_the_guess_has_the_shape(name):
    f, x = LINEAR[name](), images().requires_grad_()
    fx = f(x)
    y = torch.randn_like(fx)
    (grad,) = torch.autograd.grad(fx, x, y)
    torch.testing.assert_close(grad, f.adjoint(y))
    guess = f.guess(y)
    assert guess is None or guess.shape == x.shape
    if "per-image" not in name:
        assert f(images(0)).shape == (0, *fx.shape[1:])


def test_guesses():
    x = torch.rand(3, *SHAPE, dtype=torch.float64)
    half = operators.Scale(0.5)
    torch.testing.assert_close(half.guess(half(x)), x)
    f = operators.Downsample(3)
    torch.testing.assert_close(f(f.guess(f(x))), f(x))
    mask = (torch.rand(SHAPE) > 0.5).double()
    guess = operators.Inpaint(mask).guess(mask * x)
    torch.testing.assert_close(guess * mask, x * mask)
    mean = (mask * x).sum((1, 2, 3)) / mask.sum()
    torch.testing.assert_close(guess[0][mask == 0], mean[0].expand(int((mask == 0).sum())))
    none = operators.Scale(0.0).guess(x)
    assert torch.isfinite(none).all()


def test_blur_is_a_convolution():
    kernel, x = torch.randn(3, 5, dtype=torch.float64), images()
    got = operators.Blur(kernel)(x)
    for b in range(3):
        for c in range(2):
            want = ndimage.convolve(x[b, c].numpy(), kernel.numpy(), mode="constant")
            np.testing.assert_allclose(got[b, c], want, atol=1e-12)


def test_downsample_takes_block_means():
    x = images()
    want = x.reshape(3, 2, 2, 3, 3, 3).mean((3, 5))
    torch.testing.assert_close(operators.Downsample(3)(x), want)


def test_sensing_matrix():
    """Entries N(0, 1/m), fixed by the seed; applied to flattened images."""
    f = operators.GaussianSensing(300, (1, 20, 30), seed=4)
    n = f.matrix.numel()
    assert abs(f.matrix.mean()) * 300**0.5 < 5 / n**0.5
    assert abs(f.matrix.square().mean() * 300 - 1) < 5 * (2 / n) ** 0.5
    assert torch.equal(f.matrix, operators.GaussianSensing(300, (1, 20, 30), seed=4).matrix)
    assert not torch.equal(f.matrix, operators.GaussianSensing(300, (1, 20, 30), seed=5).matrix)
    x = torch.randn(2, 1, 20, 30)
    torch.testing.assert_close(f(x), torch.stack([f.matrix @ i.flatten() for i in x]))


def test_composition_takes_any_callable():
    x = images()
    f = operators.Scale(2.0) @ torch.exp
    torch.testing.assert_close(f(x), 2 * x.exp())
    assert f.guess(x) is None


def test_sign_sensing():
    """sign(A x) with the gradient of A x (straight through)."""
    f = operators.SignSensing(11, SHAPE, seed=3)
    x = images().requires_grad_()
    product = f.linear(x)
    out = f(x)
    assert torch.equal(out, torch.where(product >= 0, 1.0, -1.0).double())
    y = torch.randn_like(out)
    (grad,) = torch.autograd.grad(out, x, y)
    torch.testing.assert_close(grad, f.linear.adjoint(y))


def test_sign_sensing_anneals_towards_the_sign():
    f, x = operators.SignSensing(40, SHAPE, widths=(1.0, 0.01)), images()
    sign = f(x)
    errors = []
    for t in (0.0, 0.5, 0.99):
        smooth = f.at(t)(x)
        assert (smooth.abs() <= 1).all() and torch.equal(smooth.sign(), sign)
        errors.append((smooth - sign).abs().mean().item())
    assert errors[0] > errors[1] > errors[2]
    assert f.at(1.0) is f and torch.equal(f(x), sign)
    guess = f.guess(sign)
    torch.testing.assert_close(guess.flatten(1).amax(1), torch.ones(3, dtype=torch.float64))


def test_smoothed_signs_share_the_matrix_and_change_nothing():
    f, x = operators.SignSensing(40, SHAPE), images()
    before = {name: id(value) for name, value in vars(f).items()}
    early = f.at(0.0)
    assert early.linear is f.linear and f.at(0.3).linear is f.linear
    early(x)
    assert {name: id(value) for name, value in vars(f).items()} == before


def test_composition_does_what_its_parts_can():
    sign, x = operators.SignSensing(5, (2, 2, 3), noise_inside=True), images()
    outer, inner = sign @ operators.Downsample(3), operators.Scale(2.0) @ sign
    assert torch.equal(outer.at(0.2)(x), sign.at(0.2)(operators.Downsample(3)(x)))
    small = operators.Downsample(3)(x)
    assert torch.equal(inner.at(0.2)(small), 2 * sign.at(0.2)(small))
    assert torch.equal(outer.at(1.0)(x), outer(x))
    for f, image in ((outer, x), (inner, small)):
        assert f.noise_inside is True
        assert torch.equal(f.after_noise(f.before_noise(image)), f(image))
    assert torch.equal(outer.before_noise(x), sign.linear(small))
    for name in ("at", "noise_inside", "before_noise", "after_noise"):
        assert not hasattr(operators.Scale(2.0) @ operators.Blur(torch.ones(1, 1)), name)
    plain = operators.Scale(2.0) @ torch.exp
    assert not hasattr(plain, "adjoint") and not hasattr(torch.nn.Identity(), "adjoint")
    deeper = outer @ operators.Scale(1.0)
    assert deeper.noise_inside and torch.equal(deeper.at(0.5)(x), outer.at(0.5)(x))


def test_parameters_per_image_follow_their_images():
    x, part = images(), slice(1, 3)
    shape = tuple(x.shape)
    factor, mask = torch.rand(3, 1, 1, 1), (torch.rand(3, *SHAPE) > 0.5).double()
    for f in (
        operators.Scale(factor),
        operators.Inpaint(mask),
        operators.Downsample(3) @ operators.Scale(factor) @ operators.Inpaint(mask),
    ):
        torch.testing.assert_close(f.select(part, (3, 7, 1, 1))(x[part]), f(x)[part])
        assert f(x).shape[0] == 3  # as it was
    assert operators.Scale(0.5).select(part, shape).factor == 0.5
    for f in (operators.Inpaint(mask[0]), operators.Scale(factor[:1])):
        torch.testing.assert_close(f.select(part, shape)(x[part]), f(x)[part])
    own = operators.Inpaint(mask)
    assert list(own.select(part, shape).state_dict()) == ["mask"]


BAD = {
    "inpaint": ("mask", lambda: operators.Inpaint("101")),
    "blur": ("kernel", lambda: operators.Blur(torch.ones(2, 3))),
    "factor": ("factor", lambda: operators.Downsample(0)),
    "divisible": ("x", lambda: operators.Downsample(4)(images())),
    "measurements": ("measurements", lambda: operators.GaussianSensing(0, SHAPE)),
    "fraction": ("measurements", lambda: operators.GaussianSensing(2.5, SHAPE)),
    "shape": ("shape", lambda: operators.GaussianSensing(3, (4, 4))),
    "widths": ("widths", lambda: operators.SignSensing(3, SHAPE, widths=(0.1, 1.0))),
    "outer": ("outer", lambda: operators.Composition(3, operators.Identity())),
    "inner": ("inner", lambda: operators.Identity() @ 3),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_argument_is_named(case):
    assert_names(*BAD[case])
