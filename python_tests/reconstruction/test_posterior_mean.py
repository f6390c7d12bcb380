"""``reconstruct`` with the posterior mean as its objective."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from helpers import assert_names
from toy_flows import SHAPE, AffineFlow

import flowinv_fast as ff
from flowinv_fast import PosteriorMean, Status, noise, operators

SAME = operators.Identity()
FEW = PosteriorMean(samples=8, chains=2, warm_up=20)


def prior() -> AffineFlow:
    return AffineFlow(torch.randn(SHAPE).double(), torch.rand(SHAPE).double() + 0.5)


def solve(*args, **kwargs) -> ff.Reconstruction:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.ResultWarning)
        return ff.reconstruct(*args, progress=False, **kwargs)


def test_it_is_the_estimate_of_the_draws():
    flow, law, y = prior(), noise.Gaussian(0.5), torch.randn(3, *SHAPE).double()
    got = solve(y, SAME, flow, law, objective=FEW, seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.ResultWarning)
        draws = ff.sample_posterior(y, SAME, flow, law, 8, chains=2, warm_up=20, seed=5)
    assert torch.equal(got.x, draws.estimate) and torch.equal(got.std, draws.std)
    ends = [Status.MIXED if good else Status.UNMIXED for good in draws.mixed.tolist()]
    assert got.status == ends and (got.steps == 8 * 28).all()
    torch.testing.assert_close(got.noise, y - got.x)
    torch.testing.assert_close(got.log_prior, flow.log_prob(got.x))
    assert got.misfit.shape == (3,) and got.config["objective"]["name"] == "posterior-mean"


def test_it_is_the_least_squares_estimate():
    """Of a Gaussian prior and Gaussian noise, which is known; each pixel's error beside its std."""
    flow = prior()
    truth = flow.decode(torch.randn(64, math.prod(SHAPE)).double())[0]
    y = ff.measure(truth, SAME, noise.Gaussian(0.5))
    got = solve(y, SAME, flow, noise.Gaussian(0.5), objective="posterior-mean")
    share = flow.std**2 / (flow.std**2 + 0.25)
    best = flow.mean + share * (y - flow.mean)
    off = (got.x - best).square().mean().sqrt() / (0.25 * share).sqrt().mean()
    assert off < 0.25  # of the posterior's deviation, by 160 draws that follow one another
    ratio = (got.x - truth).square().mean().sqrt() / got.std.square().mean().sqrt()
    assert 0.8 < ratio < 1.25


def test_chains_that_disagree_are_told():
    flow = AffineFlow(torch.zeros(SHAPE).double(), torch.ones(SHAPE).double())
    y = torch.ones(4, *SHAPE).double()
    with pytest.warns(ff.ResultWarning, match="the chains disagree"):
        got = ff.reconstruct(y, torch.abs, flow, noise.Gaussian(0.1), objective="posterior-mean")
    assert Status.UNMIXED in got.status


def test_what_cannot_be_read_is_zero_and_the_rest_as_alone():
    flow, law, y = prior(), noise.Gaussian(0.5), torch.randn(2, *SHAPE).double()
    y[1, 0, 0, 0] = math.nan
    start = torch.zeros(2, *SHAPE).double()
    got = solve(y, SAME, flow, law, objective=FEW, start=start, throw=False)
    assert got.status[1] is Status.BAD_MEASUREMENT and not got.x[1].any() and not got.std[1].any()
    close = {"rtol": 1e-6, "atol": 1e-6}
    alone = solve(y[:1], SAME, flow, law, objective=FEW, start=start[:1])
    torch.testing.assert_close(got.x[:1], alone.x, **close)
    assert_names("y", lambda: solve(y, SAME, flow, law, objective=FEW))


def test_it_is_saved_and_loaded(tmp_path):
    got = solve(torch.randn(2, *SHAPE).double(), SAME, prior(), noise.Gaussian(0.5), objective=FEW)
    got.save(tmp_path / "found.safetensors")
    again = ff.Reconstruction.load(tmp_path / "found.safetensors")
    assert torch.equal(again.std, got.std) and again.status == got.status


def test_no_images():
    flow, y = prior(), torch.zeros(0, *SHAPE).double()
    got = solve(y, SAME, flow, noise.Gaussian(0.5), objective=FEW)
    assert got.x.shape == got.std.shape == (0, *SHAPE) and got.status == []


REFUSED = {
    "strategy": "adam",
    "steps": 10,
    "lr": 0.1,
    "precision": "bf16",
    "callback": print,
    "restarts": 2,
    "start": "zeros",
    "seed": -1,
    "prior": torch.nn.Identity(),
}


@pytest.mark.parametrize("argument", REFUSED)
def test_what_it_does_not_take_is_named(argument):
    call = {"y": torch.zeros(1, *SHAPE).double(), "operator": SAME, "prior": prior()}
    call |= {"noise": noise.Gaussian(0.5), "objective": FEW, argument: REFUSED[argument]}
    assert_names(argument, lambda: ff.reconstruct(**call))


@pytest.mark.parametrize(
    "argument, value",
    [("samples", 3), ("chains", 1), ("warm_up", 0), ("tempering", 0.0), ("samples", 4.5)],
)
def test_bad_numbers_are_named(argument, value):
    assert_names(argument, lambda: PosteriorMean(**{argument: value}))
