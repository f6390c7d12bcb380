"""Correlated Gaussian noise against dense covariances in float64."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from helpers import assert_names, tolerance
from torch.distributions import MultivariateNormal
from toy_flows import AffineFlow

import flowinv_fast as ff
from flowinv_fast import noise, operators
from flowinv_fast.protocols import NoiseModel, PerImage, Sampled, provides

SHAPES = [(1, 4, 4), (2, 5, 3), (3, 1, 4), (7,), (8,), (1,)]


def axes_of(shape):
    return tuple(range(-min(2, len(shape)), 0))


def spectrum(shape):
    """A positive, symmetric one."""
    power = torch.rand(shape, dtype=torch.float64) + 0.1
    axes = axes_of(shape)
    return power + power.flip(axes).roll([1] * len(axes), axes)


def stationary(shape, mean):
    """A law and its covariance: F^-1 S F of every unit vector."""
    power, axes = spectrum(shape), axes_of(shape)
    units = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    rows = torch.fft.ifftn(power * torch.fft.fftn(units, dim=axes), dim=axes).real
    return noise.StationaryGaussian(power, mean), rows.flatten(1)


def low_rank(shape, mean):
    factor = torch.randn(3, *shape, dtype=torch.float64)
    diagonal = torch.rand(shape[-1:], dtype=torch.float64) + 0.1
    flat = factor.flatten(1)
    covariance = flat.T @ flat + torch.diag(diagonal.expand(shape).flatten())
    return noise.LowRankGaussian(mean, factor, diagonal), covariance


LAWS = {"stationary": stationary, "low-rank": low_rank}


@pytest.fixture(params=LAWS)
def make(request):
    return LAWS[request.param]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_density_is_that_of_the_dense_covariance(make, shape):
    mean = torch.randn(shape, dtype=torch.float64)
    law, covariance = make(shape, mean)
    x = torch.randn(4, *shape, dtype=torch.float64, requires_grad=True)
    want = MultivariateNormal(mean.flatten(), covariance).log_prob(x.flatten(1))
    torch.testing.assert_close(law.log_prob(x), want)
    single = law.log_prob(x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, want.float(), rtol=1e-4, atol=1e-3)
    half = x.detach().bfloat16()
    torch.testing.assert_close(law.log_prob(half), law.log_prob(half.float()))
    torch.autograd.gradcheck(law.log_prob, x)
    torch.autograd.gradgradcheck(law.log_prob, x)


@pytest.mark.parametrize("shape", [(2, 3, 4), (5,)], ids=str)
def test_draws_have_the_covariance(make, shape):
    law, covariance = make(shape, 0.5)
    count = 20_000
    draws = law.sample((count, *shape), torch.Generator().manual_seed(1), dtype=torch.float64)
    flat = draws.flatten(1) - 0.5
    variances = covariance.diagonal()
    assert (flat.mean(0) / (variances / count).sqrt()).abs().max() < 6
    error = ((variances[:, None] * variances + covariance.square()) / count).sqrt()
    assert ((flat.T @ flat / count - covariance) / error).abs().max() < 6
    same = law.sample((count, *shape), torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(same, draws)


@pytest.mark.parametrize("shape", [(2, 3, 4), (5,)], ids=str)
def test_an_empty_batch(make, shape):
    law, _ = make(shape, 0.0)
    assert law.sample((0, *shape)).shape == (0, *shape)
    x = torch.zeros(0, *shape, requires_grad=True)
    value = law.log_prob(x)
    value.sum().backward()
    assert value.shape == (0,) and x.grad.shape == x.shape


def test_it_is_a_noise_model_of_the_package(make):
    """Per image, copied, pickled, fixed, and solved with as with any other."""
    shape = (1, 4, 6)
    rows = torch.randn(5, 1, 1, 1)
    law, covariance = make(shape, rows)
    x = torch.randn(5, *shape)
    value = law.log_prob(x)
    assert all(provides(law, ability) for ability in (NoiseModel, PerImage, Sampled))
    torch.testing.assert_close(law.select(slice(2, 4), x.shape).log_prob(x[2:4]), value[2:4])
    for other in (copy.deepcopy(law), pickle.loads(pickle.dumps(law)), law):
        assert torch.equal(other.log_prob(x), value)
    with pytest.raises(AttributeError, match="fixed"):
        law.mean = 0.0
    law.mean.zero_()
    assert torch.equal(law.log_prob(x), value)
    prior = AffineFlow(torch.zeros(shape), torch.ones(shape))
    found = ff.reconstruct(x, operators.Identity(), prior, law, steps=400, progress=False)
    eye = torch.eye(len(covariance), dtype=torch.float64)
    want = torch.linalg.solve(covariance + eye, (x - rows).flatten(1).double().T).T
    torch.testing.assert_close(found.x.flatten(1).double(), want, rtol=0.02, atol=0.02)


def test_large_components_keep_their_digits():
    """Of float32, where the strength of a component is a million times that of the rest."""
    factor = 1e3 * torch.randn(2, 1, 16, 16)
    law = noise.LowRankGaussian(0.0, factor, 1.0)
    draws = law.sample((8, 1, 16, 16), dtype=torch.float64)
    exact = law.log_prob(draws)
    bound = tolerance(torch.float32, 256)["rtol"] * (draws.abs().amax() + 256)
    torch.testing.assert_close(law.log_prob(draws.float()).double(), exact, rtol=0, atol=bound)


ODD = torch.tensor([1.0, 2.0, 3.0, 4.0])
FACTOR = torch.ones(2, 3, 4, 5)
BAD = {
    "power": ("power", lambda: noise.StationaryGaussian(0.1)),
    "power-zero": ("power", lambda: noise.StationaryGaussian(torch.zeros(4))),
    "power-nan": ("power", lambda: noise.StationaryGaussian(torch.full((4,), math.nan))),
    "power-odd": ("power", lambda: noise.StationaryGaussian(ODD)),
    "power-complex": ("power", lambda: noise.StationaryGaussian(torch.ones(4) + 0j)),
    "power-small": (
        "power",
        lambda: noise.StationaryGaussian(torch.full((4,), 1e-60).double()).sample((1, 4)),
    ),
    "mean": ("mean", lambda: noise.StationaryGaussian(torch.ones(4), math.inf)),
    "mean-shape": (
        "mean",
        lambda: noise.StationaryGaussian(torch.ones(4), torch.ones(3)).sample((1, 4)),
    ),
    "residual": (
        "residual",
        lambda: noise.StationaryGaussian(torch.ones(1, 4, 4)).log_prob(torch.zeros(2, 1, 4, 5)),
    ),
    "no-batch": (
        "residual",
        lambda: noise.StationaryGaussian(torch.ones(1, 4, 4)).log_prob(torch.zeros(1, 4, 4)),
    ),
    "integers": (
        "residual",
        lambda: noise.StationaryGaussian(torch.ones(4)).log_prob(torch.zeros(1, 4).long()),
    ),
    "shape": ("shape", lambda: noise.LowRankGaussian(0.0, FACTOR, 1.0).sample((2, 4, 5))),
    "factor": ("factor", lambda: noise.LowRankGaussian(0.0, torch.ones(3), 1.0)),
    "factor-number": ("factor", lambda: noise.LowRankGaussian(0.0, 2.0, 1.0)),
    "diagonal": ("diagonal", lambda: noise.LowRankGaussian(0.0, FACTOR, 0.0)),
    "diagonal-shape": ("diagonal", lambda: noise.LowRankGaussian(0.0, FACTOR, torch.ones(4))),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_argument_is_named(case):
    assert_names(*BAD[case])


# --- whitening ------------------------------------------------------------------------------------


def gaussian(shape, mean):
    std = torch.rand(shape, dtype=torch.float64) + 0.1
    return noise.Gaussian(std, mean), torch.diag(std.flatten().square())


WHITENING = {**LAWS, "gaussian": gaussian}


@pytest.mark.parametrize("shape", [(2, 5, 3), (8,), (1,)], ids=str)
@pytest.mark.parametrize("kind", WHITENING)
def test_whitening_is_a_root_of_the_covariance(kind, shape):
    """Its Jacobian W has W C W^T = 1 and the log-determinant that it says; colour undoes it."""
    mean = torch.randn(shape, dtype=torch.float64)
    law, covariance = WHITENING[kind](shape, mean)
    x = torch.randn(3, *shape, dtype=torch.float64)
    white, logdet = law.whiten(x)
    assert white.shape == x.shape and logdet.shape == (3,)
    flat = lambda v: law.whiten(v.view(1, *shape))[0].flatten()
    jacobian = torch.autograd.functional.jacobian(flat, x[0].flatten())
    one = torch.eye(len(covariance), dtype=torch.float64)
    torch.testing.assert_close(jacobian @ covariance @ jacobian.T, one, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(logdet[0], torch.linalg.slogdet(jacobian)[1])
    torch.testing.assert_close(law.colour(white), x)
    standard = -0.5 * (white.flatten(1).square() + math.log(2 * math.pi)).sum(1)
    torch.testing.assert_close(standard + logdet, law.log_prob(x))
    assert law.whiten(x[:0])[0].shape == (0, *shape)


@pytest.mark.parametrize("shape", [(1, 4, 4), (16,)], ids=str)
def test_a_flow_of_what_is_whitened(make, shape):
    """log p is the flow's of the whitened residual, and the map's log-determinant."""
    law, covariance = make(shape, torch.randn(shape, dtype=torch.float64))
    flow = AffineFlow(torch.randn(1, 4, 4).double(), torch.rand(1, 4, 4).double() + 0.5)
    model = noise.FlowNoise(flow, whitening=law)
    x = torch.randn(5, *shape, dtype=torch.float64)
    white = law.whiten(x)[0]
    found = model.log_prob(x)
    assert found.shape == (5,)
    at = white.reshape(5, 1, 4, 4)
    want = flow.log_prob(at) - 0.5 * torch.linalg.slogdet(covariance)[1]
    torch.testing.assert_close(found, want)
    assert torch.equal(copy.copy(model).log_prob(x), found)


def test_a_whitening_that_is_none_is_refused():
    flow = AffineFlow(torch.zeros(1, 4, 4), torch.ones(1, 4, 4))
    law = noise.Gaussian(0.1)
    for wrong in ("gaussian", noise.Gaussian, flow):
        assert_names("whitening", lambda w=wrong: noise.FlowNoise(flow, whitening=w))
    assert_names("whitening", lambda: noise.FlowNoise(flow, 2.0, whitening=law))
    assert_names("whitening", lambda: noise.FlowNoise(flow, shift=2.0, whitening=law))
