"""Flow: lists of layers of one's own, what it refuses, what it leaves alone, its subclasses."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    assert_derivatives,
    assert_names,
    jacobian_logdet,
    randomise,
    standardisation,
)
from torch import nn

from flowinv_fast.flows import (
    AffineCoupling,
    ChannelMixing,
    FactorOut,
    Flow,
    FlowConfig,
    GlowConfig,
    Layer,
    Logit,
    RealNVPConfig,
    Squeeze,
    Standardise,
    build_flow,
    glow,
    realnvp,
)
from flowinv_fast.flows.conditioner import ResidualNetwork

SHAPE = (1, 4, 4)


class Stretch(Layer):
    """A user's layer: z = (1 + exp(a)) x."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(-0.5))

    def encode(self, x, logdet):
        factor = 1 + self.a.exp()
        return factor * x, logdet + x[0].numel() * factor.log()

    def decode(self, z, logdet):
        factor = 1 + self.a.exp()
        return z / factor, logdet - z[0].numel() * factor.log()


def own_flow() -> Flow:
    """Layers in an order that no architecture of ours has, of two splits in a row too."""
    prior = FactorOut(ResidualNetwork(2, 4, 4, 1))
    first = [Squeeze(), ChannelMixing(4), AffineCoupling(4, 4, 1, "channel_second"), prior]
    last = [Stretch(), FactorOut(), AffineCoupling(1, 4, 0, "checkerboard_odd"), Squeeze()]
    flow = Flow(first + last, FlowConfig(SHAPE))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return flow


def test_any_list_of_layers():
    flow = own_flow().double()
    x = torch.randn(3, *SHAPE).double()
    z, logdet = flow.encode(x)
    back, opposite = flow.decode(z)
    torch.testing.assert_close(back, x, atol=1e-10, rtol=0)
    torch.testing.assert_close(opposite, -logdet)
    for i in range(3):
        torch.testing.assert_close(logdet[i], jacobian_logdet(flow.encode, x[i]))
        torch.testing.assert_close(opposite[i], jacobian_logdet(flow.decode, z[i]))


def test_latents_lie_in_the_order_in_which_they_leave():
    flow = Flow([Squeeze(), FactorOut(), FactorOut()], FlowConfig((1, 2, 2)))
    x = torch.arange(4.0).view(1, 1, 2, 2)
    z, _ = flow.encode(x)
    assert z.tolist() == [[2, 3, 1, 0]]
    assert torch.equal(flow.decode(z)[0], x)


def test_no_layers_are_the_identity():
    flow, x = Flow([], FlowConfig(SHAPE)), torch.randn(2, *SHAPE)
    assert torch.equal(flow.encode(x)[0], x.flatten(1))
    assert torch.equal(flow.decode(x.flatten(1))[0], x)
    assert flow.dtype == torch.float32 and flow.device.type == "cpu"
    assert not flow.freeze().compiled


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Flow([AffineCoupling(1, 4, 1), Standardise(SHAPE)], FlowConfig(SHAPE)),
        lambda: Flow([FactorOut(ResidualNetwork(1, 2, 3, 0))], FlowConfig((2, 2, 4))),
        lambda: glow(GlowConfig(SHAPE, 2, 4, 1, prior_hidden=3)),
        own_flow,
    ],
)
def test_the_users_tensors_stay_as_they_were(make, batch):
    flow = make()
    x, z = torch.randn(batch, *flow.shape), torch.randn(batch, 16)
    kept = x.clone(), z.clone()
    with torch.no_grad():
        got = [*flow.encode(x), *flow.decode(z), flow.log_prob(x)]
    want = [*flow.encode(x), *flow.decode(z), flow.log_prob(x)]
    torch.testing.assert_close(got, want)
    if batch > 1:
        flow.initialise(x)
    assert torch.equal(x, kept[0]) and torch.equal(z, kept[1])


def test_gradients_of_a_glow():
    flow = randomise(glow(GlowConfig(SHAPE, 2, 3, 1, prior_hidden=3))).double()
    x = torch.rand(2, *SHAPE).double().requires_grad_()
    z = torch.randn(2, 16).double().requires_grad_()
    assert_derivatives(flow.encode, (x,))
    assert_derivatives(flow.decode, (z,))
    parameters = tuple(flow.parameters())
    log_prob = lambda *_: flow.log_prob(x.detach())
    assert_derivatives(log_prob, parameters, fast_mode=True)
    assert_derivatives(flow.log_prob, (x,), second=True, fast_mode=True)


def test_glow_starts_as_a_volume_preserving_map():
    flow = glow(GlowConfig((2, 8, 8), 3, 4, 1))
    x = torch.randn(3, 2, 8, 8)
    z, logdet = flow.encode(x)
    torch.testing.assert_close(logdet, torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(z.norm(dim=1), x.flatten(1).norm(dim=1))
    plain = glow(GlowConfig((2, 8, 8), 3, 4, 1, mixing=False, conditional_prior=False))
    same = realnvp(RealNVPConfig((2, 8, 8), 3, 4, 1))
    assert repr(plain) == repr(same)
    assert set(plain.state_dict()) < {*flow.state_dict()} | {*same.state_dict()}


def test_no_coupling_at_full_resolution():
    flow = randomise(glow(GlowConfig((1, 8, 8), 3, 4, 1, early_squeeze=True))).double()
    shapes = [(1, 8, 8)]
    for layer in flow.layers:
        if isinstance(layer, AffineCoupling):
            assert shapes[-1][1:] != (8, 8)
        shapes.append(layer.shape_after(shapes[-1]))
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    z, logdet = flow.encode(x)
    torch.testing.assert_close(flow.decode(z)[0], x)
    torch.testing.assert_close(logdet[0], jacobian_logdet(flow.encode, x[0]))
    assert repr(glow(GlowConfig((1, 8, 8), 1, 4, 1, early_squeeze=True))) == repr(
        glow(GlowConfig((1, 8, 8), 1, 4, 1))
    )


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"mixing": 1}, "mixing"),
        ({"conditional_prior": "yes"}, "conditional_prior"),
        ({"prior_hidden": 0}, "prior_hidden"),
        ({"early_squeeze": 1}, "early_squeeze"),
        ({"prior_blocks": -1}, "prior_blocks"),
        ({"shape": (1, 6, 6)}, "shape"),
    ],
)
def test_bad_glows(changes, argument):
    assert_names(argument, lambda: GlowConfig(**{"shape": (1, 8, 8), **changes}))


def test_what_a_trainer_asks_for():
    flow = glow(GlowConfig((1, 8, 8), 2, 4, 1, prior_hidden=3))
    assert len(flow.gains()) == len(flow.conditioners()) == 10 + 1  # couplings and one prior
    assert all(gain.abs().max() == 0 for gain in flow.gains())
    penalty = flow.weight_norm_penalty()
    penalty.backward()
    kept = [n for n, p in flow.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert penalty > 0 and kept and all("conditioner" in name for name in kept)
    empty = Flow([], FlowConfig(SHAPE))
    assert empty.weight_norm_penalty() == 0 and empty.gains() == []


@pytest.mark.parametrize("support", ["bounded", "unbounded"])
def test_initialise_standardises_what_reaches_the_layer(support):
    flow = realnvp(RealNVPConfig(SHAPE, 1, 4, 0, support=support, smoothing=0.0))
    x = 0.2 + 0.5 * torch.rand(500, *SHAPE)
    flow.initialise(x)
    with torch.no_grad():
        z, _ = flow.encode(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(16), atol=1e-4, rtol=0)
    assert standardisation(flow) is flow.layers[1 if support == "bounded" else 0]


def test_what_a_flow_refuses():
    config = FlowConfig(SHAPE)
    assert_names("config", lambda: Flow([], None))
    assert_names("layers", lambda: Flow([nn.Identity()], config))
    assert_names("channels", lambda: Flow([AffineCoupling(2, 4, 1)], config))
    assert_names("shape", lambda: Flow([Squeeze(), Squeeze(), Squeeze()], config))
    assert_names("shape", lambda: Flow([FactorOut()], config))
    assert_names("shape", lambda: Flow([Standardise((1, 4, 5))], config))

    class Half(Layer):
        def shape_after(self, shape):
            return shape[0], shape[1] // 2, shape[2]

    assert_names("layers", lambda: Flow([Half()], config))
    assert_names("support", lambda: FlowConfig(SHAPE, support="positive"))
    assert_names("config", lambda: build_flow(config))
    flow = own_flow()
    assert_names("z", lambda: flow.decode(torch.zeros(2, 15)))
    assert_names("x", lambda: flow.encode(torch.zeros(2, *SHAPE).double()))
    assert_names("n", lambda: flow.sample(-1))


def test_compiles_without_a_graph_break():
    flow = randomise(glow(GlowConfig((1, 4, 4), 2, 3, 0, support="bounded", prior_hidden=3)))
    assert isinstance(flow.layers[0], Logit)
    x = torch.rand(2, 1, 4, 4)
    torch._dynamo.reset()
    compiled = torch.compile(flow.log_prob, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), flow.log_prob(x))
