"""What a report shows of certainty, with a small flow."""

from __future__ import annotations

import json

import numpy as np
import torch

from flowinv_fast.experiments import uncertainty
from flowinv_fast.flows import Flow, RealNVPConfig, realnvp


def small() -> Flow:
    """Untrained: the identity, so a standard normal prior."""
    config = RealNVPConfig((1, 4, 4), scales=1, hidden=2, blocks=0, support="unbounded")
    return realnvp(config).eval().requires_grad_(False)


def test_posterior_of_a_normal_prior():
    """Same again, and the draws tell about the error that they make."""
    truth = torch.rand(2, 1, 4, 4)
    facts, pictures = uncertainty.posterior(small(), truth, 20, 3)
    again, same = uncertainty.posterior(small(), truth, 20, 3)
    assert facts == again and all(np.array_equal(pictures[k], same[k]) for k in same)
    assert facts["samples"] == 160 and facts["warm_up"] == 20 and 0 < facts["acceptance"] <= 1
    assert np.array_equal(pictures["truth"], truth) and pictures["std"].min() > 0
    error = pictures["mean"] - pictures["truth"]
    z = np.sqrt(np.mean((error / np.maximum(pictures["std"], 1e-3)) ** 2))
    assert abs(facts["z"] - z) < 1e-3
    assert abs(facts["top"] - 3 * pictures["std"].mean()) < 1e-3
    clipped = np.clip(pictures["mean"], 0, 1)
    want = -10 * np.log10(((clipped - pictures["truth"]) ** 2).mean((1, 2, 3)))
    np.testing.assert_allclose(facts["psnr_of_mean"], want, atol=1e-3)


def test_bound_of_a_normal_prior():
    """mu is 1: the bound is ||delta|| / 1.04."""
    truth = torch.rand(3, 1, 4, 4)
    told = uncertainty.bound(small(), truth, 300, 5)
    assert told["std"] == 0.2 and [row["image"] for row in told["images"]] == [0, 1, 2]
    for row in told["images"]:
        assert abs(row["mu"] - 1) < 0.02
        assert abs(row["bound"] - row["delta_norm"] / (1 + 0.04 * row["mu"])) < 1e-3


def test_no_bound_is_null(monkeypatch):
    """Where 1 + mu std^2 is not positive, and JSON knows no infinity."""
    mu, infinite = torch.tensor([-40.0]), torch.tensor([torch.inf])
    from flowinv_fast.reconstruction.recovery import RecoveryBound

    monkeypatch.setattr(uncertainty, "recovery_bound", lambda *a: RecoveryBound(mu, infinite))
    told = uncertainty.bound(small(), torch.rand(1, 1, 4, 4), 2, 0)
    assert told["images"][0]["bound"] is None and told["images"][0]["mu"] == -40
    json.dumps(told, allow_nan=False)
