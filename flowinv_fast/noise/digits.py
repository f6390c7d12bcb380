"""Images of digits as noise, for making measurements."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from .._base.errors import require
from .._base.tensors import draw_seed


class Digits:
    """delta = scale * digits of a bank at random places and channels; can only be drawn.

    It has no density: score such residuals with ``noise.FlowNoise`` or ``noise.PlacedFlowNoise``.

    Args:
        bank: (M, h, w) images of digits in [0, 1], or flow draws.
        count: digits per image.
        scale: factor on the bank.
    Raises:
        ArgumentError: a bank that is not (M, h, w), or a negative count.

    >>> Digits(torch.ones(3, 4, 4)).sample((2, 1, 8, 8)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, bank: Tensor, count: int = 1, scale: float = 0.5):
        good = isinstance(bank, Tensor) and bank.dim() == 3 and bank.numel() > 0
        require(
            good, "noise.Digits", "bank", "a tensor (M, h, w)", getattr(bank, "shape", type(bank))
        )
        require(count >= 0, "noise.Digits", "count", "a non-negative integer", count)
        self.bank, self.count, self.scale = bank, count, scale

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """A draw of shape (B, C, H, W)."""
        batch, channels, height, width = shape
        size, seed = (batch, channels, height, width), draw_seed(generator)
        return self.scale * ops.digit_overlay(self.bank, size, self.count, seed)[0]
