"""The losses of METHOD.md, batched: one value per image.

Each builder returns ``evaluate(variable) -> Terms``, where the variable is a batch of latents
z (B, N) or of images x (B, C, H, W). Equation numbers are those of Whang, Lei, Dimakis (2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from .. import ops


class Terms(NamedTuple):
    """A loss and what it is made of; each (B,). A term the method does not have is zero."""

    loss: Tensor
    log_noise: Tensor
    log_prior: Tensor


Evaluate = Callable[[Tensor], Terms]


@dataclass(frozen=True)
class Method:
    """A row of the table of losses, with the defaults that measured best.

    Args:
        space: "latent" or "image": what is optimised over.
        needs: which of noise, density (a prior with log-density) the loss uses.
        weight: its regulariser: "beta", "gamma", "lam" or None.
        steps, lr, init: defaults.
    """

    space: str
    needs: tuple[str, ...]
    weight: str | None
    steps: int
    lr: float
    init: str


METHODS = {
    "map_latent": Method("latent", ("noise", "density"), "beta", 300, 0.05, "measurement"),
    "map_image": Method("image", ("noise", "density"), "beta", 200, 0.1, "measurement"),
    "mle": Method("latent", ("noise",), None, 500, 0.05, "draw"),
    "csgm": Method("latent", (), "lam", 500, 0.05, "draw"),
    "asim_likelihood": Method("latent", ("density",), "gamma", 300, 0.05, "measurement"),
    "asim_proxy": Method("latent", (), "gamma", 300, 0.05, "zeros"),
}
INITS = ("measurement", "zeros", "draw")
DEFAULT_WEIGHT = {"beta": 1.0, "gamma": 0.1, "lam": 0.1}


def log_noise_of(noise: Any, y: Tensor, fx: Tensor) -> Tensor:
    """log p_noise(y - fx), (B,); Gaussian-type noises score it in one pass."""
    if hasattr(noise, "log_likelihood"):
        return noise.log_likelihood(y, fx)
    value = noise.log_prob(y - fx)
    return value.flatten(1).sum(1) if value.dim() > 1 else value


def latent_size(prior: Any) -> int:
    """Numbers in a latent of a flow (N = C H W), or of a generator with ``latent_dim``."""
    return prior.latent_dim if hasattr(prior, "latent_dim") else math.prod(prior.shape)


def generate(prior: Any, z: Tensor) -> Tensor:
    """G(z) of a flow, or of a generator without a density (a GAN, a VAE's decoder)."""
    return prior.decode(z)[0] if hasattr(prior, "decode") else prior(z)


def overshoot(prior: Any, log_prior: Tensor) -> Tensor | None:
    """Where log p is more than 0.05 nats a pixel above every held-out image's, (B,).

    None for a prior whose ``info`` has no "log_prob_peak", the largest of those.
    """
    peak = getattr(prior, "info", {}).get("log_prob_peak")
    return None if peak is None else log_prior > peak + 0.05 * math.prod(prior.shape)


def _squared_error(y: Tensor, fx: Tensor) -> Tensor:
    return (y - fx).square().flatten(1).sum(1)


def map_latent(y: Tensor, operator: Any, prior: Any, noise: Any, beta: float | Tensor) -> Evaluate:
    """-log p_noise(y - f(G(z))) - beta log p_G(G(z)) over z (eq. 4 and 10).

    log p_G(G(z)) = log N(z; 0, I) - log|det dG/dz|: one decode gives both terms.
    """

    def evaluate(z: Tensor) -> Terms:
        x, logdet = prior.decode(z)
        log_prior = ops.standard_normal_log_prob(z) - logdet
        log_noise = log_noise_of(noise, y, operator(x))
        return Terms(-log_noise - beta * log_prior, log_noise, log_prior)

    return evaluate


def map_image(y: Tensor, operator: Any, prior: Any, noise: Any, beta: float | Tensor) -> Evaluate:
    """-log p_noise(y - f(x)) - beta log p_G(x) over x (eq. 3 and 10)."""

    def evaluate(x: Tensor) -> Terms:
        log_prior = prior.log_prob(x)
        log_noise = log_noise_of(noise, y, operator(x))
        return Terms(-log_noise - beta * log_prior, log_noise, log_prior)

    return evaluate


def mle(y: Tensor, operator: Any, prior: Any, noise: Any) -> Evaluate:
    """-log p_noise(y - f(G(z))) over z (eq. 5)."""

    def evaluate(z: Tensor) -> Terms:
        log_noise = log_noise_of(noise, y, operator(generate(prior, z)))
        return Terms(-log_noise, log_noise, log_noise.new_zeros(log_noise.shape))

    return evaluate


def csgm(y: Tensor, operator: Any, prior: Any, lam: float | Tensor) -> Evaluate:
    """||y - f(G(z))||^2 + lam ||z||^2 over z (eq. 6; Bora et al., 2017)."""

    def evaluate(z: Tensor) -> Terms:
        error = _squared_error(y, operator(generate(prior, z)))
        size = z.square().sum(1)
        return Terms(error + lam * size, -error, -size)

    return evaluate


def asim_likelihood(y: Tensor, operator: Any, prior: Any, gamma: float | Tensor) -> Evaluate:
    """||y - f(G(z))||^2 - gamma log p_G(G(z)) over z (eq. 7; Asim et al., 2019).

    Equals 2 s^2 times ``map_latent`` with Gaussian noise of standard deviation s and
    beta = gamma / (2 s^2), up to a constant.
    """

    def evaluate(z: Tensor) -> Terms:
        x, logdet = prior.decode(z)
        log_prior = ops.standard_normal_log_prob(z) - logdet
        error = _squared_error(y, operator(x))
        return Terms(error - gamma * log_prior, -error, log_prior)

    return evaluate


def asim_proxy(
    y: Tensor, operator: Any, prior: Any, gamma: float | Tensor, squared: bool = True
) -> Evaluate:
    """||y - f(G(z))||^2 + gamma ||z||^2 over z (eq. 8), or gamma ||z|| with ``squared=False``."""

    def evaluate(z: Tensor) -> Terms:
        error = _squared_error(y, operator(generate(prior, z)))
        size = z.square().sum(1)
        size = size if squared else (size + 1e-12).sqrt()
        return Terms(error + gamma * size, -error, -size)

    return evaluate
