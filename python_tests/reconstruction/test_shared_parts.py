"""Modes and state of the parts of a problem, which a solve neither flips nor keeps."""

from __future__ import annotations

import functools
import threading

import pytest
import torch
from helpers import assert_names
from reconstruction.test_trial import SAME, Density, affine, data, posterior, solve, squares
from torch import nn
from toy_flows import SHAPE

import flowinv_fast as ff
from flowinv_fast import noise, operators, recovery_bound


class Net(nn.Module):
    """Half an image plus what its parts make of it."""

    def __init__(self, *parts):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), *parts).double()

    def forward(self, x):
        return 0.5 * x + self.net(x)


class Holder:
    """A density that holds a module as an attribute, as noise.FlowNoise does."""

    def __init__(self, flow):
        self.flow = flow

    def log_prob(self, residual):
        return squares(self.flow(residual))


WAYS = {
    "operator": lambda net: {"operator": net},
    "composed": lambda net: {"operator": operators.Scale(2.0) @ net},
    "closure": lambda net: {"operator": lambda x: net(x)},
    "partial": lambda net: {"operator": functools.partial(net)},
    "method": lambda net: {"operator": net.forward},
    "noise": lambda net: {"law": Holder(net)},
    "listed": lambda net: {"operator": functools.partial(lambda nets, x: nets[0](x), [net])},
}


@pytest.mark.parametrize("part", [nn.Dropout(0.5), nn.BatchNorm2d(1)], ids=["dropout", "norm"])
@pytest.mark.parametrize("way", WAYS)
def test_parts_that_depend_on_the_training_mode_are_refused(way, part):
    net = Net(part).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    call = lambda: solve(**WAYS[way](net))
    message = assert_names("noise" if "law" in WAYS[way](net) else "operator", call)
    assert ".eval()" in message and type(part).__name__ in message
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.eval()
    call()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_measuring_and_sampling_refuse_them_too():
    net = Net(nn.Dropout(0.5))
    assert_names("operator", lambda: ff.measure(data(), net, noise.Gaussian(1.0)))
    assert_names("operator", lambda: posterior(net))
    flow = affine()
    flow.net = net
    assert_names("prior", lambda: recovery_bound(flow, data(), 1.0, 0.1))


def test_no_flag_is_touched_while_a_solve_runs():
    """Two threads may share a module: neither sees what the other does to it."""
    net, flow = Net(), affine()
    flags = lambda: [net.training, *(p.requires_grad for p in net.parameters())]
    seen = []
    watch = lambda step, losses, variable: seen.append(flags())
    solve(net, flow, callback=watch)
    solve(SAME, flow, law=Holder(net), callback=watch)
    assert seen == [[True, True, True]] * 6 and flags() == seen[0]
    assert all(p.grad is None for p in net.parameters())


def test_threads_that_share_everything_solve_as_if_alone():
    from flows.test_frozen import random_flow

    flow = random_flow(SHAPE, 0.3, hidden=4, scales=1, blocks=0).double().train()
    for parameter in flow.parameters():
        parameter.requires_grad_()
    f = operators.SignSensing(12, SHAPE) @ operators.Scale(1.0)
    law = noise.Gaussian(torch.rand(12).double() + 0.5)
    ys = [torch.randn(2, 12).double().sign() for _ in range(4)]
    run = lambda y: solve(f, flow, law, y, steps=8).x
    want, found = [run(y) for y in ys], [None] * 4
    threads = [
        threading.Thread(target=lambda i=i: found.__setitem__(i, run(ys[i]))) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, want))
    assert flow.training and all(p.requires_grad for p in flow.parameters())


@pytest.mark.parametrize("who", ["callback", "noise", "operator"])
def test_whoever_raises_leaves_everything_as_it_was(who):
    net, calls = Net(), []
    f = operators.SignSensing(12, SHAPE)
    state = {name: dict(vars(part)) for name, part in (("net", net), ("f", f))}

    def fail(*given):
        calls.append(1)
        assert net.training and all(p.requires_grad for p in net.parameters())
        if len(calls) > 6:
            raise RuntimeError("mine")

    def whole(x):
        if who == "operator":
            fail()
        return f(net(x))

    def score(residual):
        if who == "noise":
            fail()
        return squares(residual)

    options = {"callback": fail} if who == "callback" else {}
    with pytest.raises(RuntimeError, match="mine"):
        solve(whole, law=Density(score), y=torch.ones(3, 12).double(), steps=20, **options)
    assert {"net": dict(vars(net)), "f": dict(vars(f))} == state
