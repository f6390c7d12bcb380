"""Which level of noise a prior is taken at, and how fine the noise of a measurement is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .objectives import generate, has_latents, latent_size, log_noise_of
from .problem import Problem, draw
from .trial import examine

_PROBES, _STEP = 8, 1e-2
_STREAM = (1 << 32) + (1 << 31)  # of the probes


def smoothing_of(prior: Any) -> float:
    """Std of the noise on the images that a flow, frozen or not, is the density of; else 0.

    >>> import flowinv_fast as ff
    >>> smoothing_of(ff.load_flow("fashion-28")), smoothing_of(ff.load_flow("photo-64-small"))
    (0.08, 0.0)
    """
    config = getattr(prior, "config", None)
    if getattr(config, "support", None) != "unbounded":
        return 0.0
    return float(getattr(config, "smoothing", 0.0))


def levels_of(prior: Any) -> tuple[float, float] | None:
    """Lowest and highest level of a flow of levels, or of patches of one; None for any other prior.

    >>> levels_of(object()) is None  # also where another library has something of that name
    True
    """
    return prior.levels if hasattr(prior, "level_is_given") else None


def has_free_level(prior: Any) -> bool:
    """Whether a prior is a flow of levels whose level no one has fixed by ``at``."""
    return levels_of(prior) is not None and not prior.level_is_given


def noise_std(function: str, problem: Problem) -> float:
    """Std of the noise in units of the image; infinite over latents, or for no images.

    t = c^(-1/2), c the mean curvature of -log p_noise(y - f(x)) over pixels at an image of the
    prior, by Hutchinson's estimate: what an image measured by itself, with white noise, would have.
    Of several images that of the finest noise; infinite where the law does not curve down.

    Args:
        function: the public function, for errors.
        problem: looked at first (``trial.examine``).
    """
    if not len(problem.y):
        return math.inf
    examine(function, problem)
    if problem.objective.space != "image":
        return math.inf
    x = _somewhere(problem)
    curvature = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for probe in range(_PROBES):
        signs = draw(x, _STREAM + probe, 0, 1.0, 0).sign()
        ahead, behind = (_slope(problem, x + step * signs) for step in (_STEP, -_STEP))
        curvature -= ((ahead - behind) * signs).double().flatten(1).mean(1) / (2 * _STEP * _PROBES)
    most = float(curvature.nan_to_num(0.0, 0.0, 0.0).max())
    return most**-0.5 if most > 0 else math.inf


def at_level(problem: Problem, std: float) -> Problem:
    """The problem with a flow of levels, whose level is free, at the one that fits noise of std.

    A prior that is smoother than the noise blurs what is measured, one that is finer has more
    modes: the level is that of the noise, no lower than the flow has it and no higher than its
    smoothing.
    """
    prior: Any = problem.prior
    if not has_free_level(prior):
        return problem
    return replace(problem, prior=prior.at(min(smoothing_of(prior), max(prior.levels[0], std))))


def _somewhere(problem: Problem) -> Tensor:
    """Images of the prior, the same for each measurement."""
    prior, y = problem.prior, problem.y
    if has_latents(prior):
        with torch.no_grad():
            x = generate(prior, y.new_zeros(1, latent_size(prior)))
        return x.expand(len(y), *x.shape[1:]).clone()
    return problem.images(problem.first_variable(0, 1, 0))


def _slope(problem: Problem, x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        value = log_noise_of(problem.noise, problem.y, problem.operator(x)).sum()
        (gradient,) = torch.autograd.grad(value, x, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient
