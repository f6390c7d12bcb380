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

from .._base.errors import ArgumentError, SolverError, require
from ..flows import FrozenFlow


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
        prior: a density with a twice differentiable ``log_prob``: a Flow, not a frozen one.
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
