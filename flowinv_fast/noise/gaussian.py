"""Independent Gaussian noise."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from .. import ops
from .._base.tensors import as_like, check_positive, cut, draw_seed


class Gaussian:
    """Gaussian noise N(mean, std^2), independent over the elements of a measurement.

    Args:
        std: positive; a number, or a tensor that broadcasts to the measurements (B, ...): per
            pixel, per image, or both.
        mean: the same, any sign.
    Raises:
        ArgumentError: std not positive and finite.

    >>> Gaussian(0.1).log_prob(torch.zeros(2, 1, 4, 4)).shape
    torch.Size([2])
    """

    def __init__(self, std: float | Tensor, mean: float | Tensor = 0.0):
        check_positive("Gaussian", "std", std)
        self.std, self.mean = std, mean
        self._copies: dict[tuple, tuple[Tensor, int, Tensor]] = {}

    def select(self, part: slice, shape: tuple[int, ...]) -> Gaussian:
        """The noise of some images, of a batch of measurements of this shape (B, ...)."""
        own = copy.copy(self)
        own._copies = {}
        own.std, own.mean = cut(self.std, part, shape), cut(self.mean, part, shape)
        return own

    def _like(self, name: str, like: Tensor) -> Tensor:
        """A parameter with the device and dtype of another tensor.

        From one device to another it is copied once, so that a CUDA graph can hold what follows.
        """
        value = getattr(self, name)
        if not isinstance(value, Tensor) or value.device == like.device:
            return as_like(value, like)
        key, version = (name, like.dtype, like.device), value.is_inference() or value._version
        kept = self._copies.get(key)
        if kept is None or kept[0] is not value or kept[1] != version:
            kept = self._copies[key] = (value, version, value.to(like))
        return kept[2]

    def std_like(self, residual: Tensor) -> Tensor:
        """Standard deviations, broadcastable to a residual (B, ...)."""
        return self._like("std", residual)

    def log_likelihood(self, y: Tensor, fx: Tensor) -> Tensor:
        """log p(y - fx), (B,), value and gradient in one pass."""
        return ops.gaussian_log_prob(y, fx, self._like("mean", fx), self.std_like(fx))

    def log_prob(self, residual: Tensor) -> Tensor:
        """log p(residual): (B, ...) to (B,)."""
        return self.log_likelihood(residual, torch.zeros_like(residual))

    def sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """A draw of shape (B, ...); the seed comes from ``generator``, or torch's global one."""
        like = torch.empty(tuple(shape), device=device, dtype=dtype)
        mean = self._like("mean", like)
        return ops.gaussian_noise(mean, self.std_like(like), shape, draw_seed(generator))
