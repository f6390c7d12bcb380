"""Where chains begin: likely images if the prior were Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor

from .objectives import Terms, generate, latent_size, log_noise_of
from .problem import Problem, draw
from .solvers import lbfgs

_STREAM = 1 << 32  # of the prior's draws, and those that follow: of starts apart
_AT_ONCE = 64


def gaussian_starts(
    problem: Problem, count: int, apart: float, draws: int, steps: int, seed: int
) -> Tensor:
    """Images that would be likely if the prior were the Gaussian that its draws make.

    With the mean m of n draws of the prior and the columns of F their differences to it over
    sqrt(n - 1), it is x = m + F u where u (n,) minimises

        -log p_noise(y - f(m + F u)) + |u - v|^2 / 2,   v a draw of N(0, a^2 I), where it begins.

    With a = 1 what y does not tell varies as in the prior; a = 0 is the most probable image. By
    L-BFGS, which asks the operator and the noise model alone.

    Args:
        problem: its prior has latents.
        count: K, how many for each image.
        apart: a.
        draws: n.
        steps: evaluations.
        seed: of the draws.
    Returns:
        (K B, C, H, W).
    """
    y, prior = problem.y, problem.prior
    size = latent_size(prior)
    with torch.no_grad():
        z = draw(y.new_zeros(draws, size), _STREAM, seed, 1.0, 0)
        images = torch.cat([generate(prior, part) for part in z.split(_AT_ONCE)])
    images = images[images.flatten(1).isfinite().all(1)]
    mean = images.mean(0)
    factor = (images - mean).flatten(1) / max(1, len(images) - 1) ** 0.5

    size = len(images)

    def of(u: Tensor) -> Tensor:
        return mean + (u @ factor).view(-1, *mean.shape)

    def start(v: Tensor) -> Tensor:
        def evaluate(u: Tensor) -> Terms:
            log_noise = log_noise_of(problem.noise, y, problem.operator(of(u)))
            log_prior = -(u - v).square().sum(1) / 2
            return Terms(-log_noise - log_prior, log_noise, log_prior)

        found = lbfgs(evaluate, v, steps=steps)
        if found.interrupted:  # which it sees to itself
            raise KeyboardInterrupt
        return of(found.best).detach()

    empty = y.new_zeros(len(y), size)
    if apart == 0:
        return start(empty).repeat(count, 1, 1, 1)
    streams = (_STREAM + 1 + chain for chain in range(count))
    return torch.cat([start(draw(empty, s, seed, apart, problem.first)) for s in streams])
