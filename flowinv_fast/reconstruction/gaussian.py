"""Where chains begin: the most probable image if the prior were Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor

from .objectives import Terms, generate, latent_size, log_noise_of
from .problem import Problem, draw
from .solvers import lbfgs

_STREAM = 1 << 32  # of the prior's draws; those of chains are below
_AT_ONCE = 64


def gaussian_start(problem: Problem, draws: int, steps: int, seed: int) -> Tensor:
    """The most probable images (B, C, H, W) under the Gaussian that draws of the prior make.

    With the mean m of n draws and the columns of F their differences to it over sqrt(n - 1), it is
    x = m + F u where u (B, n) minimises

        -log p_noise(y - f(m + F u)) + |u|^2 / 2,

    for linear f and Gaussian noise the linear minimum-mean-square estimate. By L-BFGS over u, which
    asks the operator and the noise model alone.

    Args:
        problem: its prior has latents.
        draws: n.
        steps: evaluations.
        seed: of the draws.
    """
    y, prior = problem.y, problem.prior
    size = latent_size(prior)
    with torch.no_grad():
        z = draw(y.new_zeros(draws, size), _STREAM, seed, 1.0, 0)
        images = torch.cat([generate(prior, part) for part in z.split(_AT_ONCE)])
    images = images[images.flatten(1).isfinite().all(1)]
    mean = images.mean(0)
    factor = (images - mean).flatten(1) / max(1, len(images) - 1) ** 0.5

    def of(u: Tensor) -> Tensor:
        return mean + (u @ factor).view(-1, *mean.shape)

    def evaluate(u: Tensor) -> Terms:
        log_noise = log_noise_of(problem.noise, y, problem.operator(of(u)))
        log_prior = -u.square().sum(1) / 2
        return Terms(-log_noise - log_prior, log_noise, log_prior)

    found = lbfgs(evaluate, y.new_zeros(len(y), len(images)), steps=steps)
    return of(found.best).detach()
