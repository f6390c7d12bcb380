"""RealNVP: inverses, log-determinants against the Jacobian, likelihoods against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import assert_derivatives, assert_names, jacobian_logdet, randomise

from flowinv_fast._base.errors import ArgumentError
from flowinv_fast.flows import (
    AffineCoupling,
    GlowConfig,
    RealNVPConfig,
    build_flow,
    realnvp,
)

CONFIGS = [
    RealNVPConfig((1, 4, 4), scales=2, hidden=4, blocks=1, support="unbounded"),
    RealNVPConfig((2, 4, 8), scales=3, hidden=5, blocks=1, support="bounded"),
    RealNVPConfig((3, 5, 3), scales=1, hidden=4, blocks=0, support="unbounded"),
    GlowConfig((1, 4, 4), scales=2, hidden=4, blocks=1, prior_hidden=4),
    GlowConfig((2, 4, 8), scales=3, hidden=3, blocks=0, support="bounded", prior_hidden=3),
]


@pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda c: f"{type(c).__name__}-{c.shape}-{c.scales}-{c.support}"
)
def test_logdet_equals_the_jacobian(config):
    flow = randomise(build_flow(config)).double()
    x = torch.rand(2, *config.shape, dtype=torch.float64)
    z, encode_logdet = flow.encode(x)
    back, decode_logdet = flow.decode(z)
    torch.testing.assert_close(back, x, atol=1e-10, rtol=0)
    torch.testing.assert_close(decode_logdet, -encode_logdet, atol=1e-9, rtol=0)
    for i in range(2):
        torch.testing.assert_close(
            encode_logdet[i], jacobian_logdet(flow.encode, x[i]), atol=1e-9, rtol=0
        )
        torch.testing.assert_close(
            decode_logdet[i], jacobian_logdet(flow.decode, z[i]), atol=1e-9, rtol=0
        )


@pytest.mark.parametrize("support", ["bounded", "unbounded"])
def test_starts_as_the_identity(support):
    flow = realnvp(RealNVPConfig((1, 8, 8), scales=3, hidden=4, support=support, alpha=0.05))
    x = torch.rand(3, 1, 8, 8)
    z, _ = flow.encode(x)
    first = torch.logit(0.05 + 0.9 * x) if support == "bounded" else x
    # The flow only permutes pixels, so the sorted values agree.
    torch.testing.assert_close(z.sort(1)[0], first.flatten(1).sort(1)[0])
    assert all(p.grad is not None for p in _backward(flow, x).parameters())


def _backward(flow, x):
    (-flow.log_prob(x).mean()).backward()
    return flow


def test_log_prob_of_the_identity_is_normal():
    flow = realnvp(RealNVPConfig((3, 8, 8), scales=2, hidden=4))
    x = torch.randn(4, 3, 8, 8)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(flow.log_prob(x), expected)


def test_log_prob_integrates_to_one():
    """A 2-pixel bounded flow: the density summed over a grid of its support is 1."""
    flow = randomise(realnvp(RealNVPConfig((1, 1, 2), scales=1, hidden=4, support="bounded")))
    flow = flow.double()
    low, high, n = -0.05 / 0.9, 1 + 0.05 / 0.9, 600
    side = (high - low) / n
    axis = low + side * (torch.arange(n, dtype=torch.float64) + 0.5)
    grid = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    with torch.no_grad():
        total = flow.log_prob(grid).exp().sum() * side * side
    assert abs(total.item() - 1) < 2e-3


def test_samples_follow_the_density():
    """Mean log-density of samples equals minus the entropy estimated another way: E over z."""
    flow = randomise(realnvp(RealNVPConfig((1, 4, 4), scales=2, hidden=4))).double()
    generator = torch.Generator().manual_seed(3)
    x = flow.sample(500, generator=generator)
    z, logdet = flow.encode(x)
    assert z.mean().abs() < 5 / math.sqrt(z.numel())
    assert (z.var() - 1).abs() < 5 * math.sqrt(2 / z.numel())
    again = flow.sample(500, generator=torch.Generator().manual_seed(3))
    assert torch.equal(x, again)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch_and_non_contiguous(batch):
    flow = randomise(realnvp(RealNVPConfig((2, 8, 8), scales=3, hidden=4)))
    x = torch.rand(batch, 2, 8, 8).transpose(2, 3)
    z, logdet = flow.encode(x)
    assert z.shape == (batch, 128) and logdet.shape == (batch,)
    wide = torch.zeros(batch, 256)
    wide[:, ::2] = z.detach()
    back, _ = flow.decode(wide[:, ::2])
    torch.testing.assert_close(back, x, atol=1e-5, rtol=0)


def test_34_couplings_at_64_by_64():
    """The colour preset's depth: 6 scales are 34 couplings; structure and round trip."""
    flow = randomise(realnvp(RealNVPConfig((3, 64, 64), scales=6, hidden=8, blocks=1)), 0.05)
    assert sum(isinstance(m, AffineCoupling) for m in flow.modules()) == 34
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        z, encode_logdet = flow.encode(x)
        back, decode_logdet = flow.decode(z)
    assert (back - x).abs().max() < 1e-4
    torch.testing.assert_close(encode_logdet, -decode_logdet, rtol=1e-5, atol=0.1)


def test_gradient_through_decode_matches_reference_arithmetic():
    flow = randomise(realnvp(RealNVPConfig((1, 4, 4), scales=2, hidden=4))).double()
    z = torch.randn(2, 16, dtype=torch.float64, requires_grad=True)
    assert_derivatives(flow.decode, (z,))
    assert_derivatives(lambda z: flow.encode(z.view(2, 1, 4, 4)), (z,))


def test_bits_per_dim_of_uniform_noise_is_the_bit_depth():
    """An image uniform on [0, 1] has density 1, so it costs exactly ``bits`` per pixel."""
    flow = realnvp(RealNVPConfig((1, 2, 2), scales=1, hidden=4, bits=5))
    torch.testing.assert_close(flow.bits_per_dim(torch.zeros(2)), torch.full((2,), 5.0))


def test_dequantise_bounded_stays_in_the_grey_level():
    flow = realnvp(RealNVPConfig((1, 4, 4), scales=1, hidden=4, support="bounded", bits=5))
    levels = torch.randint(0, 32, (8, 1, 4, 4))
    noisy = flow.dequantise(levels.float() / 31, seed=5)
    assert torch.equal((noisy * 32).floor().long(), levels)


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"shape": (1, 6, 6), "scales": 3}, "shape"),
        ({"shape": (1, 6)}, "shape"),
        ({"scales": 0}, "scales"),
        ({"support": "positive"}, "support"),
        ({"alpha": 0.5}, "alpha"),
        ({"smoothing": -0.1}, "smoothing"),
        ({"hidden": 0}, "hidden"),
        ({"bits": 0, "support": "bounded"}, "bits"),
        ({"bits": -1}, "bits"),
    ],
)
def test_bad_configurations(changes, argument):
    assert_names(argument, lambda: RealNVPConfig(**{"shape": (1, 8, 8), **changes}))


@pytest.mark.parametrize(
    "x",
    [
        torch.rand(2, 1, 8, 4),
        torch.rand(1, 8, 8),
        torch.zeros(2, 1, 8, 8).int(),
        torch.rand(2, 1, 8, 8).double(),
    ],
    ids=["size", "rank", "integer", "double"],
)
def test_bad_images(x):
    flow = realnvp(RealNVPConfig((1, 8, 8), hidden=4))
    with pytest.raises(ArgumentError, match="x"):
        flow.encode(x)
