"""Parameters per image, of every operator and noise model: parts of a batch equal the whole."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from helpers import assert_names
from torch import distributions as D
from toy_flows import AffineFlow

import flowinv_fast as ff
from flowinv_fast import measure, noise, operators
from flowinv_fast.protocols import PerImage, provides
from flowinv_fast.reconstruction import memory

BATCH, SHAPE = 3, (3, 6, 3)  # as many images as channels and columns
QUIET = {"progress": False, "strategy": "adam"}


def positive(*shape):
    return torch.rand(shape) + 0.5


class Drawn(AffineFlow):
    """A flow of images, or of 2 x 2 patches, that can be drawn from."""

    def __init__(self, shape=(1, 2, 2)):
        super().__init__(torch.randn(shape), positive(*shape))

    def sample(self, n, generator=None):
        return self.decode(torch.randn(n, math.prod(self.shape), generator=generator))[0]


SENSED = lambda: operators.GaussianSensing(4, SHAPE)
OPERATORS = {
    "identity": lambda: operators.Identity(),
    "scale": lambda: operators.Scale(0.7),
    "scale-images": lambda: operators.Scale(positive(BATCH, 1, 1, 1)),
    "scale-array": lambda: operators.Scale(positive(BATCH, 1, 1, 1).numpy()),
    "scale-list": lambda: operators.Scale(positive(BATCH, 1, 1, 1).tolist()),
    "scale-channels": lambda: operators.Scale(positive(3, 1, 1)),
    "scale-columns": lambda: operators.Scale(positive(3)),
    "scale-pixels": lambda: operators.Scale(positive(BATCH, *SHAPE)),
    "inpaint": lambda: operators.Inpaint(torch.rand(6, 3) > 0.5),
    "inpaint-images": lambda: operators.Inpaint(torch.rand(BATCH, 1, 6, 3) > 0.5),
    "inpaint-array": lambda: operators.Inpaint((torch.rand(BATCH, *SHAPE) > 0.5).numpy()),
    "blur": lambda: operators.Blur(torch.rand(3, 1)),
    "downsample": lambda: operators.Downsample(3),
    "sensing": SENSED,
    "sign": lambda: operators.SignSensing(4, SHAPE),
    "composition": lambda: (
        operators.Downsample(3) @ operators.Scale(positive(3, 1, 1, 1)) @ operators.Blur([[2.0]])
    ),
    "rows-of-vectors": lambda: operators.Scale(positive(BATCH, 1)) @ SENSED(),
    "rows-on-both-sides": lambda: (
        operators.Scale(positive(BATCH, 4).tolist())
        @ SENSED()
        @ operators.Scale(positive(3, 1, 1, 1))
    ),
}
LAWS = {
    "gaussian": lambda: noise.Gaussian(0.3, 0.1),
    "gaussian-images": lambda: noise.Gaussian(positive(BATCH, 1, 1, 1), positive(BATCH, 1, 1, 1)),
    "gaussian-list": lambda: noise.Gaussian(positive(BATCH, 1, 1, 1).tolist()),
    "gaussian-array": lambda: noise.Gaussian(0.2, torch.randn(BATCH, *SHAPE).numpy()),
    "gaussian-channels": lambda: noise.Gaussian(positive(3, 1, 1), torch.randn(3, 1, 1)),
    "gaussian-columns": lambda: noise.Gaussian(positive(3), torch.randn(3)),
    "sinusoidal": lambda: noise.Sinusoidal(positive(BATCH), torch.randn(BATCH, 1, 1, 1)),
    "sinusoidal-list": lambda: noise.Sinusoidal(positive(BATCH).tolist(), form="expm1"),
    "radial": lambda: noise.Radial(positive(BATCH, 1, 1, 1), positive(3)),
    "radial-rows": lambda: noise.Radial(positive(BATCH, 1).numpy()),
    "flow": lambda: noise.FlowNoise(Drawn(SHAPE), 0.5),
    "placed": lambda: noise.PlacedFlowNoise(Drawn(), [[0, 0, 0], [2, 4, 1]], 0.3),
    "placed-images": lambda: noise.PlacedFlowNoise(Drawn(), [[[i, i, 1]] for i in range(3)], 0.3),
    "distribution": lambda: noise.FromDistribution(D.Laplace(0.0, positive(BATCH, 1, 1, 1))),
}
PARTS = [[slice(0, 2), slice(2, 3)], [slice(i, i + 1) for i in range(3)]]


def some(part, which, shape):
    return part.select(which, tuple(shape)) if provides(part, PerImage) else part


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_in_parts_equals_the_whole(name, parts):
    f, x = OPERATORS[name](), torch.rand(BATCH, *SHAPE)
    whole = f(x)
    got = torch.cat([some(f, part, whole.shape)(x[part]) for part in parts])
    torch.testing.assert_close(got, whole, rtol=1e-5, atol=1e-5)
    if hasattr(f, "adjoint"):
        back = torch.cat([some(f, p, whole.shape).adjoint(whole[p]) for p in parts])
        torch.testing.assert_close(back, f.adjoint(whole), rtol=1e-5, atol=1e-5)
    guess = f.guess(whole)
    if guess is not None:
        each = torch.cat([some(f, p, whole.shape).guess(whole[p]) for p in parts])
        torch.testing.assert_close(each, guess, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("name", LAWS)
def test_a_law_in_parts_equals_the_whole(name, parts):
    law, delta = LAWS[name](), torch.randn(BATCH, *SHAPE)
    whole = law.log_prob(delta)
    assert whole.shape == (BATCH,)
    got = torch.cat([some(law, part, delta.shape).log_prob(delta[part]) for part in parts])
    assert torch.equal(got, whole) or torch.allclose(got, whole, rtol=1e-6, atol=1e-5)
    for part in parts:
        draw = some(law, part, delta.shape).sample(tuple(delta[part].shape))
        assert draw.shape == delta[part].shape and torch.isfinite(draw).all()


def test_draws_of_a_part_are_its_images():
    std, mean = positive(BATCH, 1, 1, 1), 10 * torch.randn(BATCH, 1, 1, 1)
    generator = lambda: torch.Generator().manual_seed(1)
    standard = noise.Gaussian(1.0).sample((1, *SHAPE), generator())
    for i in range(BATCH):
        part = noise.Gaussian(std, mean).select(slice(i, i + 1), (BATCH, *SHAPE))
        want = mean[i] + std[i] * standard
        torch.testing.assert_close(part.sample((1, *SHAPE), generator()), want)


PROBLEMS = [
    *((name, "gaussian") for name in OPERATORS if name not in ("rows-on-both-sides",)),
    *(("identity", name) for name in LAWS),
    ("rows-on-both-sides", "gaussian"),
]


@pytest.mark.parametrize(("operator", "law"), PROBLEMS)
def test_a_solve_in_parts_equals_the_whole(operator, law):
    f, model = OPERATORS[operator](), LAWS[law]()
    prior, x = AffineFlow(torch.rand(SHAPE), positive(*SHAPE)), torch.rand(BATCH, *SHAPE)
    y = measure(x, f, noise.Gaussian(0.1))
    solve = lambda: ff.reconstruct(y, f, prior, model, steps=3, **QUIET)
    whole = solve()
    with mock.patch.object(memory, "images_at_once", lambda *_: 2):
        parts = solve()
    torch.testing.assert_close(parts.x, whole.x, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("at_once", [2, 4])
def test_rows_for_another_number_of_images_are_refused(at_once):
    """Also where they fit a part of the batch."""
    y, prior = torch.rand(4, *SHAPE), AffineFlow(torch.rand(SHAPE), positive(*SHAPE))
    rows, same, law = positive(2, 1, 1, 1), operators.Identity(), noise.Gaussian(0.1)
    solve = lambda f, model: ff.reconstruct(y, f, prior, model, steps=2, **QUIET)
    with mock.patch.object(memory, "images_at_once", lambda *_: at_once):
        assert_names("std", lambda: solve(same, noise.Gaussian(rows)))
        assert_names("mean", lambda: solve(same, noise.Gaussian(0.1, rows)))
        assert_names("level", lambda: solve(same, noise.Radial(rows)))
        assert_names("factor", lambda: solve(operators.Scale(rows), law))
        assert_names("mask", lambda: solve(same @ operators.Inpaint(rows), law))
        assert_names(
            "places",
            lambda: solve(same, noise.PlacedFlowNoise(Drawn(), [[[0, 0, 0]], [[0, 0, 1]]], 0.1)),
        )
        assert_names("distribution", lambda: solve(same, D.Normal(rows, 1.0)))


# --- measurements ---------------------------------------------------------------------------------


def test_measurements_are_of_the_operators_kind():
    x, law = torch.rand(2, *SHAPE), noise.Gaussian(0.1)
    wide = measure(x, lambda x: x.double(), law)
    assert wide.dtype == torch.float64 and not torch.equal(wide.float(), x)
    assert_names("operator(x)", lambda: measure(x, lambda x: (255 * x).long(), law))
    assert_names("operator(x)", lambda: measure(x, lambda x: x.numpy(), law))
    assert measure(x[:0], operators.Identity(), law).shape == (0, *SHAPE)


@pytest.mark.parametrize("wrong", [lambda s: torch.zeros(1, *s[1:]), lambda s: torch.zeros(s[-1])])
def test_noise_of_another_shape_is_refused(wrong):
    class Wrong:
        def sample(self, shape, generator=None):
            return wrong(shape)

    assert_names("noise", lambda: measure(torch.rand(2, *SHAPE), operators.Identity(), Wrong()))


@pytest.mark.parametrize("law", [*LAWS, "digits"])
def test_measurements_depend_on_the_generator_alone(law):
    digits = lambda: noise.Digits(torch.rand(5, 2, 2), 3)
    x, model, kept = torch.rand(BATCH, *SHAPE), LAWS.get(law, digits)(), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            state = torch.get_rng_state()
            kept.append(measure(x, operators.Identity(), model, torch.Generator().manual_seed(7)))
            assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(kept[1], kept[0]) and torch.equal(kept[2], kept[0])
    assert not torch.equal(
        kept[0], measure(x, operators.Identity(), model, torch.Generator().manual_seed(8))
    )
