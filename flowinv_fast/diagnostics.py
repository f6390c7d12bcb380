"""Beyond a point estimate: Theorem 4.1's bound at a reconstruction, and posterior samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor
from tqdm import tqdm

from . import _checks as check
from . import objectives
from ._problem import freeze
from .errors import ArgumentError, SolverError, is_whole, require
from .flows import FrozenFlow
from .objectives import log_noise_of


@dataclass(frozen=True)
class RecoveryBound:
    """Theorem 4.1 evaluated at one point; an estimate there, not a proof over the ball.

    Attributes:
        mu: smallest eigenvalue of the Hessian of -log p_G at x, (B,).
        bound: ||delta|| / (1 + mu std^2), (B,); infinite where 1 + mu std^2 is not positive, which
            is where the theorem says nothing.
    """

    mu: Tensor
    bound: Tensor


def recovery_bound(
    prior: Any, x: Tensor, delta_norm: float | Tensor, std: float, tolerance: float = 1e-3
) -> RecoveryBound:
    """How far a denoised image can be from the truth: ||x - x*|| <= ||delta|| / (1 + mu std^2).

    For y = x* + delta, Gaussian noise of standard deviation ``std``, by gradient descent from y on
    the MAP loss (Whang, Lei, Dimakis, 2021, Theorem 4.1). mu, which the theorem wants over a ball,
    is estimated at x by Lanczos iterations on Hessian-vector products.

    Args:
        prior: a density with a twice differentiable ``log_prob``: a RealNVP, not a frozen one.
        x: reconstructions (B, C, H, W), float32 or float64.
        delta_norm: ||delta||, a number or (B,); its expectation is std sqrt(C H W).
        std: of the noise, positive.
        tolerance: relative accuracy of mu.
    Raises:
        ArgumentError: a frozen prior, images that are not finite, or numbers out of range.
        SolverError: Lanczos iterations that did not converge.
    """
    require(not isinstance(prior, FrozenFlow), "recovery_bound", "prior",
            "a flow with second derivatives (the one that was frozen)", "a FrozenFlow")  # fmt: skip
    require(hasattr(prior, "log_prob"), "recovery_bound", "prior", "a density with log_prob(x)",
            type(prior).__name__)  # fmt: skip
    good = isinstance(x, Tensor) and x.is_floating_point() and bool(torch.isfinite(x).all())
    require(good, "recovery_bound", "x", "finite images (B, C, H, W)", type(x).__name__)
    good = isinstance(std, (int, float)) and 0 < std < math.inf
    require(good, "recovery_bound", "std", "a positive number", std)
    wanted = f"a number >= 0, or ({len(x)},)"
    try:
        norm = torch.as_tensor(delta_norm, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError("recovery_bound", "delta_norm", wanted, repr(delta_norm)) from None
    good = norm.dim() == 0 or norm.shape == x.shape[:1]
    require(good and bool((norm >= 0).all()), "recovery_bound", "delta_norm", wanted, delta_norm)
    mu = [_smallest_eigenvalue(_hessian_product(prior, image[None]), image.numel(), tolerance)
          for image in x.detach()]  # fmt: skip
    mu = torch.tensor(mu, dtype=torch.float64)
    factor = 1 + mu * std**2
    bound = torch.where(factor > 0, norm / factor, torch.full_like(mu, math.inf))
    return RecoveryBound(mu, bound)


def _hessian_product(prior: Any, x: Tensor) -> Callable[[np.ndarray], np.ndarray]:
    """v to H v, H the Hessian of -log p at one image."""
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(-prior.log_prob(x).sum(), x, create_graph=True)

    def product(v: np.ndarray) -> np.ndarray:
        direction = torch.from_numpy(np.ascontiguousarray(v)).to(x).view_as(x)
        if not grad.requires_grad:  # a density whose gradient is constant
            return np.zeros(x.numel())
        (along,) = torch.autograd.grad(
            grad, x, direction, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return along.detach().double().flatten().cpu().numpy()

    return product


def _smallest_eigenvalue(product, size: int, tolerance: float) -> float:
    if size < 3:  # too small for Lanczos
        matrix = np.stack([product(row) for row in np.eye(size)])
        return float(np.linalg.eigvalsh((matrix + matrix.T) / 2)[0])
    operator = LinearOperator((size, size), matvec=lambda v: product(v.ravel()), dtype=np.float64)
    start = np.random.RandomState(0).standard_normal(size)
    along = product(start)
    if not np.isfinite(along).all():
        raise SolverError("recovery_bound: second derivatives of log p that are not finite")
    if not along.any():  # of a random vector: H is zero, where Lanczos has nowhere to go
        return 0.0
    try:
        (value,) = eigsh(operator, 1, which="SA", v0=start, tol=tolerance, ncv=min(size, 40),
                         return_eigenvectors=False)  # fmt: skip
    except ArpackError as error:
        raise SolverError(f"recovery_bound: Lanczos did not converge: {error}") from error
    return float(value)


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
