"""Every method of the paper behind one call, each with four values for its one parameter."""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import baselines
from ..generators import load_generator
from ..reconstruction.objectives import CSGM, MAP, MLE, AsimLikelihood, AsimProxy, Objective
from ..reconstruction.result import Reconstruction
from ..reconstruction.strategies import STRATEGIES, Strategy
from .datasets import DATASETS, Dataset
from .solving import solved

if TYPE_CHECKING:
    from ..flows import Flow
    from .config import ReproduceConfig
    from .task import Setting


@dataclass(frozen=True)
class Answer:
    """Images (B, C, H, W), and the solve that found them, for methods that minimise a loss."""

    x: Tensor
    found: Reconstruction | None = None


Solve = Callable[["Context", "Setting", Tensor, float], Answer]


def _anything(dataset: Dataset) -> bool:
    return True


def _has_generators(dataset: Dataset) -> bool:
    return bool(dataset.generators)


def _is_small(dataset: Dataset) -> bool:
    return not dataset.large


_UNFIT: dict[Callable[[Dataset], bool], str] = {
    _has_generators: "there are no generators for these images",
    _is_small: "a covariance of images of this size does not fit",
}


@dataclass(frozen=True)
class Method:
    """One method.

    Args:
        name: in files and results.
        title: for readers.
        parameter: the name of what is tuned, "" if nothing is.
        grid: its values.
        solve: context, setting, measurements (B, ...) and a value to the answer.
        fits: whether the method runs on a data set.
        prior: what it takes its images from: "flow", or a name in ``Context.generators``; "" for
            none.
        variant: run at the representative setting of a task only.
        weights: the values that a task without tuning runs, around the method's default.
    """

    name: str
    title: str
    parameter: str
    grid: tuple[float, ...]
    solve: Solve
    fits: Callable[[Dataset], bool] = _anything
    prior: str = "flow"
    variant: bool = False
    weights: tuple[float, ...] = field(default=(), repr=False)


class Context:
    """What the methods share: the configuration, and the priors of its data set, loaded once."""

    def __init__(self, config: ReproduceConfig, flow: Flow) -> None:
        self.config, self.unfrozen, self.flow = config, flow, flow.freeze()
        names = DATASETS[config.dataset].generators
        self.generators = dict(zip(("gan", "vae"), map(load_generator, names)))

    @functools.cached_property
    def samples(self) -> Tensor:
        """2,000 draws of the flow, the Wiener filter's prior."""
        return self.flow.sample(2000, 1.0, torch.Generator().manual_seed(0)).clamp(0, 1)

    def reconstruct(
        self, setting: Setting, y: Tensor, prior: Any, objective: Objective, **options: Any
    ) -> Answer:
        """``solved`` with the steps and the seed of the configuration."""
        common = {"steps": self.config.steps, "seed": self.config.seed, "throw": False}
        given = {"objective": objective, "strategy": "adam", **common, **options}
        found = solved(y, setting.operator, prior, setting.noise, **given)
        return Answer(found.x, found)


_STEP_SIZE = {"latent": 0.05, "image": 0.1}  # of MAP, before the factor of the strategy


def map_options(setting: Setting, beta: float = 1.0, **changes: Any) -> dict[str, Any]:
    """Options of ``solved`` for MAP at a setting, with changes; "space" is the objective's."""
    options = {"space": "latent", "strategy": "adam", "start": "measurement"}
    options = {**options, **setting.map_settings, **changes}
    space, strategy = options.pop("space"), options["strategy"]
    chosen = STRATEGIES[strategy] if isinstance(strategy, str) else strategy
    lr = _STEP_SIZE[space] * chosen.stages[0].rate
    return {"objective": MAP(beta, space=space), "lr": lr, **options}


def _map(**changes: Any) -> Solve:
    def solve(context: Context, setting: Setting, y: Tensor, beta: float) -> Answer:
        options = map_options(setting, beta, **changes)
        return context.reconstruct(setting, y, context.flow, **options)

    return solve


def _map_latent(context: Context, setting: Setting, y: Tensor, beta: float) -> Answer:
    """MAP over latents by Adam alone, or by a strategy that the setting has varied itself."""
    own = setting.map_settings.get("strategy")
    strategy = own if isinstance(own, Strategy) else "adam"
    return _map(space="latent", strategy=strategy, lr=0.1, restarts=1)(context, setting, y, beta)


def _asim(objective: Callable[[float], Objective], start: str) -> Solve:
    """A method of Asim et al. with the flow, by its weight."""

    def solve(context: Context, setting: Setting, y: Tensor, gamma: float) -> Answer:
        options = {"lr": 0.1, "start": start}
        return context.reconstruct(setting, y, context.flow, objective(gamma), **options)

    return solve


def _csgm(kind: str) -> Solve:
    def solve(context: Context, setting: Setting, y: Tensor, lam: float) -> Answer:
        options = {"lr": 0.1, "start": "draw", "restarts": context.config.restarts}
        return context.reconstruct(setting, y, context.generators[kind], CSGM(lam), **options)

    return solve


def _mle(kind: str) -> Solve:
    """From CSGM's solution: far from any image a noise flow's density has no slope to follow."""

    def solve(context: Context, setting: Setting, y: Tensor, lr: float) -> Answer:
        start = _csgm(kind)(context, setting, y, 0.3).found
        assert start is not None
        prior = context.generators[kind]
        return context.reconstruct(setting, y, prior, MLE(), lr=lr, start=start.z)

    return solve


def _noisy(context: Context, setting: Setting, y: Tensor, value: float) -> Answer:
    return Answer(setting.naive(y))


def _bm3d(context: Context, setting: Setting, y: Tensor, factor: float) -> Answer:
    # What is left of the noise after its mean is taken off, on the scale of the image.
    scale = float(setting.naive(torch.ones_like(y[:1])).mean())
    centred = (setting.naive(y) - scale * setting.mean).clamp(-0.5, 1.5)
    return Answer(baselines.bm3d(centred, factor * scale * rms(setting.std)))


def _lasso(context: Context, setting: Setting, y: Tensor, alpha: float) -> Answer:
    forward, adjoint = setting.linear
    shape, steps = context.flow.shape, context.config.steps
    return Answer(baselines.lasso_dct(y, forward, adjoint, shape, alpha, setting.mean, steps))


def _wiener(context: Context, setting: Setting, y: Tensor, factor: float) -> Answer:
    forward, _ = setting.linear
    std, mean = factor * setting.std, setting.mean
    return Answer(baselines.wiener(y, forward, context.samples, std, mean))


def rms(std: Tensor) -> float:
    """One number for a pattern of standard deviations."""
    return math.sqrt(float(std.double().square().mean()))


# --- the list -------------------------------------------------------------------------------------

MAP_METHOD = "map"
# Of a task without tuning: the same factors around the default of either weight.
USUAL = {"beta": 1.0, "gamma": 0.1}
BETAS = tuple(USUAL["beta"] * 4.0**k for k in range(-2, 3))
GAMMAS = tuple(USUAL["gamma"] * 4.0**k for k in range(-2, 3))
_BETA = (1.0, 0.5, 0.25, 0.1)
_LAM = (0.1, 0.3, 1.0, 3.0)
_LR = (0.01, 0.03, 0.1, 0.3)
_FACTOR = "times the noise level"


def _variant(name: str, title: str, parameter: str, grid: tuple, solve: Solve) -> Method:
    return Method(name, title, parameter, grid, solve, variant=True)


def _strategy(name: str) -> Method:
    title = f"ours: MAP, strategy {name}"
    return _variant(f"map-{name}", title, "", (1.0,), _map(strategy=name, restarts=1))


def _of_generator(kind: str, title: str) -> tuple[Method, Method]:
    common: dict[str, Any] = {"fits": _has_generators, "prior": kind}
    mle = Method(f"mle-{kind}", f"MLE, {title}", "lr", _LR, _mle(kind), variant=True, **common)
    csgm = Method(f"csgm-{kind}", f"CSGM, {title}", "lam", _LAM, _csgm(kind), **common)
    return mle, csgm


_IMAGE = _map(space="image", strategy="adam")
_NORM = _asim(lambda gamma: AsimProxy(gamma, squared=False), "zeros")
_LEAST = (1e-4, 1e-3, 3e-3, 1e-2)

METHODS = {
    method.name: method
    for method in (
        Method("noisy", "measurement", "", (1.0,), _noisy, prior=""),
        Method(MAP_METHOD, "ours: MAP", "beta", _BETA, _map(), weights=BETAS),
        _variant("map-latent", "ours: MAP, latent space", "beta", _BETA, _map_latent),
        _variant("map-image", "ours: MAP, image space", "beta", _BETA, _IMAGE),
        *map(_strategy, STRATEGIES),
        *_of_generator("gan", "DCGAN"),
        *_of_generator("vae", "VAE"),
        Method(
            "asim",
            "Asim 2019, likelihood",
            "gamma",
            (0.003, 0.03, 0.1, 0.3),
            _asim(AsimLikelihood, "measurement"),
            weights=GAMMAS,
        ),
        _variant(
            "asim-proxy",
            "Asim 2019, proxy ||z||^2",
            "gamma",
            (0.03, 0.1, 0.3, 1.0),
            _asim(AsimProxy, "zeros"),
        ),
        _variant("asim-norm", "Asim 2019, proxy ||z||", "gamma", (0.3, 1.0, 3.0, 10.0), _NORM),
        Method("bm3d", "BM3D", _FACTOR, (0.5, 0.75, 1.0, 1.5), _bm3d, prior=""),
        Method("lasso", "LASSO, DCT", "alpha", _LEAST, _lasso, prior=""),
        Method("wiener", "Wiener", _FACTOR, (0.5, 1.0, 1.5, 3.0), _wiener, _is_small),
    )
}
STRATEGY_METHODS = tuple(f"map-{name}" for name in STRATEGIES)


def chosen_methods(setting: Setting) -> list[Method]:
    """The methods that run at a setting."""
    without = left_out(setting)
    methods = [METHODS[name] for name in setting.methods if name not in without]
    return [method for method in methods if setting.representative or not method.variant]


def left_out(setting: Setting) -> dict[str, str]:
    """Names of a setting's methods that cannot run here, each with the reason in words."""
    reasons = {
        name: f"not for {setting.dataset.name}: {_UNFIT.get(METHODS[name].fits, 'it does not fit')}"
        for name in setting.methods
        if not METHODS[name].fits(setting.dataset)
    }
    missing = missing_packages("deepinv", "ptwt")
    if "bm3d" in setting.methods and missing:
        reasons["bm3d"] = f"{missing}: pip install 'flowinv_fast[baselines]'"
    return reasons


def missing_packages(*names: str) -> str:
    """Which of these packages are not installed, in words; "" if all are."""
    gone = [name for name in names if importlib.util.find_spec(name) is None]
    return f"{' and '.join(gone)} {'are' if len(gone) > 1 else 'is'} not installed" if gone else ""
