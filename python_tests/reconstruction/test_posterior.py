"""Draws of the posterior against Gaussian posteriors, quadrature, and the prior's own draws."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import assert_names
from scipy.stats import chi2
from toy_flows import SHAPE, SIZE, AffineFlow, Physics

import flowinv_fast as ff
from flowinv_fast import noise, operators, sample_posterior
from flowinv_fast.generators import GeneratorConfig
from flowinv_fast.generators.nets import make
from flowinv_fast.reconstruction import posterior
from flowinv_fast.reconstruction.chains import split_r_hat

SAME = operators.Identity()


def images(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, *SHAPE, dtype=torch.float64)


def any_seed() -> int:
    return torch.randint(2**31, ()).item()


def quiet(*args, **kwargs) -> ff.PosteriorSamples:
    """Of images so small that the R-hat of their median pixel is a matter of chance."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.ResultWarning)
        return sample_posterior(*args, **kwargs)


def assert_calibrated(x: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Draws (S, B, ...) of one posterior for B equal images: its mean and variance.

    The averages of an image are one sample of B; 6 of their standard errors leave, of 64 pixels,
    one false alarm in ten million.
    """
    for each, want in [(x.mean(0), mean), ((x - mean).square().mean(0), std.square())]:
        error = each.std(0) / math.sqrt(x.shape[1])
        assert ((each.mean(0) - want).abs() < 6 * error).all()
        assert (error < 0.15 * std.clamp_max(1)).all()  # the test can tell


# --- the law of the draws ------------------------------------------------------------------------

OPERATORS = {
    "scale": lambda: operators.Scale(torch.rand(SHAPE).double() + 0.5),
    "mask": lambda: operators.Inpaint((torch.rand(SHAPE) < 0.5).double()),
}


@pytest.mark.parametrize("space", ["image", "latent"])
@pytest.mark.parametrize("name", OPERATORS)
def test_gaussian_posterior(name, space):
    """y = a x + mean + std e with a Gaussian prior: every pixel is Gaussian, independently."""
    operator, batch = OPERATORS[name](), 150
    a = operator(torch.ones(1, *SHAPE).double())[0]
    prior = AffineFlow(torch.randn(SHAPE).double(), torch.rand(SHAPE).double() + 0.5)
    std, offset = torch.rand(SHAPE).double() + 0.3, torch.randn(SHAPE).double()
    y = torch.randn(SHAPE).double()
    precision = (a / std) ** 2 + prior.std**-2
    mean = (a * (y - offset) / std**2 + prior.mean / prior.std**2) / precision
    law, y = noise.Gaussian(std, offset), y.expand(batch, *SHAPE)
    got = quiet(y, operator, prior, law, 12, space=space, thin=2, seed=any_seed())
    assert got.x.shape == (48, batch, *SHAPE)
    assert_calibrated(got.x, mean, precision**-0.5)
    torch.testing.assert_close(got.mean, got.x.mean(0))
    torch.testing.assert_close(got.std, (got.x - got.mean).square().sum(0).div(47).sqrt())
    assert torch.equal(got.estimate, got.mean)  # this prior is not smoothed
    assert got.acceptance.shape == got.effective.shape == got.mixed.shape == (batch,)
    assert 0.6 < got.acceptance.mean() < 0.95
    assert 0.95 < got.r_hat.mean() < 1.2 and "chains" in repr(got)


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


class Squashed:
    """x = sigmoid(z + 1): images in (0, 1), over whose logits a solve goes."""

    shape = (1, 1, 3)
    config = SimpleNamespace(support="bounded")

    def decode(self, z):
        x = (z + 1).sigmoid()
        return x.view(-1, *self.shape), (x * (1 - x)).log().sum(1)

    def encode(self, x):
        x = x.flatten(1)
        return x.logit() - 1, -(x * (1 - x)).log().sum(1)

    log_prob = Sinh.log_prob


@pytest.mark.parametrize("space", ["image", "latent"])
@pytest.mark.parametrize("prior, reach", [(Sinh(), 5.0), (Squashed(), 8.0)])
def test_posterior_of_a_bent_flow_by_quadrature(prior, reach, space):
    """Over images the log-determinant counts, over latents it cancels: the draws are the same."""
    std, batch, y = 0.7, 150, torch.tensor([-0.5, 0.4, 2.0]).double().view(prior.shape)
    z = torch.linspace(-reach, reach, 100_001).double()
    x = prior.decode(z.repeat(3, 1).T.contiguous())[0].flatten(1)  # (n, 3)
    weight = (-0.5 * z[:, None] ** 2 - 0.5 * ((y.flatten() - x) / std) ** 2).softmax(0)
    mean = (weight * x).sum(0)
    deviation = (weight * (x - mean) ** 2).sum(0).sqrt()
    law = noise.Gaussian(std)
    got = quiet(y.expand(batch, *prior.shape), SAME, prior, law, 12, space=space, seed=any_seed())
    assert_calibrated(got.x, mean.view(prior.shape), deviation.view(prior.shape))


def test_simulation_based_calibration():
    """y made of the prior's own draws: the truth's rank among the draws is uniform."""
    prior, chains, batch = Sinh(), 7, 150
    truth = prior.decode(torch.randn(batch, 3).double())[0]
    law = noise.Gaussian(0.5)
    y = ff.measure(truth, SAME, law)
    got = quiet(y, SAME, prior, law, 4, chains=chains, seed=any_seed())
    last = got.x.view(chains, 4, batch, 3)[:, -1]  # one draw of each chain: independent
    ranks = (last < truth.view(batch, 3)).sum(0).flatten()
    counts = torch.bincount(ranks, minlength=chains + 1).double()
    wanted = ranks.numel() / (chains + 1)
    assert chi2.sf(((counts - wanted) ** 2 / wanted).sum().item(), chains) > 1e-6


def test_two_equally_likely_answers_are_both_found():
    """y = |x|, whose sign is not measured: the chains part, say so, and part evenly."""
    prior = AffineFlow(torch.zeros(SHAPE).double(), torch.ones(SHAPE).double())
    y = torch.full((100, *SHAPE), 1.0).double()
    with pytest.warns(ff.ResultWarning, match="the chains disagree"):
        got = sample_posterior(y, torch.abs, prior, noise.Gaussian(0.1), 6, seed=any_seed())
    positive = (got.x > 0).double().mean((0, 1))  # of 400 chains, which do not change sides
    assert ((positive - 0.5).abs() < 6 * 0.5 / math.sqrt(400)).all()
    assert got.mixed.sum() < 50 and got.effective.median() < 12


def test_every_image_has_its_own_posterior_and_step_size():
    """One image measured a hundred times more sharply than the other, in one batch."""
    stds = torch.tensor([0.01, 1.0]).double().repeat(60).view(-1, 1, 1, 1)
    prior = AffineFlow(torch.zeros(SHAPE).double(), torch.ones(SHAPE).double())
    y = images(2).repeat(60, 1, 1, 1)
    got = quiet(y, SAME, prior, noise.Gaussian(stds), 12, seed=any_seed())
    for i in range(2):
        std = (1 + stds[i].item() ** -2) ** -0.5
        mean = y[i] * std**2 / stds[i].item() ** 2
        own = got.x[:, i::2]
        assert abs((own - mean).square().mean().sqrt() / std - 1) < 0.1
        assert 0.6 < got.acceptance[i::2].mean() < 0.95


# --- levels and smoothing ------------------------------------------------------------------------


class Smoothed(AffineFlow):
    """A Gaussian density of images with noise of std 0.3 on them."""

    config = SimpleNamespace(support="unbounded", smoothing=0.3)


@pytest.mark.parametrize("std", [0.15, 0.6])
def test_the_estimate_is_without_the_smoothing(std):
    """u + a s^2 grad log p(u) is linear in u for a Gaussian: so is its mean."""
    prior = Smoothed(torch.randn(SHAPE).double(), torch.rand(SHAPE).double() + 0.5)
    y = images(2).repeat(60, 1, 1, 1)
    got = quiet(y, SAME, prior, noise.Gaussian(std), 12, seed=any_seed())
    share = min(std, 0.3) ** 2
    torch.testing.assert_close(
        got.estimate, got.mean + share * (prior.mean - got.mean) / prior.std**2
    )


def levelled(dtype: torch.dtype = torch.float64) -> ff.Flow:
    """A TarFlow that has learnt nothing: white noise of a std for each pixel, at every level."""
    config = ff.TarFlowConfig(
        SHAPE, patch=2, width=8, blocks=2, layers=1, heads=2, levels=(0.05, 0.6), smoothing=0.2
    )
    flow = ff.tarflow(config)
    flow.layers[0].mean.copy_(torch.rand(SHAPE))
    flow.layers[0].std.copy_(0.3 + torch.rand(SHAPE))
    return flow.to(dtype)


@pytest.mark.parametrize("std, level", [(0.01, 0.05), (0.11, 0.11), (0.5, 0.2)])
def test_a_flow_of_levels_is_taken_at_the_level_of_the_noise(std, level):
    """Free: at t, between the lowest level and the smoothing; the posterior is that of the level,
    and ``reconstruct`` solves with the same."""
    flow, law = levelled(), noise.Gaussian(std)
    y = images(1).expand(40, *SHAPE)
    at = flow.at(level)
    variance = (flow.layers[0].std.square() + level**2 - 0.05**2)[0]
    precision = std**-2 + 1 / variance
    mean = (y[0] / std**2 + flow.layers[0].mean[0] / variance) / precision
    got = quiet(y, SAME, flow, law, 8, seed=any_seed())
    assert_calibrated(got.x, mean, precision**-0.5)
    one = {"steps": 20, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.ResultWarning)
        free, fixed = (ff.reconstruct(y[:2], SAME, f, law, **one) for f in (flow, at))
    torch.testing.assert_close(free.x, fixed.x, rtol=1e-4, atol=1e-4)
    assert flow.config.smoothing == 0.2 and not flow.level_is_given and at.level_is_given


def test_a_level_that_was_given_stays():
    flow, y = levelled(), images(1).expand(40, *SHAPE)
    variance = (flow.layers[0].std.square() + 0.4**2 - 0.05**2)[0]
    precision = 0.1**-2 + 1 / variance
    mean = (y[0] / 0.1**2 + flow.layers[0].mean[0] / variance) / precision
    got = quiet(y, SAME, flow.at(0.4), noise.Gaussian(0.1), 8, warm_up=40, seed=any_seed())
    assert_calibrated(got.x, mean, precision**-0.5)


def test_patches_have_the_levels_of_their_flow():
    flow = levelled(torch.float32)
    prior = ff.PatchPrior(flow)
    assert prior.levels == flow.levels and not prior.level_is_given
    at = prior.at(0.5)
    x = torch.rand(2, 1, 9, 7)
    torch.testing.assert_close(at.log_prob(x), ff.PatchPrior(flow.at(0.5)).log_prob(x))
    assert at.level_is_given and at.config.smoothing == 0.5 and at.stride == prior.stride
    y = torch.rand(1, 1, 9, 7)
    got = quiet(y, SAME, prior, noise.Gaussian(0.1), 4, chains=2, warm_up=10)
    assert got.x.shape == (8, 1, 1, 9, 7) and got.x.isfinite().all()
    assert ff.PatchPrior(flow.freeze()).levels is None


class Foreign(AffineFlow):
    """Of another library, with names of ours that mean something else."""

    levels, at = (3, 4), "home"


def test_levels_of_another_library_are_not_ours():
    prior = Foreign(torch.zeros(SHAPE).double(), torch.ones(SHAPE).double())
    own = AffineFlow(prior.mean, prior.std)
    few, y = {"samples": 4, "warm_up": 5, "chains": 2}, images(2)
    draws = [quiet(y, SAME, p, noise.Gaussian(0.5), **few) for p in (prior, own)]
    assert torch.equal(draws[0].x, draws[1].x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.ResultWarning)
        assert ff.reconstruct(y, SAME, prior, noise.Gaussian(0.5), steps=3).x.isfinite().all()


# --- R-hat ---------------------------------------------------------------------------------------


def test_split_r_hat_by_its_formula():
    draws = torch.randn(3, 11, 2, 5, dtype=torch.float64)
    draws[1] += 0.7
    r_hat, effective = split_r_hat(draws)
    halves = np.concatenate([draws[:, :5].numpy(), draws[:, 5:10].numpy()])  # (6, 5, 2, 5)
    within = halves.var(1, ddof=1).mean(0)
    between = 5 * halves.mean(1).var(0, ddof=1)
    var = 0.8 * within + between / 5
    torch.testing.assert_close(r_hat, torch.from_numpy(np.sqrt(var / within)))
    worth = np.minimum(30, 30 * var / between)
    torch.testing.assert_close(effective, torch.from_numpy(worth))


def test_split_r_hat_of_chains_that_agree_part_or_stand_still():
    draws = torch.randn(4, 400, 50)
    r_hat, effective = split_r_hat(draws)
    assert (r_hat < 1.05).all() and effective.median() > 400
    r_hat, effective = split_r_hat(draws + torch.arange(4.0).view(4, 1, 1) * 10)
    assert (r_hat > 3).all() and (effective < 20).all()
    r_hat, effective = split_r_hat(torch.ones(4, 10, 3))
    assert (r_hat == 1).all() and effective.isfinite().all()


# --- how it is called ----------------------------------------------------------------------------


def test_a_start_is_where_the_first_draw_is_near():
    """So sharp a likelihood that a few paths stay within its reach of the start."""
    prior = AffineFlow(torch.zeros(SHAPE).double(), torch.ones(SHAPE).double())
    x = images(3)
    few = {"samples": 4, "warm_up": 1, "chains": 2}
    before = x.clone()
    for space, start in (("image", x), ("latent", x.flatten(1)), ("image", x.flatten(1))):
        got = quiet(x, SAME, prior, noise.Gaussian(0.1), space=space, start=start, **few)
        assert (got.x[0] - x).abs().max() < 0.6
    assert torch.equal(x, before)


def test_same_seed_same_draws_and_torch_generators_untouched(flow):
    y, before = images(2).float(), torch.get_rng_state()
    few = {"samples": 4, "warm_up": 10, "chains": 2}
    draw = lambda seed: quiet(y, SAME, flow, noise.Gaussian(0.5), seed=seed, **few)
    first, again, other = draw(7), draw(7), draw(8)
    assert torch.equal(first.x, again.x) and torch.equal(first.acceptance, again.acceptance)
    assert not torch.equal(first.x, other.x)
    assert torch.equal(before, torch.get_rng_state())


def test_images_do_not_influence_one_another(monkeypatch):
    """All at once, one at a time, and alone: the same draws to rounding."""
    stds = torch.rand(3, *SHAPE).double() + 0.3
    prior, y = AffineFlow(torch.zeros(SHAPE).double(), torch.ones(SHAPE).double()), images(3)
    few = {"samples": 4, "warm_up": 20, "chains": 2}
    run = lambda y, std: quiet(y, SAME, prior, noise.Gaussian(std), start=y, **few)
    whole = run(y, stds)
    close = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(whole.x[:, :1], run(y[:1], stds[:1]).x, **close)
    monkeypatch.setattr(posterior, "_AT_ONCE", 2 * SIZE)
    parts = run(y, stds)
    for name in ("x", "mean", "std", "r_hat", "effective", "acceptance"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), **close)


def test_frozen_and_trained_flows_draw_the_same(flow):
    """A RealNVP is frozen for the walk, and comes back as it was."""
    y, few = images(2).float(), {"samples": 4, "warm_up": 10, "chains": 2}
    draw = lambda prior: quiet(y, SAME, prior, noise.Gaussian(0.5), **few)
    got = draw(flow.eval())
    assert torch.equal(got.x, draw(flow.freeze()).x) and torch.isfinite(got.x).all()
    assert all(p.requires_grad and p.grad is None for p in flow.parameters())


def test_generators_physics_and_users_laws():
    """A generator without a density; a deepinv-like physics; a torch.distributions law."""
    generator = make(GeneratorConfig((1, 8, 8), "vae", latent_dim=3, width=2)).eval()
    physics = Physics(lambda x: x.flatten(1)[:, :5])
    law = torch.distributions.Normal(torch.tensor(0.0), torch.tensor(0.3))
    got = quiet(torch.rand(2, 5), physics, generator, law, 4, warm_up=20)
    assert got.x.shape == (16, 2, 1, 8, 8) and (got.x > 0).all() and (got.x < 1).all()
    assert got.x.std(0).max() > 0


def test_a_sign_with_a_straight_through_gradient_is_sampled_by_its_density():
    """y = sign(x) + noise: the gradient is no gradient, the draws are right all the same."""
    prior = AffineFlow(torch.zeros(SHAPE).double(), torch.ones(SHAPE).double())
    operator = operators.straight_through(torch.sign, lambda x: x)
    y = torch.full((150, *SHAPE), 0.4).double()
    got = quiet(y, operator, prior, noise.Gaussian(1.0), 12, seed=any_seed())
    share = 1 / (1 + math.exp(-2 * 0.4))  # of positive signs: odds exp(2 y / std^2)
    mean, each = got.x.sign().mean(0), got.x.mean(0)
    error = mean.std(0) / math.sqrt(150)
    assert ((mean.mean(0) - (2 * share - 1)).abs() < 6 * error).all()
    half = math.sqrt(2 / math.pi)  # E|x|
    error = each.std(0) / math.sqrt(150)
    assert ((each.mean(0) - half * (2 * share - 1)).abs() < 6 * error).all()


def test_empty_batch_of_measurements(flow):
    got = sample_posterior(images(0).float(), SAME, flow, noise.Gaussian(0.5), 4, warm_up=1)
    assert got.x.shape == (16, 0, *SHAPE) and got.acceptance.shape == (0,)
    assert got.mixed.shape == (0,)


def test_a_density_that_is_not_finite_is_an_error():
    class Nowhere(AffineFlow):
        def log_prob(self, x):
            return super().log_prob(x) - torch.where(x.flatten(1)[:, 0] > -50, math.inf, 0.0)

    prior = Nowhere(torch.zeros(SHAPE).double(), torch.ones(SHAPE).double())
    with pytest.raises(ff.SolverError, match="not finite"):
        sample_posterior(images(2), SAME, prior, noise.Gaussian(0.5), 4)


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
    "samples": ("samples", {"samples": 3}),
    "samples-type": ("samples", {"samples": 4.5}),
    "chains": ("chains", {"chains": 1}),
    "space": ("space", {"space": "pixels"}),
    "warm_up": ("warm_up", {"warm_up": 0}),
    "thin": ("thin", {"thin": 0}),
    "tempering": ("tempering", {"tempering": 0.0}),
    "tempering-above": ("tempering", {"tempering": 1.5}),
    "tempering-type": ("tempering", {"tempering": "cold"}),
    "seed": ("seed", {"seed": -1}),
    "seed-type": ("seed", {"seed": 0.5}),
    "start-type": ("start", {"start": 3.0}),
    "start-shape": ("start", {"start": torch.zeros(3, 5)}),
    "start-dtype": ("start", {"start": torch.zeros(3, SIZE).double()}),
    "start-nan": ("start", {"start": torch.full((3, SIZE), math.nan)}),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_bad_argument_of_sampling_is_named(case, flow):
    argument, change = BAD_SAMPLES[case]
    call = {
        "y": Y,
        "operator": SAME,
        "prior": flow,
        "noise": noise.Gaussian(0.5),
        "samples": 4,
        "warm_up": 1,
        **change,
    }
    assert_names(argument, lambda: sample_posterior(**call))
