"""Theorem 4.1's bound at a reconstruction: how far the truth can be."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from .._base.errors import SolverError, is_real, require
from ..protocols import Density, Frozen, provides
from . import checks as check
from .objectives import as_weight
from .trial import density, look

Product = Callable[[np.ndarray], np.ndarray]


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


@check.entrance
def recovery_bound(
    prior: Density, x: Tensor, delta_norm: float | Tensor, std: float, tolerance: float = 1e-3
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

    >>> class Normal:
    ...     def log_prob(self, x):
    ...         return -0.5 * x.square().sum((1, 2, 3))
    >>> recovery_bound(Normal(), torch.zeros(1, 1, 2, 2), delta_norm=3.0, std=1.0).bound
    tensor([1.5000], dtype=torch.float64)
    """
    name = "recovery_bound"
    check.density(name, prior)
    frozen, wanted = provides(prior, Frozen), "a flow with second derivatives, not a frozen one"
    require(not frozen, name, "prior", wanted, type(prior).__name__)
    check.images(name, "x", x)
    good = is_real(std) and std > 0
    require(good, name, "std", "a positive number", std)
    norm = as_weight(name, "delta_norm", delta_norm, torch.empty(len(x), 1, dtype=torch.float64))
    if len(x):
        look(name, density(name, prior), x[:1])
    product = lambda image: _hessian_product(prior, image[None])
    smallest = [_smallest_eigenvalue(product(i), i.numel(), tolerance) for i in x.detach()]
    mu = torch.tensor(smallest, dtype=torch.float64)
    factor = 1 + mu * std**2
    bound = torch.where(factor > 0, norm / factor, torch.full_like(mu, math.inf))
    return RecoveryBound(mu, bound)


def _hessian_product(prior: Density, x: Tensor) -> Product:
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


def _smallest_eigenvalue(product: Product, size: int, tolerance: float) -> float:
    """Of a symmetric matrix that is known by its products with vectors."""
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
        settings = {"which": "SA", "v0": start, "tol": tolerance, "ncv": min(size, 40)}
        (value,) = eigsh(operator, 1, return_eigenvectors=False, **settings)
    except ArpackError as error:
        raise SolverError(f"recovery_bound: Lanczos did not converge: {error}") from error
    return float(value)
