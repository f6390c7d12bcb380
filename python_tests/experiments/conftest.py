"""Stand-ins for what is slow in a reproduction."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from flowinv_fast.experiments import uncertainty
from flowinv_fast.experiments.methods import METHODS, Answer
from flowinv_fast.reconstruction.solvers import Status

GRADIENT = ("map", "mle", "csgm", "asim")  # first words of the methods that minimise a loss


def posterior(flow, truth, steps, seed):
    facts = {"samples": 1, "warm_up": 2, "z": 1.0, "acceptance": 0.5, "top": 0.5}
    facts["psnr_of_mean"] = [20.0] * len(truth)
    return facts, dict.fromkeys(("truth", "y", "mean", "std"), truth.numpy())


def bound(flow, truth, steps, seed):
    keys = ("mu", "delta_norm", "bound", "distance", "psnr")
    return {"std": 0.2, "images": [{"image": i, **dict.fromkeys(keys, 1.5)} for i in range(2)]}


def found_by(name: str, y: torch.Tensor, value: float) -> SimpleNamespace | None:
    """What the runner reads of a solve."""
    if name.split("-")[0] not in GRADIENT:
        return None
    numbers = value + torch.arange(len(y), dtype=torch.float32)
    return SimpleNamespace(
        loss=numbers,
        log_noise=-numbers,
        log_prior=2 * numbers,
        steps=torch.full((len(y),), 7),
        prior_overshoot=numbers > value,
        z=None,
        status=[Status.MAX_STEPS] * len(y),
    )


@pytest.fixture
def no_uncertainty(monkeypatch):
    """Posterior draws and bound, without their solves."""
    monkeypatch.setattr(uncertainty, "posterior", posterior)
    monkeypatch.setattr(uncertainty, "bound", bound)


@pytest.fixture
def no_solves(monkeypatch, no_uncertainty):
    """Every method answers with the measurement's naive image and its value; the calls are kept."""
    calls = []
    for name, method in METHODS.items():

        def solve(context, setting, y, value, name=name):
            calls.append((setting.title, name, value, len(y)))
            x = setting.naive(y) + 0.01 * float(np.log(value))
            return Answer(x, found_by(name, y, value))

        monkeypatch.setitem(METHODS, name, replace(method, solve=solve))
    return calls
