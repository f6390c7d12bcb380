"""recovery_bound and sample_posterior against dense Hessians, Gaussian posteriors, quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import assert_names
from toy_flows import SHAPE, SIZE, AffineFlow, Physics

import flowinv_fast as ff
from flowinv_fast import noise, operators, recovery_bound, sample_posterior
from flowinv_fast.flows import RealNVPConfig, realnvp
from flowinv_fast.generators import GeneratorConfig
from flowinv_fast.generators.nets import make


@pytest.fixture
def flow():
    """A small RealNVP away from the identity, float32."""
    model = realnvp(RealNVPConfig(SHAPE, scales=2, hidden=4, blocks=1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gain", "bias")):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


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


# --- posterior samples ---------------------------------------------------------------------------


def assert_calibrated(x: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Draws (S, B, ...) of one posterior by B independent chains: its mean and variance.

    Each chain's averages are one sample of B; 6 of their standard errors leave, of 64 pixels, one
    false alarm in ten million.
    """
    chains = x.shape[1]
    for each, want in [(x.mean(0), mean), ((x - mean).square().mean(0), std.square())]:
        error = each.std(0) / math.sqrt(chains)
        assert ((each.mean(0) - want).abs() < 6 * error).all()
        assert (error < 0.15 * std.clamp_max(1)).all()  # the test can tell


OPERATORS = {
    "scale": lambda: operators.Scale(torch.rand(SHAPE).double() + 0.5),
    "mask": lambda: operators.Inpaint((torch.rand(SHAPE) < 0.5).double()),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_gaussian_posterior(name):
    """y = a x + mean + std e with a Gaussian prior: every pixel is Gaussian, independently."""
    operator, chains = OPERATORS[name](), 400
    a = operator(torch.ones(1, *SHAPE).double())[0]
    prior = AffineFlow(torch.randn(SHAPE).double(), torch.rand(SHAPE).double() + 0.5)
    std, offset = torch.rand(SHAPE).double() + 0.3, torch.randn(SHAPE).double()
    y = torch.randn(SHAPE).double()
    precision = (a / std) ** 2 + prior.std**-2
    mean = (a * (y - offset) / std**2 + prior.mean / prior.std**2) / precision
    got = sample_posterior(
        y.expand(chains, *SHAPE),
        operator,
        prior,
        noise.Gaussian(std, offset),
        12,
        thin=8,
        seed=torch.randint(2**31, ()).item(),
    )
    assert got.x.shape == (12, chains, *SHAPE)
    assert_calibrated(got.x, mean, precision**-0.5)
    torch.testing.assert_close(got.mean, got.x.mean(0))
    torch.testing.assert_close(got.std, (got.x - got.mean).square().sum(0).div(11).sqrt())
    assert got.acceptance.shape == (chains,)
    assert 0.45 < got.acceptance.mean() < 0.7 and (got.acceptance > 0.1).all()


class Sinh:
    """x = sinh(z): pixels whose density is not Gaussian."""

    shape = (1, 1, 3)

    def decode(self, z):
        return z.sinh().view(-1, *self.shape), z.cosh().log().sum(1)

    def encode(self, x):
        z = x.flatten(1).asinh()
        return z, -z.cosh().log().sum(1)

    def log_prob(self, x):
        z, logdet = self.encode(x)
        return torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + logdet


def test_posterior_of_a_bent_flow_by_quadrature():
    """The draws are of p(x | y), with no log-determinant in what is walked."""
    std, chains, y = 0.7, 400, torch.tensor([-0.5, 0.4, 2.0]).double().view(Sinh.shape)
    x = np.linspace(-60, 60, 400_001)
    means, stds = [], []
    for value in y.flatten().tolist():
        log_density = -0.5 * np.arcsinh(x) ** 2 - 0.5 * np.log1p(x**2)
        density = np.exp(log_density - 0.5 * ((value - x) / std) ** 2)
        density /= density.sum()
        means.append((density * x).sum())
        stds.append(math.sqrt((density * (x - means[-1]) ** 2).sum()))
    got = sample_posterior(
        y.expand(chains, *Sinh.shape),
        operators.Identity(),
        Sinh(),
        noise.Gaussian(std),
        12,
        thin=8,
        seed=torch.randint(2**31, ()).item(),
    )
    shaped = lambda values: torch.tensor(values).view(Sinh.shape)
    assert_calibrated(got.x, shaped(means), shaped(stds))


def test_every_image_has_its_own_posterior_and_step_size():
    """One image measured a hundred times more sharply than the other, in one batch."""
    stds = torch.tensor([0.01, 1.0]).double().repeat(100).view(-1, 1, 1, 1)
    prior = AffineFlow(torch.zeros(SHAPE).double(), torch.ones(SHAPE).double())
    y = images(2).repeat(100, 1, 1, 1)
    got = sample_posterior(y, operators.Identity(), prior, noise.Gaussian(stds), 12)
    for i in range(2):
        std = (1 + stds[i].item() ** -2) ** -0.5
        mean = y[i] * std**2 / stds[i].item() ** 2
        own = got.x[:, i::2]
        error = (own - mean).square().mean().sqrt()
        assert abs(error / std - 1) < 0.1
        assert 0.45 < got.acceptance[i::2].mean() < 0.7


def test_a_start_is_where_the_first_draw_is_near():
    """So sharp a likelihood that two steps of 0.01 stay within its reach of the start."""
    prior = AffineFlow(torch.zeros(SHAPE).double(), torch.ones(SHAPE).double())
    z = torch.randn(3, SIZE).double()
    settings = {"samples": 2, "warm_up": 1, "thin": 1, "tempering": 1.0}
    run = lambda start: sample_posterior(
        prior.decode(z)[0],
        operators.Identity(),
        prior,
        noise.Gaussian(0.1),
        start=start,
        **settings,
    )
    before = z.clone()
    assert (run(z).x[0].flatten(1) - z).abs().max() < 0.5
    assert (run(None).x[0].flatten(1) - z).abs().max() > 0.5
    assert torch.equal(z, before)


def test_same_seed_same_draws_and_torch_generators_untouched(flow):
    y, before = images(2).float(), torch.get_rng_state()
    draw = lambda seed: sample_posterior(
        y, operators.Identity(), flow, noise.Gaussian(0.5), 3, warm_up=20, thin=2, seed=seed
    )
    first, again, other = draw(7), draw(7), draw(8)
    assert torch.equal(first.x, again.x) and torch.equal(first.acceptance, again.acceptance)
    assert not torch.equal(first.x, other.x)
    assert torch.equal(before, torch.get_rng_state())


def test_frozen_and_trained_flows_draw_the_same(flow):
    """A RealNVP is frozen for the walk, and comes back as it was."""
    y = images(2).float()
    draw = lambda prior: sample_posterior(
        y, operators.Identity(), prior, noise.Gaussian(0.5), 3, warm_up=20, thin=2
    )
    got = draw(flow.train())
    assert torch.equal(got.x, draw(flow.freeze()).x) and torch.isfinite(got.x).all()
    assert flow.training and all(p.requires_grad and p.grad is None for p in flow.parameters())


def test_generators_physics_and_users_laws():
    """A generator without a density; a deepinv-like physics; a torch.distributions law."""
    generator = make(GeneratorConfig((1, 8, 8), "vae", latent_dim=3, width=2)).eval()
    physics = Physics(lambda x: x.flatten(1)[:, :5])
    law = torch.distributions.Normal(torch.tensor(0.0), torch.tensor(0.3))
    got = sample_posterior(torch.rand(2, 5), physics, generator, law, 4, warm_up=30, thin=2)
    assert got.x.shape == (4, 2, 1, 8, 8) and (got.x > 0).all() and (got.x < 1).all()
    assert got.x.std(0).max() > 0


def test_empty_batch_of_measurements(flow):
    got = sample_posterior(
        images(0).float(), operators.Identity(), flow, noise.Gaussian(0.5), 2, warm_up=1, thin=1
    )
    assert got.x.shape == (2, 0, *SHAPE) and got.acceptance.shape == (0,)


Y = torch.zeros(3, *SHAPE)
BAD_SAMPLES = {
    "y-type": ("y", {"y": [1.0]}),
    "y-int": ("y", {"y": Y.long()}),
    "y-dtype": ("y", {"y": Y.double()}),
    "y-shape": ("y", {"y": torch.zeros(3, 1, 4, 5)}),
    "y-nan": ("y", {"y": Y + math.nan}),
    "operator": ("operator", {"operator": 3.0}),
    "prior": ("prior", {"prior": lambda z: z}),
    "noise": ("noise", {"noise": None}),
    "samples": ("samples", {"samples": 1}),
    "samples-type": ("samples", {"samples": 4.5}),
    "warm_up": ("warm_up", {"warm_up": 0}),
    "thin": ("thin", {"thin": 0}),
    "tempering": ("tempering", {"tempering": 0.0}),
    "tempering-above": ("tempering", {"tempering": 1.5}),
    "tempering-type": ("tempering", {"tempering": "cold"}),
    "seed": ("seed", {"seed": -1}),
    "seed-type": ("seed", {"seed": 0.5}),
    "start-type": ("start", {"start": "zeros"}),
    "start-shape": ("start", {"start": torch.zeros(3, 5)}),
    "start-dtype": ("start", {"start": torch.zeros(3, SIZE).double()}),
    "start-nan": ("start", {"start": torch.full((3, SIZE), math.nan)}),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_bad_argument_of_sampling_is_named(case, flow):
    argument, change = BAD_SAMPLES[case]
    call = {
        "y": Y,
        "operator": operators.Identity(),
        "prior": flow,
        "noise": noise.Gaussian(0.5),
        "samples": 2,
        "warm_up": 1,
        "thin": 1,
        **change,
    }
    assert_names(argument, lambda: sample_posterior(**call))
