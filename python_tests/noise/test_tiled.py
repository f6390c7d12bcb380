"""Noise of tiles: the sum and its gradient, draws, what is refused, and solves."""

from __future__ import annotations

import copy
import pickle
import random

import pytest
import torch
from flows.test_frozen import random_flow
from flows.test_patch_prior import SIZES, Smooth, picture
from helpers import assert_names, strided
from toy_flows import AffineFlow

import flowinv_fast as ff
from flowinv_fast import noise
from flowinv_fast._base import tiles
from flowinv_fast.protocols import Freezable, NoiseModel, PerImage, Sampled, Sized, provides

SHAPE = (3, 8, 8)


def generator():
    return torch.Generator().manual_seed(int(torch.randint(2**31, ())))


def stationary(shape=SHAPE, std=0.3):
    power = torch.randn(shape, dtype=torch.float64).exp()
    power = power + power.flip((-2, -1)).roll((1, 1), (-2, -1))
    return noise.StationaryGaussian(std**2 * power / power.mean(), 0.1)


def flow_noise(dtype=torch.float64):
    flow = random_flow(SHAPE, 0.3, hidden=4, scales=2, blocks=1).to(dtype)
    return noise.FlowNoise(flow, whitening=stationary())


LAWS = {
    "stationary": stationary,
    "flow": flow_noise,
    "student": lambda: torch.distributions.StudentT(3.0, 0.1, torch.tensor(0.2).double()),
    "channels": lambda: noise.Gaussian(0.1 + torch.rand(3, 1, 1), torch.randn(3, 1, 1)),
}


def explicit(law, residual, stride, shape=SHAPE):
    """log p by its definition, a tile at a time."""
    (height, width), (_, h, w) = residual.shape[2:], shape
    tops = [*range(0, height - h, stride), height - h]
    lefts = [*range(0, width - w, stride), width - w]
    total = sum(law.log_prob(residual[:, :, i : i + h, j : j + w]) for i in tops for j in lefts)
    return total * height * width / (len(tops) * len(lefts) * h * w)


def apart(x, shape=SHAPE):
    """Tiles beside one another, (B K, C, h, w)."""
    _, h, w = shape
    return x.unfold(2, h, h).unfold(3, w, w).permute(0, 2, 3, 1, 4, 5).reshape(-1, *shape)


def normal(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


# --- the density ----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 512])
@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("name", LAWS)
def test_the_sum_and_its_gradient(name, case, chunk, monkeypatch):
    monkeypatch.setattr(tiles, "AT_ONCE", chunk)
    law, (batch, height, width) = LAWS[name](), SIZES[case]()
    model = noise.Tiled(law, SHAPE, random.choice([None, 3, 5, 8]))
    residual = strided(0.3 * normal(batch, 3, height, width)).requires_grad_()
    weights = normal(batch)
    found, want = model.log_prob(residual), explicit(model.law, residual, model.stride)
    torch.testing.assert_close(found, want)
    with torch.no_grad():
        torch.testing.assert_close(model.log_prob(residual), want)
    grads = [torch.autograd.grad((weights * v).sum(), residual)[0] for v in (found, want)]
    torch.testing.assert_close(*grads)


def test_of_one_tile_it_is_the_law_and_of_tiles_apart_their_sum():
    law = flow_noise()
    model, residual = noise.Tiled(law, SHAPE), normal(2, 3, 24, 16)
    assert model.stride == 8
    corner = residual[:, :, :8, :8]
    torch.testing.assert_close(model.log_prob(corner), law.log_prob(corner))
    want = law.log_prob(apart(residual)).view(2, -1).sum(1)
    torch.testing.assert_close(model.log_prob(residual), want)


@pytest.mark.parametrize("stride", [2, 5, 8])
def test_of_white_noise_a_pixel_counts_by_the_tiles_over_it(stride):
    """It is the law of the whole where they are as many everywhere; the constant always is."""
    law = noise.Gaussian(random.uniform(0.1, 0.5), random.uniform(-1, 1))
    model = noise.Tiled(law, (1, 8, 8), stride)
    for height, width in ((8, 8), (24, 40), (random.randint(9, 30), random.randint(9, 30))):
        counts = torch.zeros(height, width, dtype=torch.float64)
        for top in [*range(0, height - 8, stride), height - 8]:
            for left in [*range(0, width - 8, stride), width - 8]:
                counts[top : top + 8, left : left + 8] += 1
        residual = normal(2, 1, height, width)
        mean, std = residual.new_tensor((law.mean, law.std))
        score = torch.distributions.Normal(mean, std).log_prob(residual)
        found = model.log_prob(residual)
        torch.testing.assert_close(found, (score * counts / counts.mean()).sum((1, 2, 3)))
        even = bool((counts == counts[0, 0]).all())
        assert even == (stride == 8 and height % 8 == width % 8 == 0 or (height, width) == (8, 8))
        if even:
            torch.testing.assert_close(found, law.log_prob(residual))
        flat = torch.full_like(residual, law.mean)
        torch.testing.assert_close(model.log_prob(flat), law.log_prob(flat))


class Watched:
    """White noise that tells how many tiles it scores at once, their pixels in rows (n, h)."""

    def __init__(self):
        self.most = 0

    def log_prob(self, residual):
        self.most = max(self.most, len(residual))
        return -residual.square().sum((1, 3))


def test_tiles_that_are_scored_together_do_not_grow_with_the_image():
    law = Watched()
    residual = torch.randn(1, 1, 250, 130, requires_grad=True)
    found = noise.Tiled(law, (1, 4, 4), 2).log_prob(residual)
    assert found.shape == (1,) and tiles.AT_ONCE - 64 <= law.most <= tiles.AT_ONCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types(dtype):
    residual = (0.3 * torch.randn(2, 3, 19, 26)).to(dtype).requires_grad_()
    model = noise.Tiled(stationary(), SHAPE, 5)
    found, want = model.log_prob(residual), model.log_prob(residual.double())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), want, rtol=1e-4, atol=1e-2)
    grads = [torch.autograd.grad(v.sum(), residual)[0] for v in (found, want)]
    assert grads[0].dtype == dtype
    bound = 16 * torch.finfo(dtype).eps * float(grads[1].abs().max())
    torch.testing.assert_close(*grads, rtol=0, atol=bound)


def test_derivatives():
    model = noise.Tiled(stationary(), SHAPE)
    residual = normal(1, 3, 11, 12).requires_grad_()
    (grad,) = torch.autograd.grad(model.log_prob(residual).sum(), residual, create_graph=True)
    by_transform = torch.func.grad(lambda r: model.log_prob(r).sum())(residual.detach())
    torch.testing.assert_close(by_transform, grad.detach())
    again = lambda: torch.autograd.grad(grad.sum(), residual)
    message = assert_names("residual", again)
    assert "one derivative" in message and "noise.Tiled" in message


# --- draws, and all else that a noise model has ---------------------------------------------------


class Numbered:
    """Tile k is k everywhere, but for its first row, which is -1."""

    def __init__(self):
        self.drawn = 0

    def log_prob(self, residual):
        return residual.sum((1, 2, 3))

    def sample(self, shape, generator=None):
        first, self.drawn = self.drawn, self.drawn + shape[0]
        values = torch.arange(first, self.drawn).float()[:, None, None, None].repeat(1, *shape[1:])
        values[:, :, 0] = -1
        return values


@pytest.mark.parametrize("chunk", [1, 5, 512])
def test_draws_are_tiles_side_by_side(chunk, monkeypatch):
    monkeypatch.setattr(noise.tiled, "AT_ONCE", chunk)
    draw = noise.Tiled(Numbered(), (2, 4, 6), 3).sample((2, 2, 10, 13))
    want = torch.arange(18).view(2, 1, 3, 1, 3, 1).repeat(1, 2, 1, 4, 1, 6)
    want[:, :, :, 0] = -1
    assert torch.equal(draw, want.reshape(2, 2, 12, 18)[:, :, :10, :13].float())
    assert draw.is_contiguous()


def test_draws_have_the_law():
    law, seed = stationary(), int(torch.randint(2**31, ()))
    model = noise.Tiled(law, SHAPE, 4)
    draws = [model.sample((4, 3, 64, 40), torch.Generator().manual_seed(seed)) for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], model.sample((4, 3, 64, 40), generator()))
    white, _ = law.whiten(apart(draws[0]))
    assert abs(white.square().mean() - 1) < 6 * (2 / white.numel()) ** 0.5
    assert abs(white.mean()) < 6 / white.numel() ** 0.5
    assert model.sample((0, 3, 9, 9)).shape == (0, 3, 9, 9)
    for name in LAWS:
        shape = (1, 3, 11, 30)
        assert noise.Tiled(LAWS[name](), SHAPE).sample(shape, generator()).shape == shape


def test_frozen_pickled_copied():
    model = noise.Tiled(flow_noise(torch.float32), SHAPE, 5)
    assert all(provides(model, able) for able in (NoiseModel, Freezable, Sampled, Sized))
    assert not provides(model, PerImage)
    frozen, residual = model.freeze(), (0.3 * torch.randn(2, 3, 19, 23)).requires_grad_()
    assert type(frozen) is noise.Tiled and frozen is not model and frozen.stride == 5
    assert frozen.law.flow.compiled == (ff._base.backend._C is not None)
    assert model.saved_bytes == frozen.saved_bytes == 0
    assert frozen.work_bytes >= model.work_bytes == 512 * 16 * 192
    want = model.log_prob(residual)
    (want_grad,) = torch.autograd.grad(want.sum(), residual)
    for other in (frozen, pickle.loads(pickle.dumps(frozen)), copy.deepcopy(model)):
        found = other.log_prob(residual)
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-2)
        (grad,) = torch.autograd.grad(found.sum(), residual)
        torch.testing.assert_close(grad, want_grad, rtol=1e-3, atol=1e-2)
        assert torch.equal(other.log_prob(residual), found)  # the same bits twice
        assert other.log_prob(residual[:0]).shape == (0,)
    plain = noise.Tiled(stationary(), SHAPE)
    assert plain.freeze() is plain


def test_what_it_says():
    model = noise.Tiled(noise.Gaussian(0.1), (1, 8, 6))
    assert repr(model) == "Tiled(Gaussian(std=0.1, mean=0) of 1 x 8 x 6, stride 6)"
    for name in ("law", "shape", "stride"):
        with pytest.raises(AttributeError, match="fixed"):
            setattr(model, name, getattr(model, name))
    assert noise.Tiled(flow_noise(), SHAPE).multimodal
    assert not noise.Tiled(stationary(), SHAPE).multimodal
    assert not hasattr(noise.Tiled(Numbered(), SHAPE), "multimodal")


def test_noise_that_follows_the_signal_has_the_tiles_inside():
    law = noise.SignalDependent(stationary(), [0.0, 1.0], [0.1, 0.5])
    assert "SignalDependent(Tiled(" in assert_names("law", lambda: noise.Tiled(law, SHAPE))
    model = noise.SignalDependent(noise.Tiled(law.law, SHAPE), law.signal, law.std)
    fx = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    y = fx + model.draw(fx)
    want = law.log_likelihood(apart(y), apart(fx)).view(2, -1).sum(1)
    torch.testing.assert_close(model.log_likelihood(y, fx), want)


# --- what it refuses ------------------------------------------------------------------------------


class WithRows:
    """A law of a user's with a level per image."""

    def __init__(self, std):
        self.std = std

    def log_prob(self, residual):
        return -(residual / self.std).square().sum((1, 2, 3))

    def select(self, part, shape):
        return WithRows(self.std[part])


def uneven(mean, std=0.3):
    law = stationary(std=std)
    return noise.StationaryGaussian(law.power, mean)


STEP = torch.cat([torch.zeros(8, 4), torch.ones(8, 4)], 1)
UNEVEN = {
    "std by place": lambda: noise.Gaussian(1 + 0.1 * STEP),
    "mean by column": lambda: noise.Gaussian(1.0, STEP[0]),
    "by rows": lambda: noise.Sinusoidal(0.2),
    "radial": noise.Radial,
    "pattern": lambda: uneven(0.4 * STEP),
    "patterned whitening": lambda: noise.FlowNoise(flow_noise().flow, whitening=uneven(STEP)),
    "low rank": lambda: noise.LowRankGaussian(0.0, STEP.expand(1, *SHAPE), 0.1),
    "distribution": lambda: torch.distributions.Laplace(STEP, 1.0),
    "distribution of images": lambda: torch.distributions.Laplace(torch.zeros(2, 1, 1, 1), 1.0),
    "rows of its own": lambda: WithRows(torch.ones(2, 1, 1, 1)),
}


@pytest.mark.parametrize("name", UNEVEN)
def test_laws_of_places_or_of_images_are_refused(name):
    law = UNEVEN[name]()
    assert "at all places" in assert_names("law", lambda: noise.Tiled(law, SHAPE))


def test_levels_and_means_of_images_are_refused():
    """By the laws themselves, which are asked for one image."""
    rows = torch.tensor([0.1, 0.2])
    assert_names("std", lambda: noise.Tiled(noise.Gaussian(rows.view(2, 1, 1, 1)), SHAPE))
    assert_names("level", lambda: noise.Tiled(noise.Sinusoidal(rows), SHAPE))
    assert_names("mean", lambda: noise.Tiled(uneven(rows.view(2, 1, 1, 1)), SHAPE))


def test_what_it_refuses():
    law, bounded = stationary(), ff.RealNVPConfig((3, 8, 8), support="bounded")
    flow = random_flow((1, 8, 8), 0.3, hidden=4, scales=2, blocks=1)
    placed = noise.PlacedFlowNoise(flow, torch.zeros(1, 3, dtype=torch.int64), 0.1)
    others = (None, 3, "law", noise.Gaussian, noise.Digits(torch.ones(1, 4, 4)), placed)
    for other in (*others, ff.realnvp(bounded)):
        assert_names("law", lambda other=other: noise.Tiled(other, SHAPE))
    for shape in (8, (8, 8), (3, 8, 0), (3, 8.0, 8), "388", None, (1, 8, 8), (3, 8, 9)):
        assert_names("shape", lambda shape=shape: noise.Tiled(law, shape))
    assert_names("shape", lambda: noise.Tiled(flow_noise(), (3, 16, 16)))
    for stride in (0, 9, 2.5, True, "4"):
        assert_names("stride", lambda stride=stride: noise.Tiled(law, SHAPE, stride))
    model = noise.Tiled(law, SHAPE)
    for shape in ((1, 3, 7, 20), (1, 3, 20, 7), (1, 1, 20, 20), (3, 20, 20), (1, 1200)):
        assert_names("residual", lambda shape=shape: model.log_prob(torch.rand(shape)))
        assert_names("shape", lambda shape=shape: model.sample(shape))
    assert_names("residual", lambda: model.log_prob([1.0]))
    assert_names("law", lambda: noise.Tiled(Watched(), SHAPE).sample((1, *SHAPE)))


class Cut(Watched):
    """A law that loses the gradient."""

    def log_prob(self, residual):
        return super().log_prob(residual.detach())


def test_a_lost_gradient_is_told():
    model, residual = noise.Tiled(Cut(), SHAPE), torch.randn(1, 3, 16, 16)
    assert model.log_prob(residual).isfinite().all()
    assert "gradient" in assert_names("law", lambda: model.log_prob(residual.requires_grad_()))


# --- solves ---------------------------------------------------------------------------------------


def gaussian(power, std, mean=0.0):
    return noise.StationaryGaussian(std**2 * power[None] / power.mean(), mean)


def waves(size):
    """Squared frequencies of rows and columns."""
    waves = torch.fft.fftfreq(size, dtype=torch.float64).square()
    return waves[:, None], waves


def ripples(size):
    """Noise of columns that repeat after five pixels, for a few of them."""
    down, across = waves(size)
    return gaussian(0.03 + torch.exp(-300 * down - 200 * (across.sqrt() - 0.2).square()), 0.2)


def clouds(size):
    down, across = waves(size)
    return gaussian((down + across + 0.001) ** -1.25, 0.2, 0.5)


def test_a_law_of_pieces_serves_a_larger_measurement():
    """Of pieces of recorded noise: the law of the whole knows a little more, white noise less."""
    recorded = ripples(64).sample((20, 1, 64, 64), generator())
    pieces = torch.cat([recorded[:, :, i : i + 8, j : j + 8] for i in (0, 20, 41) for j in (3, 30)])
    fitted = noise.fit(pieces, families=["stationary-gaussian"]).best
    x = clouds(48).sample((4, 1, 48, 48), generator())
    y = x + ripples(64).sample((4, 1, 64, 64), generator())[:, :, :48, :48]

    def psnr(law):
        found = ff.reconstruct(y, ff.operators.Identity(), clouds(48), law, steps=100)
        return ff.metrics.psnr(found.x, x).mean()

    white, tiled, whole = map(
        psnr, (noise.Gaussian(0.2), noise.Tiled(fitted, (1, 8, 8)), ripples(48))
    )
    assert white + 0.3 < tiled < whole


def test_with_a_prior_of_patches():
    law, x = noise.Tiled(ripples(8), (1, 8, 8)), torch.cat([picture(), picture().flip(3)])
    y = ff.measure(x, ff.operators.Identity(), law, generator())
    solve = lambda y: ff.reconstruct(
        y, ff.operators.Identity(), ff.PatchPrior(Smooth()), law, steps=20
    )
    found, alone = solve(y), solve(y[1:])
    assert found.x.shape == x.shape and found.misfit is not None
    torch.testing.assert_close(alone.x, found.x[1:], rtol=1e-3, atol=1e-3)
    assert solve(y[:0]).x.shape == (0, 1, 40, 52)


@pytest.mark.parametrize("space", ["image", "latent"])
def test_with_a_flow_of_whole_images_and_a_flow_of_tiles(space):
    """Tiles apart are one law: the same solve as by their sum."""
    prior = AffineFlow(torch.rand(3, 16, 24), 0.1 + torch.rand(3, 16, 24))
    law = flow_noise(torch.float32)
    y = prior.mean + noise.Tiled(law, SHAPE).sample((2, 3, 16, 24), generator()).float()

    class Apart:
        multimodal = True

        def log_prob(self, residual):
            return law.log_prob(apart(residual)).view(len(residual), -1).sum(1)

    solve = lambda model: ff.reconstruct(
        y, ff.operators.Identity(), prior, model, objective=ff.MAP(space=space), steps=5
    )
    found, want = solve(noise.Tiled(law, SHAPE)), solve(Apart())
    torch.testing.assert_close(found.x, want.x, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.log_noise, want.log_noise, rtol=1e-3, atol=1e-2)
