"""Named ways to spend the steps of a solve; docs/optimisation.md compares them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Strategy:
    """A plan for the steps of one start.

    Args:
        latent: share of the steps that "map_image" first takes in latent space, from whose
            solution it goes on with a fifth of the step size.
        lbfgs: share of the steps that L-BFGS takes at the end.
        smoothing: first standard deviation of the noise on the variable while annealing.
        tempering: first weight of log p_noise while annealing.
        rate: factor on the method's default step size.
    """

    latent: float = 0.0
    lbfgs: float = 0.0
    smoothing: float = 0.0
    tempering: float = 1.0
    rate: float = 1.0


STRATEGIES = {
    "adam": Strategy(),
    "lbfgs": Strategy(lbfgs=0.25),
    "latent-first": Strategy(latent=0.5),
    "smoothed": Strategy(smoothing=0.1),
    "tempered": Strategy(tempering=0.3),
    "annealed": Strategy(smoothing=0.1, tempering=0.3, rate=2.0),
}
