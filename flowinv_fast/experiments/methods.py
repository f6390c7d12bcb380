"""Every method of the paper behind one call, each with four values for its one parameter."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import baselines
from ..flows import Flow
from ..generators import load_generator
from ..reconstruction.objectives import CSGM, MLE, AsimLikelihood, AsimProxy, Objective
from ..reconstruction.reconstruct import reconstruct
from ..reconstruction.result import Reconstruction
from ..reconstruction.strategies import STRATEGIES, Strategy
from .config import ReproduceConfig
from .signals import SIGNALS
from .tasks import Problem, rms


@dataclass(frozen=True)
class Answer:
    """Images (B, C, H, W), and the solve that found them, for methods that minimise a loss."""

    x: Tensor
    found: Reconstruction | None = None


@dataclass(frozen=True)
class Method:
    """One method.

    Args:
        name: in tables. title: for readers.
        parameter: the name of what is tuned, "" if nothing is.
        grid: its values.
        solve: (context, problem, y, value) to Answer.
        fits: whether the method runs on a problem.
    """

    name: str
    title: str
    parameter: str
    grid: tuple[float, ...]
    solve: Callable[[Context, Problem, Tensor, float], Answer]
    fits: Callable[[Problem], bool] = lambda problem: True


class Context:
    """What the methods share: the configuration, and the priors of its signal, loaded once."""

    def __init__(self, config: ReproduceConfig, flow: Flow):
        self.config, self.flow = config, flow.freeze()
        names = SIGNALS[config.signal].generators
        self.generators = dict(zip(("gan", "vae"), map(load_generator, names)))

    @functools.cached_property
    def samples(self) -> Tensor:
        """Draws of the flow, the Wiener filter's prior."""
        return self.flow.sample(2000, 1.0, torch.Generator().manual_seed(0)).clamp(0, 1)

    def reconstruct(self, problem: Problem, y: Tensor, prior: Any, **options) -> Answer:
        settings = {"steps": self.config.steps, "seed": self.config.seed, "progress": False}
        found = reconstruct(
            y, problem.operator, prior, problem.noise, throw=False, **{**settings, **options}
        )
        return Answer(found.x, found)


def _map(space: str | None = None, strategy: str | None = None, **changes: Any) -> Callable:
    """MAP with the options of the problem and these changes.

    "adam" leaves a tempered likelihood as it is: it takes the place of other solvers and stages.
    """

    def solve(context: Context, problem: Problem, y: Tensor, beta: float) -> Answer:
        options = {**problem.ours, **changes}
        goal = replace(options.pop("objective"), beta=beta)
        if space is not None:
            goal = replace(goal, space=space)
        tempers = strategy == "adam" and isinstance(options.get("strategy"), Strategy)
        if strategy is not None and not tempers:
            options["strategy"] = strategy
        return context.reconstruct(problem, y, context.flow, objective=goal, **options)

    return solve


def _flow_method(objective: Callable[[float], Objective]) -> Callable:
    """A method of Asim et al. with the flow, by its weight."""

    def solve(context: Context, problem: Problem, y: Tensor, value: float) -> Answer:
        return context.reconstruct(problem, y, context.flow, lr=0.1, objective=objective(value))

    return solve


def _csgm(kind: str) -> Callable:
    def solve(context: Context, problem: Problem, y: Tensor, lam: float) -> Answer:
        return context.reconstruct(
            problem, y, context.generators[kind], objective=CSGM(lam), lr=0.1,
            restarts=context.config.restarts,
        )  # fmt: skip

    return solve


def _mle(kind: str) -> Callable:
    """From CSGM's solution: far from any image a noise flow's density has no slope to follow."""

    def solve(context: Context, problem: Problem, y: Tensor, lr: float) -> Answer:
        start = _csgm(kind)(context, problem, y, 0.3).found.z
        return context.reconstruct(
            problem, y, context.generators[kind], objective=MLE(), lr=lr, start=start
        )

    return solve


def _bm3d(context: Context, problem: Problem, y: Tensor, factor: float) -> Answer:
    # What is left of the noise after its mean is taken off, on the scale of the image.
    scale = float(problem.preview(torch.ones_like(y[:1])).mean())
    centred = (problem.preview(y) - scale * problem.mean).clamp(-0.5, 1.5)
    return Answer(baselines.bm3d(centred, factor * scale * rms(problem.std)))


def _lasso(context: Context, problem: Problem, y: Tensor, alpha: float) -> Answer:
    forward, adjoint = problem.linear
    shape = context.flow.shape
    steps = context.config.steps
    return Answer(baselines.lasso_dct(y, forward, adjoint, shape, alpha, problem.mean, steps))


def _wiener(context: Context, problem: Problem, y: Tensor, factor: float) -> Answer:
    forward, _ = problem.linear
    return Answer(baselines.wiener(y, forward, context.samples, factor * problem.std, problem.mean))


_generated = lambda problem: bool(problem.signal.generators)
_one_bit = lambda problem: problem.task == "cs-1bit"
_sensed = lambda problem: problem.task.startswith("cs-")
_middle = lambda problem: problem.middle
_digits = lambda problem: problem.task == "digits"

METHODS = {
    method.name: method
    for method in (
        Method("noisy", "measurement", "", (1.0,), lambda c, p, y, v: Answer(p.preview(y))),
        Method("map", "ours: MAP", "beta", (1.0, 0.5, 0.25, 0.1), _map()),
        Method("map-latent", "ours: MAP, latent space", "beta", (1.0, 0.5, 0.25, 0.1),
               _map("latent", "adam", lr=0.1, restarts=1), _middle),
        Method("map-image", "ours: MAP, image space", "beta", (1.0, 0.5, 0.25, 0.1),
               _map("image", "adam"),
               lambda problem: problem.middle and problem.task == "cs-sinusoidal"),
        *(
            Method(f"map-{name}", f"ours: MAP, strategy {name}", "", (1.0,),
                   _map(strategy=name, restarts=1), _digits)
            for name in STRATEGIES
        ),
        Method("mle-gan", "MLE, DCGAN", "lr", (0.01, 0.03, 0.1, 0.3), _mle("gan"),
               lambda problem: _middle(problem) and _generated(problem)),
        Method("mle-vae", "MLE, VAE", "lr", (0.01, 0.03, 0.1, 0.3), _mle("vae"),
               lambda problem: _middle(problem) and _generated(problem)),
        Method("csgm-gan", "CSGM, DCGAN", "lam", (0.1, 0.3, 1.0, 3.0), _csgm("gan"), _generated),
        Method("csgm-vae", "CSGM, VAE", "lam", (0.1, 0.3, 1.0, 3.0), _csgm("vae"), _generated),
        Method("asim", "Asim 2019, likelihood", "gamma", (0.003, 0.03, 0.1, 0.3),
               _flow_method(AsimLikelihood)),
        Method("asim-proxy", "Asim 2019, proxy ||z||^2", "gamma", (0.03, 0.1, 0.3, 1.0),
               _flow_method(AsimProxy), _middle),
        Method("asim-norm", "Asim 2019, proxy ||z||", "gamma", (0.3, 1.0, 3.0, 10.0),
               _flow_method(lambda gamma: AsimProxy(gamma, squared=False)), _middle),
        Method("bm3d", "BM3D", "times the noise level", (0.5, 0.75, 1.0, 1.5), _bm3d,
               lambda problem: not _sensed(problem)),
        Method("lasso", "LASSO, DCT", "alpha", (1e-4, 1e-3, 3e-3, 1e-2), _lasso, _sensed),
        Method("wiener", "Wiener", "times the noise level", (0.5, 1.0, 1.5, 3.0), _wiener,
               lambda problem: not _one_bit(problem) and not problem.signal.large),
    )
}  # fmt: skip
OURS = "map"
# Of the sensitivity task: the same factors around the default of either weight.
BETAS = tuple(4.0**k for k in range(-2, 3))
GAMMAS = tuple(AsimLikelihood().gamma * beta for beta in BETAS)


def chosen_methods(problem: Problem) -> list[Method]:
    """The methods that run on a problem; BM3D where deepinv is installed."""
    if problem.task == "sensitivity":
        return [METHODS["map"], METHODS["asim"]]
    if problem.task == "ood":
        names = ("noisy", "map", "asim", "csgm-gan", "bm3d", "wiener")
    else:
        names = tuple(METHODS)
    able = all(importlib.util.find_spec(name) for name in ("deepinv", "ptwt"))
    return [METHODS[n] for n in names if METHODS[n].fits(problem) and (n != "bm3d" or able)]
