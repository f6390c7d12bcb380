"""Independent Gaussian noise."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import ops
from .._base.parameters import numbers
from .._base.tensors import accumulated, check_float, draw_seed, image_sum, known_device
from .law import Law


class Gaussian(Law):
    """Gaussian noise N(mean, std^2), independent over the elements of a measurement.

    Args:
        std: positive; a number, or numbers that broadcast to the measurements (B, ...) from the
            right, as torch does: (W,) is per column, (C, 1, 1) per channel. Per image they have as
            many dimensions as the measurements: (B, 1, 1, 1) for images, (B, 1) for vectors.
        mean: the same, any sign.
    Raises:
        ArgumentError: std not positive, numbers that are not finite; at a call, numbers that do not
            broadcast to the measurements or are for another number of images.

    >>> Gaussian(0.1).log_prob(torch.zeros(2, 1, 4, 4)).shape
    torch.Size([2])
    """

    fixed: ClassVar[tuple[str, ...]] = ("std", "mean")
    std: float | Tensor
    mean: float | Tensor

    def __init__(self, std: Any, mean: Any = 0.0):
        super().__init__(
            std=numbers(self._name, "std", std, positive=True),
            mean=numbers(self._name, "mean", mean),
        )

    def std_like(self, residual: Tensor) -> Tensor:
        """Standard deviations, broadcastable to a residual (B, ...)."""
        return self._like("std", residual)

    def log_likelihood(self, y: Tensor, fx: Tensor) -> Tensor:
        """log p(y - fx), (B,), value and gradient in one pass."""
        check_float(f"{self._name}.log_likelihood", "fx", fx)
        return ops.gaussian_log_prob(y, fx, self._like("mean", fx), self.std_like(fx))

    def log_prob(self, residual: Tensor) -> Tensor:
        """log p(residual): (B, ...) to (B,)."""
        check_float(f"{self._name}.log_prob", "residual", residual)
        return self.log_likelihood(residual, torch.zeros_like(residual))

    def whiten(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(residual - mean) / std, and log|det| of that map, (B,).

        In float32 (float64 for float64).
        """
        check_float(f"{self._name}.whiten", "residual", residual)
        delta = accumulated(residual)
        std = self.std_like(delta)
        white = (delta - self._like("mean", delta)) / std
        return white, -image_sum(std.log().expand_as(delta))

    def colour(self, white: Tensor) -> Tensor:
        """Inverse of ``whiten``: mean + std white."""
        check_float(f"{self._name}.colour", "white", white)
        return self._like("mean", white) + self.std_like(white) * white

    def sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """A draw of shape (B, ...); the seed comes from ``generator``, or torch's global one."""
        device = known_device(f"{self._name}.sample", device)
        like = torch.empty(tuple(shape), device=device, dtype=dtype)
        mean = self._like("mean", like)
        return ops.gaussian_noise(mean, self.std_like(like), shape, draw_seed(generator))
