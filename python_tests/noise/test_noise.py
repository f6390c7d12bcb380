"""Noise models against their laws: densities in float64, draws within statistical error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import assert_names
from torch.distributions import Normal

from flowinv_fast import ArgumentError, measure, noise, operators, ops
from flowinv_fast.flows import RealNVPConfig, realnvp


def generator(seed=None):
    return torch.Generator().manual_seed(torch.randint(2**31, ()).item() if seed is None else seed)


class AffineFlow:
    """Gaussian patches of one channel."""

    def __init__(self, h, w):
        self.shape = (1, h, w)
        self.mean = torch.randn(1, h, w, dtype=torch.float64)
        self.std = torch.rand(1, h, w, dtype=torch.float64) + 0.5

    def log_prob(self, x):
        return Normal(self.mean, self.std).log_prob(x).flatten(1).sum(1)

    def sample(self, n, generator=None):
        return self.mean + self.std * torch.randn(n, *self.shape, generator=generator).double()


# --- Gaussian ------------------------------------------------------------------------------------

SHAPES = [(), (3, 1, 1, 1), (2, 5, 7), (1, 5, 1), (3, 2, 5, 7)]


@pytest.mark.parametrize("mean_shape", SHAPES)
@pytest.mark.parametrize("std_shape", SHAPES)
def test_gaussian_density_and_gradient(mean_shape, std_shape):
    mean = torch.randn(mean_shape, dtype=torch.float64)
    std = torch.rand(std_shape, dtype=torch.float64) + 0.3
    model = noise.Gaussian(std, mean)
    residual = torch.randn(3, 2, 5, 7, dtype=torch.float64).requires_grad_()
    value = model.log_prob(residual)
    torch.testing.assert_close(value, Normal(mean, std).log_prob(residual).flatten(1).sum(1))
    (grad,) = torch.autograd.grad(value.sum(), residual)
    torch.testing.assert_close(grad, (mean - residual.detach()) / std**2)
    y = torch.randn_like(grad)
    torch.testing.assert_close(
        model.log_likelihood(y, y - residual.detach()), value.detach(), atol=1e-9, rtol=1e-9
    )


def test_parameters_are_copied_to_another_device_once():
    """A CUDA graph can hold no copy from the host. Meta tensors stand in for a GPU's."""
    std, mean = torch.rand(4) + 1, torch.rand(4)
    like = torch.empty(2, 4, device="meta")
    for law in (noise.Gaussian(std, mean), noise.Sinusoidal(0.2, mean)):
        first = law._like("mean", like)
        assert first.device.type == "meta" and law._like("mean", like) is first
        assert law._like("mean", like.double()).dtype == torch.float64
        assert law._like("mean", like) is first  # a graph may stand on it
        assert law.select(slice(0, 1), (2, 4))._like("mean", like[:1]) is not first
    law = noise.Gaussian(std, mean)
    assert law.std_like(like) is law.std_like(like)


def test_gaussian_of_an_empty_batch():
    assert noise.Gaussian(0.1).log_prob(torch.zeros(0, 2, 3)).shape == (0,)
    assert noise.Gaussian(0.1).sample((0, 2, 3)).shape == (0, 2, 3)


# --- patterns ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["exp", "expm1"])
def test_sinusoidal_sigma_is_the_papers(form):
    level = torch.tensor([0.2, 0.05], dtype=torch.float64)
    model = noise.Sinusoidal(level, form=form)
    got = model.std_like(torch.zeros(2, 3, 33, 5, dtype=torch.float64))
    wave = np.exp(np.sin(2 * np.pi * np.arange(33) / 16))
    shape = wave / np.e if form == "exp" else (wave - 1) / (np.e - 1)
    want = np.clip(level.numpy()[:, None] * shape, 0.001, 1)
    assert got.shape == (2, 3, 33, 5)
    np.testing.assert_allclose(got.numpy(), np.broadcast_to(want[:, None, :, None], got.shape))
    if form == "expm1":  # docs/method.md, section 4: 9 of 16 rows sit on the floor
        assert (got[0, 0, :16, 0] == 0.001).sum() == 9


def test_sinusoidal_measurements():
    """sigma_k proportional to exp(sin(2 pi k / 16)), the largest variance being the level."""
    level = 0.3
    model = noise.Sinusoidal.measurements(level, mean=0.4)
    std = model.std_like(torch.zeros(2, 48, dtype=torch.float64))
    assert std.shape[-1] == 48
    torch.testing.assert_close(std.max() ** 2, torch.tensor(level, dtype=torch.float64))
    ratio = std[0] / torch.exp(torch.sin(2 * math.pi * torch.arange(48).double() / 16))
    torch.testing.assert_close(ratio, ratio[:1].expand(48))
    residual = torch.randn(2, 48, dtype=torch.float64)
    want = Normal(0.4, std).log_prob(residual).sum(1)
    torch.testing.assert_close(model.log_prob(residual), want)


def test_radial_sigma_is_the_papers():
    got = noise.Radial().std_like(torch.zeros(1, 1, 64, 64, dtype=torch.float64))[0, 0]
    row, column = np.mgrid[:64, :64]
    distance2 = (row - 31) ** 2 + (column - 31) ** 2
    np.testing.assert_allclose(got.numpy(), np.clip(np.exp(-0.005 * distance2), 0.001, 1))


@pytest.mark.parametrize(
    "model",
    [
        noise.Gaussian(0.3, 0.1),
        noise.Sinusoidal(0.2),
        noise.Sinusoidal(0.3, 0.5, "expm1"),
        noise.Radial(),
    ],
    ids=["gaussian", "exp", "expm1", "radial"],
)
def test_draws_follow_the_density(model):
    """Standardised draws are normal; the mean log-density of draws is minus the entropy."""
    shape = (60, 2, 32, 48)
    draw = model.sample(shape, generator(), dtype=torch.float64)
    std = model.std_like(draw).expand(shape)
    standard = (draw - model.mean) / std
    n = draw.numel()
    assert abs(standard.mean()) < 5 / math.sqrt(n)
    assert abs(standard.square().mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs(standard.pow(4).mean() - 3) < 5 * math.sqrt(96 / n)
    entropy = (std[0].log() + 0.5 + 0.5 * math.log(2 * math.pi)).sum()
    spread = math.sqrt(0.5 * draw[0].numel() / shape[0])
    assert abs(model.log_prob(draw).mean() + entropy) < 5 * spread


def test_draws_are_fixed_by_the_generator():
    model = noise.Sinusoidal(0.2)
    draw = lambda seed: model.sample((2, 1, 9, 5), generator(seed))
    assert torch.equal(draw(3), draw(3)) and not torch.equal(draw(3), draw(4))


def test_level_per_image_scales_each_image():
    level = torch.tensor([0.1, 0.4])
    both = noise.Sinusoidal(level).sample((2, 1, 9, 5), generator(5))
    first = noise.Sinusoidal(0.1).sample((2, 1, 9, 5), generator(5))
    torch.testing.assert_close(both[0], first[0])
    torch.testing.assert_close(both[1], 4 * first[1])


# --- flows ---------------------------------------------------------------------------------------


def test_flow_noise_changes_variables():
    flow, scale = AffineFlow(5, 4), 0.3
    residual = torch.randn(3, 1, 5, 4, dtype=torch.float64)
    want = Normal(scale * flow.mean, scale * flow.std).log_prob(residual).flatten(1).sum(1)
    torch.testing.assert_close(noise.FlowNoise(flow, scale).log_prob(residual), want)
    draw = noise.FlowNoise(flow, scale).sample((4, 1, 5, 4), generator(1))
    torch.testing.assert_close(draw, scale * flow.sample(4, generator(1)))


@pytest.mark.parametrize("shared", [True, False])
def test_placed_flow_is_patches_and_a_gaussian_elsewhere(shared):
    flow, std, scale = AffineFlow(3, 2), 0.2, 0.7
    places = torch.tensor([[[0, 0, 0], [1, 4, 5]], [[1, 0, 3], [0, 4, 0]]])
    model = noise.PlacedFlowNoise(flow, places[0] if shared else places, std, scale)
    residual = torch.randn(2, 2, 7, 8, dtype=torch.float64)
    want = []
    for b in range(2):
        rest = torch.ones(2, 7, 8, dtype=torch.bool)
        total = 0.0
        for c, i, j in (places[0] if shared else places[b]).tolist():
            patch = residual[b, c, i : i + 3, j : j + 2]
            total += Normal(scale * flow.mean, scale * flow.std).log_prob(patch[None]).sum()
            rest[c, i : i + 3, j : j + 2] = False
        want.append(total + Normal(0.0, std).log_prob(residual[b][rest]).sum())
    torch.testing.assert_close(model.log_prob(residual), torch.stack(want))
    draws = model.sample((2, 2, 7, 8), generator())
    assert draws.shape == residual.shape and torch.isfinite(model.log_prob(draws)).all()


def test_placed_flow_draws_lie_where_they_should():
    flow = AffineFlow(3, 2)
    flow.mean += 100
    draw = noise.PlacedFlowNoise(flow, torch.tensor([[1, 4, 5]]), 0.1).sample(
        (3, 2, 7, 8), generator()
    )
    loud = draw > 50
    assert loud[:, 1, 4:7, 5:7].all() and loud.sum() == 3 * 6
    assert draw[~loud].abs().max() < 1 and draw[~loud].std() > 0.05


def test_overlapping_places_are_refused():
    model = noise.PlacedFlowNoise(AffineFlow(3, 2), torch.tensor([[0, 0, 0], [0, 2, 1]]), 0.1)
    with pytest.raises(ArgumentError, match="overlap"):
        model.log_prob(torch.zeros(1, 1, 7, 8, dtype=torch.float64))


def test_digits_are_bank_images_at_places():
    bank = torch.rand(6, 3, 4) + 1
    draw = noise.Digits(bank, count=2, scale=0.5).sample((9, 2, 8, 9), generator(3))
    assert torch.equal(
        draw, noise.Digits(bank, count=2, scale=0.5).sample((9, 2, 8, 9), generator(3))
    )
    one = noise.Digits(bank, count=1, scale=0.5).sample((50, 2, 8, 9), generator())
    for image in one:
        inside = image.nonzero()
        channel, row, column = inside.min(0)[0].tolist()
        patch = 2 * image[channel, row : row + 3, column : column + 4]
        assert len(inside) == 12 and any(torch.allclose(patch, digit) for digit in bank)


def test_bounded_flow_is_refused_as_noise():
    flow = realnvp(RealNVPConfig((1, 4, 4), scales=2, hidden=4, support="bounded"))
    with pytest.raises(ArgumentError, match="unbounded"):
        noise.FlowNoise(flow)


PLACES = torch.tensor([[0, 0, 0]])
BAD = {
    "gaussian": ("std", lambda: noise.Gaussian(0.0)),
    "gaussian-nan": ("std", lambda: noise.Gaussian(torch.tensor([1.0, math.nan]))),
    "sinusoidal": ("level", lambda: noise.Sinusoidal(-1.0)),
    "form": ("form", lambda: noise.Sinusoidal(form="sin")),
    "period": ("period", lambda: noise.Sinusoidal(period=0.0)),
    "floor": ("floor", lambda: noise.Radial(floor=2.0)),
    "measurements": ("level", lambda: noise.Sinusoidal.measurements(0.0)),
    "residual": ("residual", lambda: noise.Radial().log_prob(torch.zeros(2, 3, 4))),
    "flow": ("flow", lambda: noise.FlowNoise(3)),
    "scale": ("scale", lambda: noise.FlowNoise(AffineFlow(2, 2), 0.0)),
    "flow-shape": ("shape", lambda: noise.FlowNoise(AffineFlow(2, 2)).sample((1, 1, 3, 3))),
    "places": ("places", lambda: noise.PlacedFlowNoise(AffineFlow(2, 2), PLACES.float(), 0.1)),
    "std": ("std", lambda: noise.PlacedFlowNoise(AffineFlow(2, 2), PLACES, -0.1)),
    "bank": ("bank", lambda: noise.Digits(torch.zeros(3, 4))),
    "count": ("count", lambda: noise.Digits(torch.zeros(1, 3, 4), count=-1)),
    "sample": ("noise", lambda: measure(torch.zeros(1, 1, 2, 2), operators.Identity(), object())),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_argument_is_named(case):
    assert_names(*BAD[case])


# --- Philox --------------------------------------------------------------------------------------


def test_random_bits_give_the_published_vector_and_are_one_stream():
    """Random123's first known answer; the others are in csrc/tests/test_philox.cpp."""
    got = ops.random_bits(4, seed=0)
    assert [f"{v:08x}" for v in got.tolist()] == "6627e8d5 e169c58d bc57ac4c 9b00dbd8".split()
    seed, offset = 2**40 + 3, 2**33 - 2
    whole = ops.random_bits(41, seed, offset)
    assert torch.equal(whole[12:], ops.random_bits(29, seed, offset + 3))
