"""Every layer: inverse, log-determinant against the dense Jacobian, identity starts, records."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import assert_derivatives, assert_names, jacobian_logdet
from torch import nn

from flowinv_fast import ops
from flowinv_fast.flows import (
    AffineCoupling,
    ChannelMixing,
    FactorOut,
    Flow,
    FlowConfig,
    Layer,
    Logit,
    Squeeze,
    Standardise,
)
from flowinv_fast.flows.conditioner import ResidualNetwork


def prior(channels: int) -> FactorOut:
    return FactorOut(prior=ResidualNetwork(channels // 2, channels, 4, 1))


# Name to (layer, shape of its input).
LAYERS = {
    "Standardise": lambda: (Standardise((2, 3, 2)), (2, 3, 2)),
    "Logit": lambda: (Logit(0.05), (2, 3, 2)),
    "Squeeze": lambda: (Squeeze(), (2, 4, 2)),
    "FactorOut": lambda: (FactorOut(), (4, 3, 1)),
    "FactorOut-prior": lambda: (prior(4), (4, 3, 2)),
    "ChannelMixing": lambda: (ChannelMixing(3), (3, 3, 2)),
    **{
        f"AffineCoupling-{mask}": lambda mask=mask: (AffineCoupling(2, 4, 1, mask), (2, 3, 3))
        for mask in ops.MASKS
    },
}


def randomised(name: str) -> tuple[Layer, tuple[int, int, int]]:
    """The layer with random weights, float64."""
    layer, shape = LAYERS[name]()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        if isinstance(layer, Standardise):
            layer.mean.normal_()
            layer.std.uniform_(0.5, 2)
    return layer.double(), shape


def joined(output) -> torch.Tensor:
    """What a layer hands on, as one vector to an image."""
    parts = output if isinstance(output, tuple) else (output,)
    return torch.cat([part.flatten(1) for part in parts], 1)


@pytest.mark.parametrize("name", LAYERS)
def test_logdet_equals_the_jacobian_and_decode_inverts(name):
    layer, shape = randomised(name)
    x, before = torch.rand(2, *shape).double(), torch.randn(2).double()
    z, logdet = layer.encode(x, before)
    back, after = layer.decode(z, logdet)
    torch.testing.assert_close(back, x, atol=1e-10, rtol=0)
    torch.testing.assert_close(after, before, atol=1e-10, rtol=0)
    if not isinstance(z, tuple):
        assert tuple(z.shape[1:]) == layer.shape_after(shape)
    nothing = torch.zeros(1).double()
    for i in range(2):
        flat = lambda x: (joined(layer.encode(x, nothing)[0]), None)
        want = jacobian_logdet(flat, x[i])
        torch.testing.assert_close(logdet[i] - before[i], want, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name):
    """Of everything that a layer hands on, to its input and its weights."""
    layer, shape = randomised(name)
    x = torch.rand(2, *shape).double().requires_grad_()
    inputs = (x, torch.randn(2).double().requires_grad_(), *layer.parameters())

    def encode(x, logdet, *_):
        z, logdet = layer.encode(x, logdet)
        return joined(z), logdet

    assert_derivatives(encode, inputs, fast_mode=True)
    parts = layer.encode(x, inputs[1])[0]
    parts = [p.detach().requires_grad_() for p in (parts if isinstance(parts, tuple) else [parts])]

    def decode(logdet, *rest):
        z = tuple(rest[: len(parts)])
        return layer.decode(z if len(z) > 1 else z[0], logdet)

    assert_derivatives(decode, (inputs[1], *parts, *layer.parameters()), fast_mode=True)


@pytest.mark.parametrize("name", LAYERS)
def test_without_gradients_the_values_are_the_same(name):
    """Where a layer may overwrite its input."""
    layer, shape = randomised(name)
    x, before = torch.rand(3, *shape).double(), torch.randn(3).double()
    want = layer.encode(x, before)
    with torch.no_grad():
        for given in (x.clone(), x.transpose(2, 3).contiguous().transpose(2, 3)):
            z, logdet = layer.encode(given, before.clone())
            torch.testing.assert_close(joined(z), joined(want[0]))
            torch.testing.assert_close(logdet, want[1])
            torch.testing.assert_close(layer.decode(z, logdet)[0], x, atol=1e-10, rtol=0)


def test_conditional_prior_starts_as_the_identity_and_learns_at_once():
    layer, plain = prior(6), FactorOut()
    x, logdet = torch.randn(3, 6, 2, 2), torch.zeros(3)
    (kept, latent), after = layer.encode(x, logdet)
    (plain_kept, plain_latent), _ = plain.encode(x, logdet)
    assert torch.equal(kept, plain_kept) and torch.equal(latent, plain_latent)
    assert torch.equal(after, logdet)
    (latent.square().sum() + after.sum()).backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert layer.prior.gain.grad.abs().max() > 0


def test_conditional_prior_is_a_gaussian_of_the_kept_half():
    """latent = (u - mean) exp(-log_std), log_std = gain tanh(raw)."""
    layer, _ = randomised("FactorOut-prior")
    x = torch.randn(3, 4, 3, 2).double()
    (kept, latent), logdet = layer.encode(x, torch.zeros(3).double())
    raw, mean = layer.prior.conditioner(kept).chunk(2, 1)
    log_std = layer.prior.gain.view(-1, 1, 1) * raw.tanh()
    u = x[:, 2:]
    torch.testing.assert_close(kept, x[:, :2])
    torch.testing.assert_close(latent, ((u - mean) * (-log_std).exp()).flatten(1))
    normal = torch.distributions.Normal(mean, log_std.exp())
    log_prob = ops.standard_normal_log_prob(latent) + logdet
    torch.testing.assert_close(log_prob, normal.log_prob(u).flatten(1).sum(1))


def test_density_with_a_conditional_prior_integrates_to_one():
    layer = FactorOut(prior=ResidualNetwork(1, 2, 4, 1))
    flow = Flow([ChannelMixing(2), layer], FlowConfig((2, 1, 1))).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        layer.prior.gain.clamp_(-0.5, 0.5)
        layer.prior.conditioner.last.gain.clamp_(-0.5, 0.5)
        side = 0.05
        axis = torch.arange(-15, 15, side, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis).view(-1, 2, 1, 1)
        total = flow.log_prob(grid).exp().sum() * side**2
    assert abs(total.item() - 1) < 2e-3


def test_a_conditioner_of_ones_own():
    """Any network will do; the compiled engine then does not know the layer."""
    own = nn.Conv2d(1, 2, 1)
    layer = AffineCoupling(2, mask="channel_first", conditioner=own)
    assert layer.conditioner is own and layer.records() is None
    own.outputs = 2
    assert FactorOut(prior=own).prior.conditioner is own
    assert FactorOut(prior=own).records() is None


@pytest.mark.parametrize("name", LAYERS)
def test_records_are_of_the_layers_own_methods(name):
    """A subclass or an instance with other methods is not what the records say."""
    layer, _ = LAYERS[name]()
    assert (layer.records() is None) == (name == "Logit")
    kind = type(layer)
    for method in ("encode", "decode"):
        changed = type("Changed", (kind,), {method: lambda self, x, logdet: (x, logdet)})
        other, _ = LAYERS[name]()
        other.__class__ = changed
        assert other.records() is None and not other.recomputable()
        other, _ = LAYERS[name]()
        setattr(other, method, lambda x, logdet: (x, logdet))
        assert other.records() is None and not other.recomputable()
    same = type("Same", (kind,), {"extra": lambda self: 1})
    layer.__class__ = same
    assert (layer.records() is None) == (name == "Logit")


def test_records_are_of_the_networks_own_arithmetic():
    class Louder(ResidualNetwork):
        def forward(self, x):
            return 2 * super().forward(x)

    assert AffineCoupling(2, conditioner=Louder(2, 4, 3, 1)).records() is None
    assert FactorOut(prior=Louder(1, 2, 3, 1)).records() is None
    layer = AffineCoupling(2, 3, 1)
    layer.conditioner.blocks[0] = nn.Identity()
    assert layer.records() is None
    layer = AffineCoupling(2, 3, 1)
    layer.conditioner.first.weight = lambda: torch.zeros(3, 2, 3, 3)
    assert layer.records() is None


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("shape", lambda: Standardise((1, 2, 2)).shape_after((1, 2, 3))),
        ("alpha", lambda: Logit(0.5)),
        ("shape", lambda: Squeeze().shape_after((1, 3, 2))),
        ("shape", lambda: FactorOut().shape_after((3, 2, 2))),
        ("channels", lambda: prior(4).shape_after((6, 2, 2))),
        ("prior", lambda: FactorOut(prior=nn.Identity())),
        ("channels", lambda: ChannelMixing(3).shape_after((2, 1, 1))),
        ("channels", lambda: AffineCoupling(2, 4, 1).shape_after((3, 1, 1))),
        ("channels", lambda: AffineCoupling(3, 4, 1, "channel_first")),
        ("mask", lambda: AffineCoupling(2, 4, 1, "rows")),
    ],
)
def test_bad_arguments(argument, call):
    assert_names(argument, call)


def test_standardise_takes_mean_and_std_and_a_floor():
    layer, x = Standardise((1, 1, 2)), torch.randn(1000, 1, 1, 2)
    x[..., 1] = 3
    layer.initialise(x, floor=0.01)
    torch.testing.assert_close(layer.mean, x.mean(0))
    assert math.isclose(layer.std[0, 0, 1].item(), 0.01, rel_tol=1e-6)
    z, _ = layer.encode(x, torch.zeros(1000))
    torch.testing.assert_close(z[..., 0].std(), torch.tensor(1.0))
