"""flow.check: what is a flow passes, and each kind of fault is seen and named."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_names, randomise
from torch import nn
from toy_flows import AffineFlow

import flowinv_fast as ff
from flowinv_fast.flows import Flow, FlowConfig, Layer

SHAPE = (1, 4, 4)


def toy(**options) -> Flow:
    return randomise(ff.realnvp(ff.RealNVPConfig(SHAPE, scales=2, hidden=4, blocks=1, **options)))


class Faulty(Layer):
    """z = (2 + tanh x) x... told wrongly in one respect."""

    def __init__(self, fault: str):
        super().__init__()
        self.fault = fault
        self.drop = nn.Dropout(0.5)
        self.weight = nn.Parameter(torch.tensor(2.0))

    def encode(self, x, logdet):
        scale = (
            self.weight
            if self.fault != "train_eval"
            else self.weight * self.drop(torch.ones_like(self.weight))
        )
        term = 0.0 if self.fault in ("jacobian", "logdets") else scale.log()
        return scale * x, logdet + x[0].numel() * term

    def decode(self, z, logdet):
        x = z / self.weight
        term = 0.0 if self.fault == "jacobian" else self.weight.log()
        return x + (0.1 if self.fault == "round_trip" else 0), logdet - z[0].numel() * term


@pytest.mark.parametrize("support", ["bounded", "unbounded"])
def test_flows_pass(support):
    flow = toy(support=support)
    state = {k: v.clone() for k, v in flow.state_dict().items()}
    checked = flow.check(seed=1)
    assert checked.passed and checked.round_trip < 1e-9 and checked.jacobian < 1e-9
    assert checked.train_eval == 0 and flow.training and "This is a flow" in repr(checked)
    assert all(torch.equal(v, state[k]) for k, v in flow.state_dict().items())
    frozen = flow.freeze().check(images=torch.rand(2, *SHAPE))
    assert frozen.passed and frozen.train_eval is None
    assert flow.check(images=torch.rand(0, *SHAPE)).passed


def test_a_flow_of_ones_own_passes():
    own = AffineFlow(torch.rand(SHAPE), torch.rand(SHAPE) + 0.5)
    assert ff.check_flow(own).passed
    assert own.decode(torch.zeros(1, 16))[0].dtype == torch.float32


@pytest.mark.parametrize("fault", ["round_trip", "logdets", "jacobian", "train_eval"])
def test_a_fault_is_named(fault):
    checked = Flow([Faulty(fault)], FlowConfig(SHAPE)).check()
    assert not checked.passed and fault in checked.message and checked.message in repr(checked)
    assert getattr(checked, fault) > 1e-3


def test_a_wrong_density_is_named():
    class Wrong(Flow):
        def log_prob(self, x):
            return super().log_prob(x) + 1

    checked = Wrong([], FlowConfig(SHAPE)).check()
    assert not checked.passed and "density" in checked.message


def test_weights_that_are_not_finite_are_named():
    flow = toy()
    with torch.no_grad():
        flow.layers[2].gain[0] = torch.nan
    checked = flow.check()
    assert not checked.passed and checked.not_finite == ("layers.2.gain",)
    assert "layers.2.gain" in checked.message


def test_what_cannot_be_checked():
    flow = toy()
    assert_names("images", lambda: flow.check(images=torch.rand(2, 1, 8, 8)))
    assert_names("seed", lambda: flow.check(seed=-1))
    large = ff.realnvp(ff.RealNVPConfig((1, 20, 20), scales=1, hidden=2, blocks=0)).check()
    assert large.passed and large.jacobian is None
