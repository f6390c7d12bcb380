"""Beyond a point estimate: Theorem 4.1's bound at a reconstruction, and posterior samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .._base.errors import is_whole, require
from . import checks as check
from . import objectives
from .objectives import log_noise_of
from .problem import freeze


@dataclass(frozen=True)
class PosteriorSamples:
    """Draws from p(x | y).

    Attributes:
        x: (S, B, C, H, W). mean, std: per pixel over the draws, (B, C, H, W).
        acceptance: share of accepted proposals after warm-up, (B,); near 0.57 when well tuned.
    """

    x: Tensor
    mean: Tensor
    std: Tensor
    acceptance: Tensor


def sample_posterior(
    y: Tensor,
    operator: Any,
    prior: Any,
    noise: Any,
    samples: int = 32,
    *,
    init: Tensor | None = None,
    warm_up: int = 400,
    thin: int = 10,
    tempering: float = 0.01,
    seed: int = 0,
    progress: bool = False,
) -> PosteriorSamples:
    """Metropolis-adjusted Langevin sampling of the posterior in latent space.

    p(z | y) is proportional to p_noise(y - f(G(z))) N(z; 0, I), whose draws G turns into draws of
    p(x | y): no log-determinant is needed. During warm-up the likelihood's weight rises from
    ``tempering`` to 1 over the first half; in the second the latents' steps take the proportions of
    1 / (1 + mean squared gradient), an estimate of their posterior variances; each image's step
    size settles at an acceptance of 0.57 (Roberts and Rosenthal, 1998). Then both stay. One chain
    an image: it may stay in one mode of several, and a short one understates the spread.

    Args:
        y, operator, prior, noise: as for ``reconstruct``; the prior decodes latents.
        samples: draws kept, at least 2.
        init: latents (B, N) to start from, for example ``Reconstruction.z``; None starts at zero.
        warm_up, thin: steps before the first draw, and between draws.
        tempering: first weight of the likelihood, in (0, 1].
        seed: of every draw.
        progress: show a progress bar.
    Raises:
        ArgumentError: an argument that cannot be used.
    """
    name = "sample_posterior"
    check.measurement(y)
    operator = check.as_operator(operator)
    for argument, value, least in (("samples", samples, 2), ("warm_up", warm_up, 1),
                                   ("thin", thin, 1)):  # fmt: skip
        require(is_whole(value, least), name, argument, f"an integer of at least {least}", value)
    good = isinstance(tempering, (int, float)) and 0 < tempering <= 1
    require(good, name, "tempering", "a number in (0, 1]", tempering)
    good = is_whole(seed) and seed < 2**62
    require(good, name, "seed", "an integer in 0 .. 2^62 - 1", seed)
    check.prior(prior, objectives.METHODS["mle"], y)
    require(bool(torch.isfinite(y).all()), name, "y", "finite measurements", "NaN or infinity")
    require(hasattr(noise, "log_prob"), name, "noise", "an object with log_prob(residual)",
            type(noise).__name__)  # fmt: skip
    size = objectives.latent_size(prior)
    if init is None:
        init = y.new_zeros(len(y), size)
    good = isinstance(init, Tensor) and tuple(init.shape) == (len(y), size)
    good = good and init.dtype == y.dtype and init.device == y.device
    good = good and bool(torch.isfinite(init).all())
    require(good, name, "init", f"finite latents ({len(y)}, {size}), {y.dtype} on {y.device}",
            getattr(init, "shape", type(init)))  # fmt: skip
    prior, noise = freeze(prior), freeze(noise)
    check.shapes(y, operator, prior, noise)

    def terms(z: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor]:
        """log of the target (B,), its gradient, and the images."""
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            x = objectives.generate(prior, z)
            value = weight * log_noise_of(noise, y, operator(x)) - 0.5 * z.square().sum(1)
            (grad,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), grad, x.detach()

    random = torch.Generator(y.device).manual_seed(seed)
    z = init.detach().clone()
    log_step = torch.full((len(y), 1), math.log(0.01), dtype=y.dtype, device=y.device)
    squares, scale = torch.zeros_like(z), torch.ones_like(z)
    accepted = torch.zeros(len(y), device=y.device)
    kept: list[Tensor] = []
    steps = warm_up + samples * thin
    weight, state = -1.0, None
    for step in tqdm(range(steps), name, disable=not progress, unit="step"):
        now = min(1.0, tempering ** (1 - 2 * step / warm_up))
        if now != weight:
            weight, state = now, terms(z, now)
        value, grad, _ = state
        if warm_up // 2 < step < warm_up:
            seen = step - warm_up // 2
            decay = min(0.99, 1 - 1 / seen)
            squares = decay * squares + (1 - decay) * grad.square()
            scale = 1 / (1 + squares)
            scale = scale / scale.mean(1, keepdim=True)
        size2 = scale * (2 * log_step).exp()
        noise_z = torch.randn(z.shape, generator=random, dtype=z.dtype, device=z.device)
        proposal = z + 0.5 * size2 * grad + size2.sqrt() * noise_z
        new = terms(proposal, weight)
        backward = z - proposal - 0.5 * size2 * new[1]
        log_ratio = new[0] - value - (0.5 * backward.square() / size2).sum(1)
        log_ratio = (log_ratio + 0.5 * noise_z.square().sum(1)).nan_to_num(-math.inf)
        uniform = torch.rand(len(y), generator=random, dtype=y.dtype, device=y.device)
        take = uniform.log() < log_ratio
        pick = lambda a, b, take=take: torch.where(take.view(-1, *[1] * (a.dim() - 1)), a, b)
        z = pick(proposal, z)
        state = tuple(pick(a, b) for a, b in zip(new, state))
        if step < warm_up:
            chance = log_ratio.clamp_max(0).exp()[:, None]
            log_step = log_step + (chance - 0.57) / (1 + step) ** 0.6
        else:
            accepted += take
            if (step - warm_up + 1) % thin == 0:
                kept.append(state[2])
    x = torch.stack(kept)
    return PosteriorSamples(x, x.mean(0), x.std(0), accepted / (steps - warm_up))
