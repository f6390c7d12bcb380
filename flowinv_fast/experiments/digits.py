"""Real handwritten digits as noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import ops
from ..noise import PlacedFlowNoise


class RealDigits:
    """Halved handwritten digits over images: what the noise model of digits is a model of.

    Args:
        digits: (M, 1, h, w) in [0, 1].
        model: a noise model of placed digits: one digit goes to each of its places, its Gaussian
            to all other pixels. None: one digit covers the whole image.
        replace: whether a draw may hold one digit twice; without, at most M images are drawn.

    >>> RealDigits(torch.ones(3, 1, 28, 28)).sample((2, 1, 28, 28)).unique()
    tensor([0.5000])
    """

    def __init__(
        self, digits: Tensor, model: PlacedFlowNoise | None = None, replace: bool = True
    ) -> None:
        self.digits, self.model, self.replace = digits, model, replace

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Noise of shape (B, C, H, W)."""
        if self.model is None:
            return 0.5 * self.digits[self._chosen((shape[0],), generator)]
        places = self.model.places.expand(shape[0], -1, 3)
        chosen = self._chosen((shape[0], places.shape[1]), generator)
        patches = 0.5 * self.digits[chosen][:, :, 0]
        rest = self.model.std * torch.randn(shape, generator=generator)
        channels, height, width = shape[1:]
        size = (channels, height, width)
        covered = ops.scatter_patches(torch.ones_like(patches), places, size)
        return torch.where(covered > 0, ops.scatter_patches(patches, places, size), rest)

    def _chosen(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        """Numbers of digits."""
        if self.replace:
            return torch.randint(len(self.digits), shape, generator=generator)
        order = torch.randperm(len(self.digits), generator=generator)
        return order[: math.prod(shape)].view(shape)
