"""The solver's loop: what a callback may keep, when the exact steps begin, what is captured."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from flows.test_frozen import random_flow

import flowinv_fast as ff
from flowinv_fast import noise, operators, strategies
from flowinv_fast.reconstruction import objectives
from flowinv_fast.reconstruction.solvers import adam as gradient
from flowinv_fast.reconstruction.solvers import minimise

SHAPE = (1, 4, 4)


def bowl(x: torch.Tensor) -> objectives.Terms:
    loss = x.square().sum(1)
    return objectives.Terms(loss, loss, 0 * loss)


def test_what_a_callback_gets_is_its_own():
    kept = []
    found = minimise(
        bowl, torch.randn(3, 5), steps=6, lr=0.1, callback=lambda step, *got: kept.append(got)
    )
    losses, variables = (torch.stack(v) for v in zip(*kept))
    assert torch.equal(losses, found.history)
    # Each is the variable after its step, whose loss is the next one.
    torch.testing.assert_close(variables[:-1].square().sum(2), losses[1:])


class Timed:
    """The bowl at every time, and which times were asked for."""

    constant = False

    def __init__(self, exact: float):
        self.exact, self.times = exact, []

    def at(self, t, step):
        return lambda x: self.seen(x, t)

    def seen(self, x, t):
        if x.requires_grad:
            self.times.append(t)
        return bowl(x)


def test_the_exact_steps_are_as_many_as_asked_for():
    for steps in range(1, 50):
        for exact in range(steps + 1):
            path = Timed(exact / steps)
            final = lambda x, path=path: path.seen(x, 1.0)
            minimise(final, torch.ones(1, 1), steps=steps, lr=0.1, path=path)
            assert len(path.times) == steps and path.times.count(1.0) == exact


@pytest.mark.parametrize(
    "options,operator,captures",
    [
        ({}, operators.Identity(), 2),
        ({"strategy": strategies.smoothed(0.1)}, operators.Identity(), 1),
        ({"strategy": strategies.tempered(0.5)}, operators.Identity(), 1),
        ({}, operators.SignSensing(12, SHAPE), 1),  # it has easier forms
        ({"precision": "fp32"}, operators.Identity(), 1),
    ],
)
def test_phases_without_a_time_are_captured(options, operator, captures, monkeypatch):
    """Without a GPU: a stand-in counts what would become a graph, and the result is the same."""
    flow = random_flow(SHAPE, 0.3, hidden=8, scales=1, blocks=1)
    y = operator(torch.rand(2, *SHAPE)).detach()
    settings = {"precision": "tf32", "steps": 60, "strategy": strategies.adam(), **options}
    settings["strategy"] = dataclasses.replace(settings["strategy"], polish=0.5)
    solve = lambda: ff.reconstruct(
        y, operator, flow, noise.Gaussian(0.5), progress=False, **settings
    )
    want, asked = solve(), []

    def stand_in(step, changed):
        asked.append(changed)
        return step

    monkeypatch.setattr(gradient, "_capturable", lambda start, steps: steps >= gradient._LOOK)
    monkeypatch.setattr(gradient, "capture", stand_in)
    assert torch.equal(solve().x, want.x)
    assert len(asked) == captures
