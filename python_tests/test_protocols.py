"""Protocols: what has an ability, and that a name alone proves nothing."""

from __future__ import annotations

import functools

import pytest
import torch
from flows.test_frozen import random_flow
from torch import nn
from toy_flows import SHAPE, AffineFlow
from toy_flows import Physics as ToyPhysics

from flowinv_fast import noise, operators
from flowinv_fast.generators import GeneratorConfig
from flowinv_fast.generators.nets import make
from flowinv_fast.protocols import (
    Continuation,
    Density,
    DrawnAt,
    Flow,
    ForwardOperator,
    Freezable,
    Frozen,
    Generator,
    Initial,
    Linear,
    NoiseInside,
    NoiseModel,
    OnePass,
    PerImage,
    Physics,
    Sampled,
    Sized,
    missing,
    provides,
    scores,
)

PARTS = {
    "flow": lambda: random_flow(SHAPE, 0.3, hidden=4, scales=1, blocks=0),
    "frozen": lambda: random_flow(SHAPE, 0.3, hidden=4, scales=1, blocks=0).freeze(),
    "generator": lambda: make(GeneratorConfig((1, 8, 8), "vae", latent_dim=3, width=2)),
    "gaussian": lambda: noise.Gaussian(0.1),
    "stationary": lambda: noise.StationaryGaussian(torch.ones(SHAPE)),
    "low-rank": lambda: noise.LowRankGaussian(0.0, torch.ones(2, *SHAPE), 1.0),
    "digits": lambda: noise.Digits(torch.ones(2, 3, 3)),
    "flow-noise": lambda: noise.FlowNoise(PARTS["flow"]()),
    "placed": lambda: noise.PlacedFlowNoise(PARTS["flow"](), torch.tensor([[0, 0, 0]]), 0.1),
    "distribution": lambda: torch.distributions.Normal(0.0, 1.0),
    "adapted": lambda: noise.FromDistribution(torch.distributions.Normal(0.0, 1.0)),
    "by-signal": lambda: noise.SignalDependent(noise.Gaussian(1.0), [0.0, 1.0], [0.1, 0.2]),
    "identity": lambda: operators.Identity(),
    "scale": lambda: operators.Scale(2.0),
    "sign": lambda: operators.SignSensing(3, SHAPE),
    "plain": lambda: operators.Scale(2.0) @ torch.exp,
    "both": lambda: operators.SignSensing(3, SHAPE) @ operators.Scale(2.0),
    "numpy": lambda: operators.from_numpy(abs, vjp=lambda x, v: v),
    "numpy-linear": lambda: operators.from_numpy(abs, abs),
    "physics": lambda: ToyPhysics(torch.exp),
}
CORRELATED = {"stationary", "low-rank"}
LAWS = {"gaussian", *CORRELATED, "flow-noise", "placed", "distribution", "adapted"}
OPERATORS = {"identity", "scale", "sign", "plain", "both", "numpy", "numpy-linear"}
ABLE = {
    Density: {"flow", "frozen", *LAWS},
    Flow: {"flow", "frozen"},
    Generator: {"generator"},
    NoiseModel: {"flow", "frozen", *LAWS},
    ForwardOperator: {"generator", "flow", "physics", *OPERATORS},
    Freezable: {"flow", "flow-noise", "placed", "by-signal"},
    Frozen: {"frozen"},
    PerImage: {
        *("gaussian", *CORRELATED, "placed", "adapted", "by-signal"),
        *("scale", "plain", "both"),
    },
    Initial: OPERATORS,
    Continuation: {"sign", "both", "flow"},  # a flow's at(std) takes as many arguments
    Linear: {"identity", "scale", "sign", "both", "numpy-linear"},
    # A flow's sample(n, temperature) takes as many arguments.
    Sampled: {
        *("gaussian", *CORRELATED, "digits", "flow-noise", "placed", "adapted"),
        *("flow", "frozen", "generator"),
    },
    OnePass: {"gaussian", "by-signal"},
    DrawnAt: {"by-signal"},
    Physics: {"physics"},
    Sized: {"frozen", "flow-noise", "placed", "by-signal"},
}


@pytest.mark.parametrize("ability", ABLE, ids=lambda ability: ability.__name__)
def test_which_part_has_which_ability(ability):
    found = {name for name, make_part in PARTS.items() if provides(make_part(), ability)}
    assert found == ABLE[ability]


def test_a_density_of_either_kind_can_be_scored():
    found = {name for name, make_part in PARTS.items() if scores(make_part())}
    assert found == ABLE[NoiseModel] | ABLE[OnePass]


class Lightning(nn.Module):
    """A module with ``freeze()`` that changes it, and a buffer called ``at``."""

    def __init__(self):
        super().__init__()
        self.register_buffer("at", torch.zeros(3))
        self.weight = nn.Parameter(torch.ones(1))

    def freeze(self):
        self.weight.requires_grad_(False)

    def select(self, index):
        return self.weight[index]

    guess = None

    def log_prob(self, residual):
        return -residual.square().flatten(1).sum(1) * self.weight


def test_a_name_alone_proves_nothing():
    part = Lightning()
    for ability in (Freezable, Continuation, PerImage, Initial):
        assert not missing(part, ability) and not provides(part, ability)
    assert provides(part, NoiseModel)


def test_another_librarys_freeze_is_not_called():
    import flowinv_fast as ff

    flow = AffineFlow(torch.zeros(SHAPE), torch.ones(SHAPE))
    law = Lightning()
    ff.reconstruct(torch.randn(2, *SHAPE), law_operator, flow, law, steps=3, progress=False)
    assert law.weight.requires_grad


def law_operator(x):
    return x


def test_arguments_decide():
    """Keyword-only arguments count by name, positional ones by number."""

    class Any:
        pass

    def having(ability, **methods):
        part = Any()
        vars(part).update(methods)
        return provides(part, ability)

    assert having(Freezable, freeze=lambda precision: 0)
    assert having(Freezable, freeze=lambda device=None, precision="fp32": 0)
    assert not having(Freezable, freeze=lambda level: 0)
    assert not having(Freezable, freeze=lambda **options: 0)
    assert not having(Freezable, freeze=lambda precision, device: 0)
    assert having(Continuation, at=lambda when: 0)
    assert having(Continuation, at=lambda *times: 0)
    assert having(Continuation, at=functools.partial(lambda scale, t: 0, 2.0))
    assert not having(Continuation, at=lambda: 0)
    assert not having(Continuation, at=lambda row, column: 0)
    assert having(PerImage, select=lambda which, shape: 0)
    assert not having(PerImage, select=lambda which: 0)
    assert not having(PerImage, select=torch.zeros(2))
    assert not provides(operators.SignSensing, Continuation)  # a class is no operator


def test_missing_names_come_in_the_protocols_order():
    assert missing(3, Flow) == ["log_prob", "shape", "encode", "decode"]
    inside = operators.SignSensing(3, SHAPE, noise_inside=True)
    assert provides(inside, NoiseInside) and inside.noise_inside
