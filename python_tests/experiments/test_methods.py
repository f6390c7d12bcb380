"""Every method behind its call: which options, which start, which baseline."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from flowinv_fast import baselines, load_flow
from flowinv_fast.data import sample_images
from flowinv_fast.experiments import methods
from flowinv_fast.experiments.config import ReproduceConfig
from flowinv_fast.experiments.methods import METHODS, Context
from flowinv_fast.experiments.tasks import problems
from flowinv_fast.reconstruction.objectives import CSGM, MAP, MLE, AsimLikelihood, AsimProxy

CONFIG = ReproduceConfig(images=2, steps=13, restarts=3, seed=7, quick=True)
ADAM = {"objective": MAP(0.4, "image"), "strategy": "adam"}
# method: (prior, options beyond steps, seed and no progress), at value 0.4, for denoise-radial
WANTED = {
    "map": ("flow", ADAM),
    "map-latent": ("flow", {**ADAM, "objective": MAP(0.4), "lr": 0.1, "restarts": 1}),
    "map-lbfgs": ("flow", {**ADAM, "strategy": "lbfgs", "restarts": 1}),
    "csgm-gan": ("gan", {"objective": CSGM(0.4), "lr": 0.1, "restarts": 3}),
    "csgm-vae": ("vae", {"objective": CSGM(0.4), "lr": 0.1, "restarts": 3}),
    "mle-gan": ("gan", {"objective": MLE(), "lr": 0.4, "start": "found"}),
    "mle-vae": ("vae", {"objective": MLE(), "lr": 0.4, "start": "found"}),
    "asim": ("flow", {"objective": AsimLikelihood(0.4), "lr": 0.1}),
    "asim-proxy": ("flow", {"objective": AsimProxy(0.4), "lr": 0.1}),
    "asim-norm": ("flow", {"objective": AsimProxy(0.4, squared=False), "lr": 0.1}),
}


@pytest.fixture(scope="module")
def context() -> Context:
    return Context(CONFIG, load_flow("fashion-28"))


def problem(task: str):
    """The middle one."""
    return next(p for p in problems(task, CONFIG, sample_images("mnist-28")) if p.middle)


def measured(task: str) -> torch.Tensor:
    return problem(task).measurements(sample_images("fashion-28", 2), [1, 2])


@pytest.mark.parametrize("name", WANTED)
def test_options_of_a_solve(context, monkeypatch, name):
    calls = []

    def reconstruct(y, operator, prior, noise, **options):
        calls.append((prior, options))
        return SimpleNamespace(x=y, z="found")

    monkeypatch.setattr(methods, "reconstruct", reconstruct)
    y, radial = measured("denoise-radial"), problem("denoise-radial")
    answer = METHODS[name].solve(context, radial, y, 0.4)
    prior, options = calls[-1]
    which, want = WANTED[name]
    assert prior is {"flow": context.flow, **context.generators}[which]
    assert options == {**want, "steps": 13, "seed": 7, "progress": False, "throw": False}
    assert answer.x is y and answer.found.z == "found"
    if name.startswith("mle"):  # from the solution of CSGM with the same generator
        assert len(calls) == 2 and calls[0][0] is prior and calls[0][1]["objective"] == CSGM(0.3)
    else:
        assert len(calls) == 1


def test_baselines_are_told_the_noise(context):
    """Its pattern and its mean; a scaled measurement's noise is scaled, too."""
    law = problem("cs-sinusoidal")
    y, (forward, adjoint) = measured("cs-sinusoidal"), law.linear
    got = METHODS["lasso"].solve(context, law, y, 0.01).x
    want = baselines.lasso_dct(y - 0.3, forward, adjoint, (1, 28, 28), 0.01, 0.0, 13)
    torch.testing.assert_close(got, want)
    got = METHODS["wiener"].solve(context, law, y, 1.5).x
    want = baselines.wiener(y - 0.3, forward, context.samples, 1.5 * law.std, 0.0)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    assert context.samples.shape == (2000, 1, 28, 28)
    assert context.samples.min() >= 0 and context.samples.max() <= 1


@pytest.mark.parametrize("task, scale", [("digits", 2.0), ("denoise-radial", 1.0)])
def test_bm3d_is_told_the_level(context, monkeypatch, task, scale):
    calls = []
    monkeypatch.setattr(baselines, "bm3d", lambda *given: calls.append(given) or given[0])
    law, y = problem(task), measured(task)
    METHODS["bm3d"].solve(context, law, y, 0.75)
    ((image, level),) = calls
    std = law.std.square().mean().sqrt().item()
    assert abs(level - 0.75 * scale * std) < 1e-5
    torch.testing.assert_close(image, (scale * (y - law.mean)).clamp(-0.5, 1.5))


def test_where_methods_fit():
    radial, digits, bit = map(problem, ("denoise-radial", "digits", "cs-1bit"))
    fits = lambda law: {name for name, method in METHODS.items() if method.fits(law)}
    variants = {n for n in METHODS if n.startswith("map-")} - {"map-latent", "map-image"}
    assert fits(digits) - fits(radial) == variants
    sensing = problem("cs-sinusoidal")
    assert fits(sensing) - fits(radial) == {"map-image", "lasso"}
    assert "map-image" not in fits(replace(sensing, middle=False))
    assert fits(radial) - fits(bit) == {"bm3d", "wiener"} and fits(bit) - fits(radial) == {"lasso"}
    edge = fits(replace(radial, middle=False))
    assert fits(radial) - edge == {
        "map-latent", "mle-gan", "mle-vae", "asim-proxy", "asim-norm"
    }  # fmt: skip


def test_four_values_each():
    """Every tuned method gets as many trials, around a value in the middle."""
    for name, method in METHODS.items():
        assert method.name == name
        assert len(set(method.grid)) == (4 if method.parameter else 1)
    assert len({method.title for method in METHODS.values()}) == len(METHODS)
    middle = len(methods.BETAS) // 2
    assert methods.BETAS[middle] == 1.0 and methods.GAMMAS[middle] == 0.1
    for weights in (methods.BETAS, methods.GAMMAS):
        ratios = [b / a for a, b in zip(weights, weights[1:])]
        assert ratios == pytest.approx(ratios[:1] * len(ratios)) and ratios[0] > 1
