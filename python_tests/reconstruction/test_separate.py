"""separate: the closed form for Gaussian sources, the mixture restored, every bad argument."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import assert_names
from toy_flows import SHAPE, AffineFlow

import flowinv_fast as ff
from flowinv_fast import separate
from flowinv_fast.data import sample_images
from flowinv_fast.flows import RealNVPConfig, realnvp

SOLVE = {"steps": 800, "lr": 0.1, "strategy": "adam", "progress": False}
WEIGHTS = [(1.0, 1.0), (0.7, -1.3), (-0.5, 1.4), (-1.0, -0.8)]


def gaussian() -> AffineFlow:
    return AffineFlow(torch.randn(SHAPE).double(), torch.rand(SHAPE).double() + 0.5)


def mixtures(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, *SHAPE, dtype=torch.float64)


@pytest.mark.parametrize("objective", ["map-image", "map"])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_two_gaussian_sources(weights, objective):
    """What the mixture leaves of the means is shared out by the sources' variances in it."""
    sources, y, (w1, w2) = (gaussian(), gaussian()), mixtures(), weights
    got = separate(y, sources, weights, objective=objective, **SOLVE)
    x1, x2 = got.x1, got.x2
    (m1, s1), (m2, s2) = ((source.mean, source.std) for source in sources)
    surplus = (y - w1 * m1 - w2 * m2) / (w1**2 * s1**2 + w2**2 * s2**2)
    torch.testing.assert_close(x1, m1 + w1 * s1**2 * surplus, atol=1e-4, rtol=0)
    torch.testing.assert_close(x2, m2 + w2 * s2**2 * surplus, atol=1e-4, rtol=0)
    torch.testing.assert_close(w1 * x1 + w2 * x2, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_exchanging_the_sources_exchanges_the_answers(weights):
    sources, y = (gaussian(), gaussian()), mixtures()
    pair = separate(y, sources, weights, **SOLVE)
    swapped = separate(y, sources[::-1], weights[::-1], **SOLVE)
    for one, other in ((pair.x1, swapped.x2), (pair.x2, swapped.x1)):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_weights_are_one_by_default():
    sources, y = (gaussian(), gaussian()), mixtures()
    got = separate(y, sources, steps=5, progress=False)
    want = separate(y, sources, (1, 1), steps=5, objective="map-image", progress=False)
    assert torch.equal(got.x1, want.x1) and torch.equal(got.x2, want.x2)


def test_how_the_solve_ended_is_told():
    """An interrupt, every option, and the two terms of the loss: log p of either source."""
    sources, y, seen = (gaussian(), gaussian()), mixtures(), []

    def stop(step, losses, variable):
        seen.append(step)
        if len(seen) == 7:
            raise KeyboardInterrupt

    got = separate(y, sources, (0.5, 2.0), callback=stop, restarts=3, seed=3, progress=False)
    assert got.found.status == [ff.Status.INTERRUPTED] * 3 and len(seen) == 7
    assert got.found.config["seed"] == 3 and got.found.config["restarts"] == 3
    torch.testing.assert_close(got.found.log_prior, sources[0].log_prob(got.x1))
    of_scaled = sources[1].log_prob(got.x2) - 16 * math.log(2.0)
    torch.testing.assert_close(got.found.log_noise, of_scaled)


def test_clothes_and_digits_become_more_probable():
    """Shipped flows, real images: the pair makes the mixture, and scores above where it started."""
    sources = ff.load_flow("fashion-28"), ff.load_flow("digits-noise-28")
    y = sample_images("fashion-28", 2) + 0.5 * sample_images("mnist-28", 2)
    pair = separate(y, sources, (1.0, 0.5), steps=20, lr=0.02, strategy="adam", progress=False)
    x1, x2 = pair.x1, pair.x2
    torch.testing.assert_close(x1 + 0.5 * x2, y, rtol=1e-5, atol=1e-5)
    start = y.clamp(0, 1)
    with torch.no_grad():
        score = lambda a, b: sources[0].log_prob(a) + sources[1].log_prob(b)
        assert (score(x1, x2) > score(start, 2 * (y - start))).all()


def test_bounded_flows_may_only_come_first():
    """A residual is any real number, which a logit flow gives no density."""
    flow = realnvp(RealNVPConfig(SHAPE, scales=1, hidden=2, blocks=0, support="bounded")).double()
    y = torch.rand(2, *SHAPE).double()
    got = separate(y, (flow, gaussian()), objective="map", steps=3, progress=False)
    x1, x2 = got.x1, got.x2
    assert (x1 > 0).all() and (x1 < 1).all()
    torch.testing.assert_close(x1 + x2, y)
    assert_names("flow", lambda: separate(y, (gaussian(), flow)))


def test_empty_batch():
    got = separate(mixtures(0), (gaussian(), gaussian()))
    assert got.x1.shape == got.x2.shape == (0, *SHAPE) and got.found.status == []


BAD = {
    "y-type": ("y", {"y": [1.0]}),
    "y-shape": ("y", {"y": torch.zeros(2, 1, 4, 5).double()}),
    "y-nan": ("y", {"y": torch.full((2, *SHAPE), math.nan).double()}),
    "sources-one": ("sources", {"sources": [None]}),
    "sources-three": ("sources", {"sources": [None] * 3}),
    "sources-type": ("sources", {"sources": 2}),
    "sources-first": ("sources", {"sources": (lambda x: x, gaussian())}),
    "sources-second": ("sources", {"sources": (gaussian(), lambda x: x)}),
    "weights-three": ("weights", {"weights": (1.0, 1.0, 1.0)}),
    "weights-zero": ("weights", {"weights": (1.0, 0.0)}),
    "weights-nan": ("weights", {"weights": (math.nan, 1.0)}),
    "weights-inf": ("weights", {"weights": (math.inf, 1.0)}),
    "weights-text": ("weights", {"weights": "ab"}),
    "weights-type": ("weights", {"weights": 1.0}),
    "objective-without-a-prior": ("objective", {"objective": "mle"}),
    "objective-without-noise": ("objective", {"objective": ff.AsimLikelihood()}),
    "steps": ("steps", {"steps": 0}),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_argument_is_named(case):
    argument, change = BAD[case]
    call = {"y": mixtures(2), "sources": (gaussian(), gaussian()), "steps": 1, "progress": False}
    assert_names(argument, lambda: separate(**{**call, **change}))
