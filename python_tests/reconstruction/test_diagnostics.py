"""recovery_bound against dense Hessians."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import assert_names
from toy_flows import SHAPE, SIZE, AffineFlow

import flowinv_fast as ff
from flowinv_fast import noise, operators, recovery_bound


class Quadratic:
    """log p(x) = -x^T H x / 2 + b^T x, H of any sign: a density only where H is positive."""

    def __init__(self, eigenvalues: torch.Tensor, shape: tuple[int, int, int] = SHAPE):
        self.shape, size = shape, math.prod(shape)
        basis = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))[0]
        self.hessian = basis @ torch.diag(eigenvalues.double()) @ basis.T
        self.slope = torch.randn(size, dtype=torch.float64)

    def log_prob(self, x):
        flat = x.flatten(1)
        return -0.5 * ((flat @ self.hessian) * flat).sum(1) + flat @ self.slope


def images(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, *SHAPE, dtype=torch.float64)


# --- Theorem 4.1 ---------------------------------------------------------------------------------


def test_the_bound_is_met_with_equality_by_an_isotropic_gaussian_prior():
    std, s = 0.6, 0.9
    prior = AffineFlow(torch.randn(SHAPE).double(), torch.full(SHAPE, std).double())
    delta = s * images()
    found = ff.reconstruct(
        prior.mean + delta,
        operators.Identity(),
        prior,
        noise.Gaussian(s),
        objective="map-image",
        steps=800,
        lr=0.1,
        progress=False,
    )
    got = recovery_bound(prior, found.x, delta.flatten(1).norm(dim=1), s)
    distance = (found.x - prior.mean).flatten(1).norm(dim=1)
    torch.testing.assert_close(got.mu, torch.full((3,), std**-2).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(got.bound, distance, rtol=1e-4, atol=0)


def test_the_bound_is_an_inequality_for_other_gaussian_priors():
    """x* the prior's mode: the worst direction is the one of the smallest curvature."""
    s = 0.9
    prior = AffineFlow(torch.randn(SHAPE).double(), torch.rand(SHAPE).double() + 0.3)
    delta = s * images()
    shrunk = delta / (1 + s**2 / prior.std**2)  # of the exact MAP
    got = recovery_bound(prior, prior.mean + shrunk, delta.flatten(1).norm(dim=1), s)
    assert (shrunk.flatten(1).norm(dim=1) < got.bound).all()
    torch.testing.assert_close(
        got.mu, (prior.std.max() ** -2).expand(3), rtol=1e-3, atol=0
    )  # the default tolerance


def test_mu_is_the_smallest_eigenvalue_of_the_dense_hessian(flow):
    flow, x = flow.double(), images()
    hessian = torch.autograd.functional.hessian
    dense = [hessian(lambda v: -flow.log_prob(v[None]).sum(), one).view(SIZE, SIZE) for one in x]
    want = [np.linalg.eigvalsh(matrix.numpy())[0] for matrix in dense]
    delta, std = torch.rand(3).double(), 0.05
    got = recovery_bound(flow, x, delta, std, tolerance=1e-10)
    np.testing.assert_allclose(got.mu.numpy(), want, rtol=1e-7)
    factor = 1 + got.mu * std**2
    torch.testing.assert_close(got.bound, torch.where(factor > 0, delta / factor, math.inf))
    assert all(parameter.grad is None for parameter in flow.parameters())


def test_float32_flows(flow):
    x = images(2)
    exact = recovery_bound(flow.double(), x.float().double(), 1.0, 0.1, tolerance=1e-10)
    got = recovery_bound(flow.float(), x.float(), 1.0, 0.1, tolerance=1e-5)
    torch.testing.assert_close(got.mu, exact.mu, rtol=1e-3, atol=1e-4)
    assert got.mu.dtype == torch.float64


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 2), (1, 1, 3), SHAPE])
def test_images_too_small_for_lanczos(shape):
    eigenvalues = torch.randn(math.prod(shape))
    prior = Quadratic(eigenvalues, shape)
    got = recovery_bound(prior, torch.randn(2, *shape).double(), 1.0, 0.1, tolerance=1e-10)
    torch.testing.assert_close(got.mu, eigenvalues.min().double().expand(2), rtol=1e-8, atol=1e-8)


def test_a_prior_that_bends_the_other_way_bounds_nothing():
    """1 + mu std^2 = 0 at std = 1 / 2: a bound below it, infinity from there on."""
    prior = Quadratic(torch.cat([torch.tensor([-4.0]), torch.rand(SIZE - 1)]))
    bound = lambda std: recovery_bound(prior, images(2), 3.0, std, tolerance=1e-10).bound
    torch.testing.assert_close(bound(0.3), torch.full((2,), 3 / 0.64).double(), rtol=1e-6, atol=0)
    assert torch.isinf(bound(0.51)).all() and torch.isinf(bound(2.0)).all()


def test_a_flat_prior_leaves_the_noise():
    """log p linear in x: no curvature, ||x - x*|| <= ||delta||."""
    prior = Quadratic(torch.zeros(SIZE))
    prior.log_prob = lambda x: x.flatten(1) @ prior.slope
    got = recovery_bound(prior, images(2), torch.tensor([0.0, 5.0]), 0.7)
    assert got.mu.tolist() == [0, 0] and got.bound.tolist() == [0, 5]


def test_no_images_no_bounds(flow):
    got = recovery_bound(flow.double(), images(0), 1.0, 0.1)
    assert got.mu.shape == got.bound.shape == (0,)


BAD_BOUND = {
    "prior-frozen": ("prior", {"prior": "frozen"}),
    "prior-type": ("prior", {"prior": 3}),
    "x-type": ("x", {"x": [1.0]}),
    "x-int": ("x", {"x": torch.zeros(3, *SHAPE, dtype=torch.int64)}),
    "x-nan": ("x", {"x": torch.full((3, *SHAPE), math.nan)}),
    "x-shape": ("x", {"x": torch.zeros(3, 1, 4, 5)}),
    "std-zero": ("std", {"std": 0.0}),
    "std-negative": ("std", {"std": -1.0}),
    "std-nan": ("std", {"std": math.nan}),
    "std-inf": ("std", {"std": math.inf}),
    "std-type": ("std", {"std": "one"}),
    "delta-negative": ("delta_norm", {"delta_norm": -1.0}),
    "delta-nan": ("delta_norm", {"delta_norm": math.nan}),
    "delta-shape": ("delta_norm", {"delta_norm": torch.ones(2)}),
    "delta-type": ("delta_norm", {"delta_norm": "one"}),
}


@pytest.mark.parametrize("case", BAD_BOUND)
def test_bad_argument_of_the_bound_is_named(case, flow):
    argument, change = BAD_BOUND[case]
    call = {"prior": flow, "x": images().float(), "delta_norm": 1.0, "std": 0.1, **change}
    if call["prior"] == "frozen":
        call["prior"] = flow.freeze()
    assert_names(argument, lambda: recovery_bound(**call))
