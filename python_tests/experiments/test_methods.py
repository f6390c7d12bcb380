"""Every method behind its call: which options, which start, which baseline."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from flowinv_fast import baselines, load_flow
from flowinv_fast.data import sample_images
from flowinv_fast.experiments import methods
from flowinv_fast.experiments.config import ReproduceConfig
from flowinv_fast.experiments.datasets import DATASETS
from flowinv_fast.experiments.methods import METHODS, Context, chosen_methods
from flowinv_fast.experiments.task import Setting
from flowinv_fast.experiments.tasks import shipped
from flowinv_fast.reconstruction.objectives import CSGM, MAP, MLE, AsimLikelihood, AsimProxy

CONFIG = ReproduceConfig(images=2, steps=13, restarts=3, seed=7, quick=True)
IMAGE, LATENT = MAP(0.4, space="image"), MAP(0.4, space="latent")
ADAM = {"strategy": "adam"}
# method: prior, objective, options beyond steps and seed; at 0.4, for denoise-radial
MAPS, GUESS = {**ADAM, "start": "measurement"}, {"start": "measurement"}
DRAWN = {**ADAM, "lr": 0.1, "start": "draw", "restarts": 3}
WANTED = {
    "map": ("flow", IMAGE, {**MAPS, "lr": 0.1}),
    "map-latent": ("flow", LATENT, {**MAPS, "lr": 0.1, "restarts": 1}),
    "map-lbfgs": ("flow", IMAGE, {**GUESS, "strategy": "lbfgs", "lr": 0.1, "restarts": 1}),
    "map-annealed": ("flow", IMAGE, {**GUESS, "strategy": "annealed", "lr": 0.2, "restarts": 1}),
    "csgm-gan": ("gan", CSGM(0.4), DRAWN),
    "csgm-vae": ("vae", CSGM(0.4), DRAWN),
    "mle-gan": ("gan", MLE(), {**ADAM, "lr": 0.4, "start": "found"}),
    "mle-vae": ("vae", MLE(), {**ADAM, "lr": 0.4, "start": "found"}),
    "asim": ("flow", AsimLikelihood(0.4), {**MAPS, "lr": 0.1}),
    "asim-proxy": ("flow", AsimProxy(0.4), {**ADAM, "start": "zeros", "lr": 0.1}),
    "asim-norm": ("flow", AsimProxy(0.4, squared=False), {**ADAM, "start": "zeros", "lr": 0.1}),
}


@pytest.fixture(scope="module")
def context() -> Context:
    return Context(CONFIG, load_flow("fashion-28"))


def representative(task: str) -> Setting:
    return next(s for s in shipped(task, CONFIG.quick, CONFIG.seed) if s.representative)


def measured(task: str) -> torch.Tensor:
    return representative(task).measurements(sample_images("fashion-28", 2), [1, 2])


@pytest.mark.parametrize("name", WANTED)
def test_options_of_a_solve(context, monkeypatch, name):
    calls = []

    def solved(y, operator, prior, noise, **options):
        calls.append((prior, options))
        return SimpleNamespace(x=y, z="found")

    monkeypatch.setattr(methods, "solved", solved)
    y, radial = measured("denoise-radial"), representative("denoise-radial")
    answer = METHODS[name].solve(context, radial, y, 0.4)
    prior, options = calls[-1]
    which, objective, want = WANTED[name]
    assert prior is {"flow": context.flow, **context.generators}[which]
    want = {"objective": objective, **want}
    assert options == {**want, "steps": 13, "seed": 7, "throw": False}
    assert answer.x is y and answer.found.z == "found"
    if name.startswith("mle"):  # from the solution of CSGM with the same generator
        assert len(calls) == 2 and calls[0][0] is prior and calls[0][1]["objective"] == CSGM(0.3)
    else:
        assert len(calls) == 1


def test_baselines_are_told_the_noise(context):
    """Its pattern and its mean; a scaled measurement's noise is scaled, too."""
    setting = representative("cs-sinusoidal")
    y, (forward, adjoint) = measured("cs-sinusoidal"), setting.linear
    got = METHODS["lasso"].solve(context, setting, y, 0.01).x
    want = baselines.lasso_dct(y - 0.3, forward, adjoint, (1, 28, 28), 0.01, 0.0, 13)
    torch.testing.assert_close(got, want)
    got = METHODS["wiener"].solve(context, setting, y, 1.5).x
    want = baselines.wiener(y - 0.3, forward, context.samples, 1.5 * setting.std, 0.0)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    assert context.samples.shape == (2000, 1, 28, 28)
    assert context.samples.min() >= 0 and context.samples.max() <= 1


@pytest.mark.parametrize("task, scale", [("digits", 2.0), ("denoise-radial", 1.0)])
def test_bm3d_is_told_the_level(context, monkeypatch, task, scale):
    calls = []
    monkeypatch.setattr(baselines, "bm3d", lambda *given: calls.append(given) or given[0])
    setting, y = representative(task), measured(task)
    METHODS["bm3d"].solve(context, setting, y, 0.75)
    ((image, level),) = calls
    std = setting.std.square().mean().sqrt().item()
    assert abs(level - 0.75 * scale * std) < 1e-5
    torch.testing.assert_close(image, (scale * (y - setting.mean)).clamp(-0.5, 1.5))


def test_where_methods_run(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)  # BM3D's packages
    radial, digits, bit = map(representative, ("denoise-radial", "digits", "cs-1bit"))
    fits = lambda setting: {method.name for method in chosen_methods(setting)}
    variants = {n for n in METHODS if n.startswith("map-")} - {"map-latent", "map-image"}
    assert fits(digits) - fits(radial) == variants
    sensing = representative("cs-sinusoidal")
    assert fits(sensing) - fits(radial) == {"map-image", "lasso"}
    assert "map-image" not in fits(replace(sensing, representative=False))
    assert fits(radial) - fits(bit) == {"bm3d", "wiener"} and fits(bit) - fits(radial) == {"lasso"}
    edge = fits(replace(radial, representative=False))
    variants = {"map-latent", "mle-gan", "mle-vae", "asim-proxy", "asim-norm"}
    assert fits(radial) - edge == variants
    colour = fits(replace(radial, dataset=DATASETS["photo-64"]))
    assert fits(radial) - colour == {"mle-gan", "mle-vae", "csgm-gan", "csgm-vae", "wiener"}


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
