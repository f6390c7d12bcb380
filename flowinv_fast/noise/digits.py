"""Images of digits as noise, for making measurements."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from .._base.errors import ArgumentError, is_whole, require
from .._base.parameters import Fixed, number, numbers
from .._base.tensors import draw_seed


class Digits(Fixed):
    """delta = scale * digits of a bank at random places and channels; can only be drawn.

    It has no density: score such residuals with ``noise.FlowNoise`` or ``noise.PlacedFlowNoise``.

    Args:
        bank: (M, h, w) images of digits in [0, 1], or flow draws.
        count: digits per image.
        scale: factor on the bank.
    Raises:
        ArgumentError: a bank that is not (M, h, w) of finite numbers, a count that is no integer of
            at least 0, or a scale that is no number.

    >>> Digits(torch.ones(3, 4, 4)).sample((2, 1, 8, 8)).shape
    torch.Size([2, 1, 8, 8])
    """

    fixed = ("bank", "count", "scale")

    def __init__(self, bank: Any, count: int = 1, scale: float = 0.5):
        name, wanted = "noise.Digits", "finite numbers (M, h, w)"
        own = numbers(name, "bank", bank)
        if not isinstance(own, Tensor) or own.dim() != 3:
            raise ArgumentError(name, "bank", wanted, getattr(own, "shape", "a number"))
        require(is_whole(count), name, "count", "an integer of at least 0", count)
        self.bank, self.count, self.scale = own, count, number(name, "scale", scale)

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """A draw of shape (B, C, H, W), in the bank's dtype and on its device."""
        good = len(shape) == 4
        require(good, "noise.Digits.sample", "shape", "(B, C, H, W)", tuple(shape))
        batch, channels, height, width = shape
        size, seed = (batch, channels, height, width), draw_seed(generator)
        return self.scale * ops.digit_overlay(self.bank, size, self.count, seed)[0]
