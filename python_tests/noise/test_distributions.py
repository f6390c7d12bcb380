"""Distributions of torch as noise models, against their own log_prob an image at a time."""

from __future__ import annotations

import copy
import math
import pickle
from unittest import mock

import pytest
import torch
from helpers import assert_names
from torch import distributions as D
from toy_flows import AffineFlow

import flowinv_fast as ff
from flowinv_fast import noise, operators
from flowinv_fast.protocols import NoiseModel, PerImage, Sampled, provides
from flowinv_fast.reconstruction import memory

SHAPE = (2, 3, 4)
BATCH = 5
SIZE = math.prod(SHAPE)
QUIET = {"progress": False}


def positive(*shape):
    return torch.rand(shape) + 0.5


def covariance(n):
    root = torch.randn(n, n)
    return root @ root.T / n + torch.eye(n)


def mixture(*shape):
    """Of two components for every number."""
    return D.MixtureSameFamily(
        D.Categorical(torch.rand(*shape, 2)), D.Normal(torch.randn(*shape, 2), positive(*shape, 2))
    )


# A distribution, and the one of image i as it scores that image (C, H, W), summed.
CASES = {
    "number": lambda: (D.Normal(0.1, 0.3), lambda d, i: d),
    "pixels": lambda: (D.Normal(torch.randn(SHAPE), positive(*SHAPE)), lambda d, i: d),
    "columns": lambda: (D.Laplace(torch.randn(4), positive(4)), lambda d, i: d),
    "rows": lambda: (
        D.Normal(torch.randn(BATCH, *SHAPE), positive(BATCH, 1, 1, 1)),
        lambda d, i: D.Normal(d.loc[i], d.scale[i]),
    ),
    "event": lambda: (D.Independent(D.Laplace(torch.randn(SHAPE), 0.5), 3), lambda d, i: d),
    "event-rows": lambda: (
        D.Independent(D.Normal(torch.randn(BATCH, *SHAPE), 0.5), 3),
        lambda d, i: D.Normal(d.mean[i], 0.5),
    ),
    "flat": lambda: (
        D.MultivariateNormal(torch.randn(SIZE), covariance(SIZE)),
        lambda d, i: _Flat(d),
    ),
    "flat-rows": lambda: (
        D.MultivariateNormal(torch.randn(BATCH, SIZE), covariance(SIZE)),
        lambda d, i: _Flat(D.MultivariateNormal(d.loc[i], d.covariance_matrix[i])),
    ),
    "last": lambda: (D.MultivariateNormal(torch.randn(4), covariance(4)), lambda d, i: d),
    "mixture": lambda: (mixture(), lambda d, i: d),
    "mixture-pixels": lambda: (mixture(*SHAPE), lambda d, i: d),
    "student": lambda: (D.StudentT(3.0, 0.0, positive(2, 1, 1)), lambda d, i: d),
    "transformed": lambda: (
        D.TransformedDistribution(D.Normal(0.0, 1.0), [D.AffineTransform(0.5, positive(4))]),
        lambda d, i: d,
    ),
    "transformed-rows": lambda: (
        D.TransformedDistribution(
            D.Laplace(0.0, 1.0), D.AffineTransform(0.5, positive(5, 1, 1, 1))
        ),
        lambda d, i: D.Laplace(0.5, d.transforms[0].scale[i]),
    ),
    "gamma": lambda: (D.Gamma(2.0, positive(4)), lambda d, i: d),
}


class _Flat:
    def __init__(self, distribution):
        self.distribution = distribution

    def log_prob(self, x):
        return self.distribution.log_prob(x.flatten())


@pytest.mark.parametrize("name", CASES)
def test_density_is_the_distributions(name):
    """One value an image, each as its own distribution scores it; in parts as in whole."""
    given, alone = CASES[name]()
    law = noise.FromDistribution(given)
    residual = law.sample((BATCH, *SHAPE), torch.Generator().manual_seed(1)).requires_grad_()
    assert residual.shape == (BATCH, *SHAPE)
    got = law.log_prob(residual)
    want = torch.stack([alone(given, i).log_prob(residual[i]).sum() for i in range(BATCH)])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    (grad,) = torch.autograd.grad(got.sum(), residual)
    (grad_want,) = torch.autograd.grad(want.sum(), residual)
    torch.testing.assert_close(grad, grad_want, rtol=1e-3, atol=1e-4)
    for part in (slice(0, 2), slice(2, 5), slice(4, 5)):
        some = law.select(part, (BATCH, *SHAPE))
        torch.testing.assert_close(some.log_prob(residual[part]), got[part])
        draw = some.sample(tuple(residual[part].shape), torch.Generator().manual_seed(1))
        torch.testing.assert_close(draw, residual.detach()[part]) if "rows" in name else None
    for other in (copy.deepcopy(law), pickle.loads(pickle.dumps(law))):
        assert torch.equal(other.log_prob(residual), got)
    assert law.log_prob(residual.double()).dtype == torch.float64


@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_generator_and_leave_torchs_alone(name):
    given, _ = CASES[name]()
    law, shape = noise.FromDistribution(given), (BATCH, *SHAPE)
    before = torch.get_rng_state()
    first = law.sample(shape, torch.Generator().manual_seed(3))
    assert torch.equal(first, law.sample(shape, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, law.sample(shape, torch.Generator().manual_seed(4)))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(law.sample(shape), law.sample(shape))  # by torch's own


def test_draws_have_the_distributions_moments():
    loc, scale = torch.randn(2000, 1, 1, 1), positive(2000, 1, 1, 1)
    draw = noise.FromDistribution(D.Laplace(loc, scale)).sample((2000, 3, 4, 5))
    standard = (draw - loc) / scale
    n = draw.numel()
    assert abs(standard.mean()) < 5 * math.sqrt(2 / n)
    assert abs(standard.abs().mean() - 1) < 5 * math.sqrt(1 / n)


@pytest.mark.parametrize(
    "given", [D.Gamma(2.0, 1.0), D.Beta(2.0, 2.0), D.Uniform(0.0, 1.0), D.HalfNormal(1.0)]
)
def test_outside_the_support_the_density_is_zero(given):
    law = noise.FromDistribution(given)
    residual = (0.2 + 0.6 * torch.rand(3, *SHAPE)).requires_grad_()
    inside = law.log_prob(residual).detach()
    bad = residual.detach().clone()
    bad[1, 0, 0, 0] = -0.5
    bad[2, 0, 0, 0] = math.nan
    bad.requires_grad_()
    got = law.log_prob(bad)
    values = got.tolist()
    assert values[0] == inside[0] and values[1] == -math.inf and not math.isfinite(values[2])
    if got.requires_grad:  # a uniform density has no slope
        (grad,) = torch.autograd.grad(got[:2].sum(), bad)
        assert torch.isfinite(grad[:2]).all()


def flow():
    return AffineFlow(torch.randn(SHAPE), positive(*SHAPE))


def test_everything_that_takes_noise_takes_a_distribution():
    prior, same, x = flow(), operators.Identity(), torch.rand(BATCH, *SHAPE)
    given = D.Laplace(0.0, 0.1)
    y = ff.measure(x, same, given, torch.Generator().manual_seed(1))
    assert torch.equal(y, ff.measure(x, same, given, torch.Generator().manual_seed(1)))
    assert y.shape == x.shape and not torch.equal(y, x)
    found = ff.reconstruct(y, same, prior, given, steps=3, **QUIET)
    want = -(given.log_prob(y - found.x).flatten(1).sum(1)) - prior.log_prob(found.x)
    torch.testing.assert_close(found.loss, want, rtol=1e-4, atol=1e-3)
    draws = ff.sample_posterior(y, same, prior, given, 4, chains=2, warm_up=1)
    assert draws.x.shape[1] == BATCH
    law = noise.FromDistribution(given)
    assert all(provides(law, ability) for ability in (NoiseModel, Sampled, PerImage))


def test_one_image_that_is_not_finite_fails_alone():
    prior, y = flow(), torch.rand(BATCH, *SHAPE)
    y[2, 0, 0, 0] = math.nan
    solve = lambda y, law: ff.reconstruct(
        y, operators.Identity(), prior, law, steps=3, throw=False, **QUIET
    )
    got = solve(y, D.Normal(0.0, 0.1))
    assert [s is ff.Status.BAD_MEASUREMENT for s in got.status] == [i == 2 for i in range(BATCH)]
    kept = [0, 1, 3, 4]
    torch.testing.assert_close(got.x[kept], solve(y[kept], D.Normal(0.0, 0.1)).x)
    # A density that is zero at the start of one image, validated by torch
    y = 2 + torch.rand(BATCH, *SHAPE)
    y[1] = -50
    prior.mean, prior.std = torch.zeros(SHAPE), torch.full(SHAPE, 0.1)
    got = solve(y, D.Gamma(2.0, 1.0))
    assert [s is ff.Status.FAILED for s in got.status] == [i == 1 for i in range(BATCH)]


def test_rows_are_cut_when_a_batch_is_split():
    prior, y = flow(), torch.randn(BATCH, *SHAPE)
    for law in (
        D.Normal(torch.randn(BATCH, *SHAPE), positive(BATCH, 1, 1, 1)),
        D.MultivariateNormal(torch.randn(BATCH, SIZE), covariance(SIZE)),
    ):
        solve = lambda law=law: ff.reconstruct(
            y, operators.Identity(), prior, law, steps=4, **QUIET
        )
        whole = solve()
        with mock.patch.object(memory, "images_at_once", lambda *_: 2):
            parts = solve()
        torch.testing.assert_close(parts.x, whole.x)
        torch.testing.assert_close(parts.loss, whole.loss)


@pytest.mark.parametrize(
    "given",
    [
        D.Normal(torch.zeros(7), 1.0),
        D.Normal(torch.zeros(BATCH + 1, 1, 1, 1), 1.0),
        D.Independent(D.Normal(torch.zeros(3, 5), 1.0), 2),
        D.MultivariateNormal(torch.zeros(SIZE + 1), torch.eye(SIZE + 1)),
        D.MultivariateNormal(torch.zeros(BATCH + 1, SIZE), torch.eye(SIZE)),
        D.Independent(D.Normal(torch.zeros(BATCH, *SHAPE), 1.0), 4),  # one number for all images
    ],
)
def test_shapes_that_do_not_fit_are_refused(given):
    law = noise.FromDistribution(given)
    assert_names("distribution", lambda: law.log_prob(torch.zeros(BATCH, *SHAPE)))
    assert_names("distribution", lambda: law.sample((BATCH, *SHAPE)))


@pytest.mark.parametrize("given", [D.Poisson(2.0), D.Bernoulli(0.5), D.Normal, 0.1, None])
def test_what_is_no_density_of_numbers_is_refused(given):
    assert_names("distribution", lambda: noise.FromDistribution(given))


def test_the_users_distribution_stays_as_it_is():
    """It is neither changed nor followed: validation stays on, and its gradients stop."""
    loc = torch.zeros(4, requires_grad=True)
    base = D.Normal(2 * loc, torch.ones(4), validate_args=True)
    given = D.Independent(base, 1)
    before = {**vars(given), **vars(given.base_dist)}
    law, x = noise.FromDistribution(given), torch.randn(2, *SHAPE)
    value = law.log_prob(x)
    assert not value.requires_grad and given.base_dist._validate_args
    assert {**vars(given), **vars(given.base_dist)} == before
    with torch.no_grad():
        given.base_dist.loc.fill_(3.0)
    assert torch.equal(law.log_prob(x), value)


@pytest.mark.parametrize("shape", [(BATCH,), (BATCH, *SHAPE), (BATCH, 1)])
def test_plain_objects_with_log_prob_serve_as_before(shape):
    class Plain(torch.nn.Module):
        def log_prob(self, residual):
            terms = -residual.square()
            sums = [terms.flatten(1).sum(1), terms, terms.flatten(1).sum(1, keepdim=True)]
            return next(s for s in sums if s.shape == shape)

    y, prior = torch.randn(BATCH, *SHAPE), flow()
    found = ff.reconstruct(y, operators.Identity(), prior, Plain(), steps=3, **QUIET)
    want = (y - found.x).square().flatten(1).sum(1) - prior.log_prob(found.x)
    torch.testing.assert_close(found.loss, want, rtol=1e-4, atol=1e-3)
