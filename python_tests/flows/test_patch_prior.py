"""Patch priors: the sum over patches and its gradient, and solves of images of any size."""

from __future__ import annotations

import copy
import pickle
import random

import pytest
import torch
from flows.test_frozen import random_flow
from helpers import assert_names, strided

import flowinv_fast as ff
from flowinv_fast._base import backend, tiles
from flowinv_fast.protocols import Density, Flow, Freezable, Frozen, provides


def patch_flow(shape=(3, 8, 8)):
    return random_flow(shape, 0.3, hidden=4, scales=2, blocks=1)


def explicit(flow, x, stride):
    """log p by its definition, a patch at a time."""
    (height, width), (_, h, w) = x.shape[2:], flow.shape
    tops = [*range(0, height - h, stride), height - h]
    lefts = [*range(0, width - w, stride), width - w]
    total = sum(flow.log_prob(x[:, :, i : i + h, j : j + w]) for i in tops for j in lefts)
    return total * height * width / (len(tops) * len(lefts) * h * w)


SIZES = {
    "any": lambda: (random.randint(1, 3), random.randint(9, 30), random.randint(9, 30)),
    "odd": lambda: (2, 2 * random.randint(4, 12) + 1, 2 * random.randint(4, 12) + 1),
    "one": lambda: (1, random.randint(9, 30), random.randint(9, 30)),
    "patch": lambda: (2, 8, 8),
    "row": lambda: (1, 8, 41),
    "none": lambda: (0, 13, 10),
}


@pytest.mark.parametrize("chunk", [1, 7, 512])
@pytest.mark.parametrize("case", SIZES)
def test_the_sum_and_its_gradient(case, chunk, monkeypatch):
    monkeypatch.setattr(tiles, "AT_ONCE", chunk)
    flow, stride = patch_flow().double(), random.choice([None, 3, 5, 8])
    prior, (batch, height, width) = ff.PatchPrior(flow, stride), SIZES[case]()
    x = torch.rand(batch, 3, height, width, dtype=torch.float64)
    x = strided(x).requires_grad_()
    weights = torch.randn(batch, dtype=torch.float64)
    found, want = prior.log_prob(x), explicit(flow, x, prior.stride)
    torch.testing.assert_close(found, want)
    with torch.no_grad():
        torch.testing.assert_close(prior.log_prob(x), want)
    grads = [torch.autograd.grad((weights * v).sum(), x)[0] for v in (found, want)]
    torch.testing.assert_close(*grads)


class Flat:
    """Every patch has log p 1."""

    shape = (1, 6, 4)

    def log_prob(self, x):
        return 1 + 0 * x.sum((1, 2, 3))


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_log_p_grows_with_the_pixels_whatever_the_stride_is(stride):
    prior = ff.PatchPrior(Flat(), stride)
    for height, width in ((6, 4), (7, 31), (24, 24)):
        found = prior.log_prob(torch.zeros(2, 1, height, width))
        torch.testing.assert_close(found, torch.full((2,), height * width / 24))


def test_one_patch_and_patches_beside_one_another():
    flow = patch_flow().double()
    x = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    corner = x[:, :, :8, :8]
    torch.testing.assert_close(ff.PatchPrior(flow).log_prob(corner), flow.log_prob(corner))
    tiles = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 8, 8)
    apart = flow.log_prob(tiles).view(2, -1).sum(1)
    torch.testing.assert_close(ff.PatchPrior(flow, 8).log_prob(x), apart)
    noise = ff.noise.FlowNoise(ff.PatchPrior(flow, 8), 0.5)  # of independent tiles
    want = ff.noise.FlowNoise(flow, 0.5).log_prob(tiles).view(2, -1).sum(1)
    torch.testing.assert_close(noise.log_prob(x), want)


def test_frozen_pickled_copied():
    prior = ff.PatchPrior(patch_flow(), 5)
    frozen, x = prior.freeze(), torch.rand(2, 3, 19, 23).requires_grad_()
    assert provides(prior, Density) and provides(prior, Freezable) and not provides(prior, Flow)
    assert provides(frozen, Frozen) and not provides(prior, Frozen)
    assert frozen.freeze() is frozen and frozen.stride == 5 and frozen.work_bytes > 0
    want = prior.log_prob(x)
    (want_grad,) = torch.autograd.grad(want.sum(), x)
    for other in (frozen, pickle.loads(pickle.dumps(frozen)), copy.deepcopy(prior)):
        found = other.log_prob(x)
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-2)
        (grad,) = torch.autograd.grad(found.sum(), x)
        torch.testing.assert_close(grad, want_grad, rtol=1e-3, atol=1e-3)
        assert torch.equal(other.log_prob(x), found)  # the same bits twice


def test_derivatives():
    prior = ff.PatchPrior(patch_flow().double())
    x = torch.rand(1, 3, 11, 12, dtype=torch.float64).requires_grad_()
    (grad,) = torch.autograd.grad(prior.log_prob(x).sum(), x, create_graph=True)
    by_transform = torch.func.grad(lambda x: prior.log_prob(x).sum())(x.detach())
    torch.testing.assert_close(by_transform, grad.detach())
    assert "one derivative" in assert_names("x", lambda: torch.autograd.grad(grad.sum(), x))
    assert_names("x", lambda: ff.recovery_bound(prior, x.detach(), 1.0, 0.1))


def test_what_it_refuses():
    flow, bounded = patch_flow(), ff.RealNVPConfig((1, 8, 8), support="bounded")
    for other in (None, 3, "flow", ff.Flow, ff.noise.Gaussian(0.1), ff.realnvp(bounded)):
        assert_names("flow", lambda other=other: ff.PatchPrior(other))
    for stride in (0, 9, 2.5, True, "4"):
        assert_names("stride", lambda stride=stride: ff.PatchPrior(flow, stride))
    prior = ff.PatchPrior(flow)
    for shape in ((1, 3, 7, 20), (1, 3, 20, 7), (1, 1, 20, 20), (3, 20, 20)):
        assert_names("x", lambda shape=shape: prior.log_prob(torch.rand(shape)))
    assert_names("x", lambda: prior.log_prob(torch.rand(1, 3, 20, 20).double()))
    assert_names("x", lambda: prior.log_prob([1.0]))
    assert_names("precision", lambda: prior.freeze("fp8"))
    assert_names("flow", lambda: prior.freeze().freeze("bf16"))


# --- solves ---------------------------------------------------------------------------------------


class Smooth:
    """Patches of correlated Gaussian pixels, what is smooth being likely: no training needed."""

    shape = (1, 8, 8)

    def log_prob(self, x):
        down, across = x.diff(dim=2), x.diff(dim=3)
        rough = sum(200 * d.square().flatten(1).sum(1) for d in (down, across))
        return -rough - 0.5 * (x - 0.5).square().flatten(1).sum(1)


def picture(height=40, width=52):
    rows, columns = torch.linspace(0, 3, height)[:, None], torch.linspace(0, 4, width)
    return (0.5 + 0.3 * torch.sin(rows + columns))[None, None]


MASK = (torch.rand(40, 52, generator=torch.Generator().manual_seed(0)) < 0.5).float()
PROBLEMS = {
    "mask": (ff.operators.Inpaint(MASK), ff.noise.Gaussian(0.05)),
    "stripes": (ff.operators.Identity(), ff.noise.Sinusoidal(0.2)),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_default_call_beats_its_input(problem):
    (operator, noise), x = PROBLEMS[problem], torch.cat([picture(), picture().flip(3)])
    y = ff.measure(x, operator, noise, torch.Generator().manual_seed(1))
    found = ff.reconstruct(y, operator, ff.PatchPrior(Smooth()), noise)
    assert (ff.metrics.psnr(found.x, x) > ff.metrics.psnr(operator.guess(y), x) + 4).all()
    assert found.x.shape == x.shape and found.z is None
    assert found.config["objective"]["name"] == "map-image" and found.config["start"]
    assert found.misfit is not None and not found.outside.any()
    assert found.prior_overshoot is None and found.prior_undershoot is None
    alone = ff.reconstruct(y[1:], operator, ff.PatchPrior(Smooth()), noise)
    torch.testing.assert_close(alone.x, found.x[1:], rtol=1e-3, atol=1e-3)
    none = ff.reconstruct(y[:0], operator, ff.PatchPrior(Smooth()), noise)
    assert none.x.shape == (0, 1, 40, 52)


def test_grey_levels_are_told():
    y = 255 * picture()
    noise, identity = ff.noise.Gaussian(0.05), ff.operators.Identity()
    assert ff.reconstruct(y, identity, ff.PatchPrior(Smooth()), noise, steps=2).outside.all()


def solve(operator=lambda x: x, prior=None, **options):
    y, prior = options.pop("y", picture()), prior or ff.PatchPrior(Smooth())
    return ff.reconstruct(y, operator, prior, ff.noise.Gaussian(0.05), steps=2, **options)


def test_the_size_of_the_images_has_to_be_known():
    """By the operator's guess, or by a start."""
    assert "(B, C, H, W)" in assert_names("start", solve)
    assert solve(start=torch.zeros(1, 1, 40, 52)).x.shape == (1, 1, 40, 52)
    halved = solve(lambda x: x[..., ::2, :], start=torch.zeros(1, 1, 80, 52))
    assert halved.x.shape == (1, 1, 80, 52)
    for start in ("zeros", "draw", torch.zeros(1, 2080), torch.zeros(2, 1, 40, 52)):
        assert_names("start", lambda start=start: solve(start=start))
    identity, small = ff.operators.Identity(), picture()[..., :7]
    assert "8 x 8" in assert_names("x", lambda: solve(identity, y=small))
    flat = picture().flatten(1)
    assert "(1, C, H, W)" in assert_names("operator", lambda: solve(identity, y=flat))


def test_what_needs_latents_is_refused():
    identity = ff.operators.Identity()
    for objective in ("map", "mle", "csgm", "asim-likelihood"):
        assert_names("prior", lambda goal=objective: solve(identity, objective=goal))
    assert_names("strategy", lambda: solve(identity, strategy="latent-first"))
    noise, prior = ff.noise.Gaussian(0.05), ff.PatchPrior(Smooth())
    draw = lambda **how: ff.sample_posterior(picture(), identity, prior, noise, **how)
    assert_names("prior", lambda: draw(space="latent"))
    assert draw(samples=4, chains=2, warm_up=2).x.shape == (8, *picture().shape)


@pytest.mark.parametrize("strategy", ["adam", "tempered", "annealed", "lbfgs", "smoothed"])
def test_strategies_precisions_and_restarts(strategy):
    prior = ff.PatchPrior(patch_flow((1, 8, 8)))
    fast = backend._C is not None and backend._C.cpu_bf16()
    options = {"strategy": strategy, "precision": "bf16" if fast else "tf32", "restarts": 2}
    assert solve(ff.operators.Identity(), prior, **options).loss.isfinite().all()
