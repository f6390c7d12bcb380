"""The linear estimate that knows the noise: Gaussian prior, Gaussian noise, linear operator."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .._base.errors import ArgumentError, require


def wiener(
    y: Tensor,
    operator: Callable[[Tensor], Tensor],
    images: Tensor,
    std: Tensor,
    mean: float | Tensor = 0.0,
) -> Tensor:
    """Posterior mean x = mu + C A^T (A C A^T + S)^-1 (y - A mu - mean), S = diag(std^2).

    Args:
        y: measurements (B, ...), m numbers each.
        operator: A, linear, from images (B, C, H, W).
        images: (K, C, H, W) whose mean mu and covariance C are the prior; K well above a few
            hundred, the covariance is shrunk by its own average variance times 1e-3.
        std, mean: of the noise, broadcastable to y; std the same for every image.
    Returns:
        Images (B, C, H, W) like y.
    Raises:
        ArgumentError: fewer than two images, y unlike what the operator makes of them, or a std
            that is negative or differs between images.

    >>> images = torch.rand(9, 1, 2, 2)
    >>> wiener(torch.zeros(3, 1, 2, 2), lambda x: x, images, torch.tensor(0.1)).shape
    torch.Size([3, 1, 2, 2])
    """
    good = isinstance(y, Tensor) and y.is_floating_point() and y.dim() >= 2
    require(good, "wiener", "y", "a floating-point tensor (B, ...)", type(y).__name__)
    good = isinstance(images, Tensor) and images.dim() == 4 and len(images) >= 2
    got = getattr(images, "shape", type(images))
    require(good, "wiener", "images", "two images (K, C, H, W) or more", got)
    wanted = f"numbers >= 0, broadcastable to {(1, *y.shape[1:])}"
    try:
        noise = torch.as_tensor(std, dtype=torch.float64, device=y.device)
        noise = noise.expand(1, *y.shape[1:]).flatten()
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError("wiener", "std", wanted, getattr(std, "shape", repr(std))) from None
    good = bool((noise >= 0).all()) and bool(torch.isfinite(noise).all())
    require(good, "wiener", "std", wanted, std)
    with torch.no_grad():
        flat = images.to(y.device, torch.float64).flatten(1)
        mu = flat.mean(0)
        # C = F^T F with one row per image, and a little of the identity.
        factor = (flat - mu) / (len(flat) - 1) ** 0.5
        ridge = 1e-3 * factor.square().sum() / factor.shape[1]
        size = flat.shape[1]
        columns = torch.cat([factor, ridge.sqrt() * torch.eye(size).to(factor)])
        measure = lambda x: operator(x.reshape(-1, *images.shape[1:]).to(y)).double().flatten(1)
        seen = measure(columns)  # rows of (A F^T)^T
        fits, wanted = seen.shape[1] == noise.numel(), f"{seen.shape[1]} numbers per image"
        require(fits, "wiener", "y", wanted, tuple(y.shape))
        covariance = seen.T @ seen + torch.diag(noise.square())
        residual = (y - mean).double().flatten(1) - measure(mu[None])
        weights = torch.linalg.solve(covariance, residual.T).T
        x = mu + weights @ seen.T @ columns
        return x.reshape(-1, *images.shape[1:]).to(y)
