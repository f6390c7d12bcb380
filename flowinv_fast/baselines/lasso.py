"""LASSO in a DCT basis, solved by FISTA (Beck and Teboulle, 2009) for a whole batch at once."""

from __future__ import annotations

import math
from collections.abc import Callable

import scipy.fft
import torch
from torch import Tensor

from .._base.errors import is_whole, require


def lasso_dct(
    y: Tensor,
    operator: Callable[[Tensor], Tensor],
    adjoint: Callable[[Tensor], Tensor],
    shape: tuple[int, int, int],
    alpha: float,
    mean: float | Tensor = 0.0,
    steps: int = 500,
) -> Tensor:
    """D c for argmin over DCT coefficients c of ||y - mean - A D c||^2 / (2 m) + alpha ||c||_1.

    D is the orthonormal two-dimensional DCT-II of every channel; the objective is that of
    scikit-learn's Lasso.

    Args:
        y: measurements (B, ...), m numbers each.
        operator, adjoint: A and its transpose, linear.
        shape: (C, H, W) of the images.
        alpha: weight of the l1 norm, not negative.
        mean: of the noise, taken off first.
        steps: of FISTA.
    Returns:
        Images (B, C, H, W) like y.
    Raises:
        ArgumentError: alpha or steps out of range, or y unlike what the operator makes of images.

    >>> same = lambda x: x
    >>> lasso_dct(torch.zeros(3, 1, 4, 4), same, same, (1, 4, 4), alpha=0.01, steps=2).shape
    torch.Size([3, 1, 4, 4])
    """
    good = isinstance(y, Tensor) and y.is_floating_point() and y.dim() >= 2
    require(good, "lasso_dct", "y", "a floating-point tensor (B, ...)", type(y).__name__)
    require(len(shape) == 3 and min(shape) >= 1, "lasso_dct", "shape", "(C, H, W)", shape)
    good = isinstance(alpha, (int, float)) and 0 <= alpha < math.inf
    require(good, "lasso_dct", "alpha", "a number >= 0", alpha)
    require(is_whole(steps, 1), "lasso_dct", "steps", "an integer of at least 1", steps)
    transform = lambda f, t: torch.from_numpy(f(t.numpy(), axes=(2, 3), norm="ortho"))
    to_image = lambda c: transform(scipy.fft.idctn, c)
    to_coefficients = lambda x: transform(scipy.fft.dctn, x)
    with torch.no_grad():
        made = operator(y.new_zeros(1, *shape)).shape[1:]
        wanted = f"(B, {', '.join(map(str, made))})"
        require(y.shape[1:] == made, "lasso_dct", "y", wanted, tuple(y.shape))
        if len(y) == 0:
            return y.new_zeros(0, *shape)
        target = (y - mean).double().cpu()
        at = lambda c: operator(to_image(c).to(y)).double().cpu()
        back = lambda r: to_coefficients(adjoint(r.to(y)).double().cpu().reshape(-1, *shape))
        m = target[:1].numel()
        size = _largest_eigenvalue(lambda c: back(at(c)), shape) / m
        c = torch.zeros(len(y), *shape, dtype=torch.float64)
        ahead, momentum = c, 1.0
        for _ in range(steps):
            moved = ahead - back(at(ahead) - target) / (m * size)
            new = torch.nn.functional.softshrink(moved, alpha / size) if alpha else moved
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead = new + (momentum - 1) / following * (new - c)
            c, momentum = new, following
        return to_image(c).to(y)


def _largest_eigenvalue(
    symmetric: Callable[[Tensor], Tensor], shape: tuple[int, ...], rounds: int = 50
) -> float:
    """By power iteration, 2 % added since it comes from below."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(1, *shape, dtype=torch.float64, generator=generator)
    value = 1.0
    for _ in range(rounds):
        v = symmetric(v / v.norm())
        value = float(v.norm())
    return 1.02 * max(value, 1e-30)
