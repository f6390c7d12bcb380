"""What a flow of images with noise of any level on them is made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .base import Level, Shape
from .layers import Standardise


def told_levels(levels: tuple[float, float]) -> tuple[float, float, float]:
    """Three levels that stand for a range: the lowest, the geometric mean, and the highest.

    >>> told_levels((0.125, 0.5))
    (0.125, 0.25, 0.5)
    """
    low, high = levels
    return low, low * math.sqrt(high / low), high


class NoisyStandardise(Standardise):
    """``Standardise`` of images with noise on them, whose variances add up.

        z = (x - mean) / s,   s^2 = std^2 + level^2 - lowest^2

    Args:
        shape: (C, H, W) of ``mean`` and ``std``, which are those at the lowest level.
        lowest: level of the least noise, which it is at.

    Example:
        >>> import torch
        >>> from flowinv_fast.flows.levels import NoisyStandardise
        >>> layer = NoisyStandardise((1, 1, 1), lowest=0.5)
        >>> layer.encode(torch.ones(1, 1, 1, 1), torch.zeros(1))[0].item()
        1.0
    """

    level: Level

    def __init__(self, shape: Shape, lowest: float):
        super().__init__(shape)
        self.lowest = self.level = lowest

    @torch.no_grad()
    def initialise(self, x: Tensor, floor: float) -> None:
        """Take mean and std at the lowest level of images x (B, C, H, W) at ``level``."""
        super().initialise(x, floor)
        self.lower()

    @torch.no_grad()
    def lower(self) -> None:
        """Take ``std`` as that at ``level``, and make it that at the lowest level."""
        variance = self.std.square() - self._more(self.std)[0]
        self.std.copy_(variance.clamp_min(self.lowest**2).sqrt())

    def encode(self, x: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        std = self._std(x)
        return (x - self.mean) / std, logdet - std.log().flatten(1).sum(1).to(logdet.dtype)

    def decode(self, z: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        std = self._std(z)
        return z * std + self.mean, logdet + std.log().flatten(1).sum(1).to(logdet.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, lowest={self.lowest}, level={self.level}"

    def _std(self, like: Tensor) -> Tensor:
        """(1, C, H, W), or (B, C, H, W) at a level for each image."""
        return (self.std.square() + self._more(like)).sqrt()

    def _more(self, like: Tensor) -> Tensor:
        """Variance of the noise above that of the lowest level, (1, 1, 1, 1) or (B, 1, 1, 1)."""
        return (_column(self.level, like).square() - self.lowest**2)[:, :, None, None]


class LevelNetwork(nn.Module):
    """A function of the level of noise, zero at the start.

    Args:
        levels: lowest and highest; between them log level is seen as -1 .. 1.
        size: numbers that it returns.
        width: of its hidden layers.

    Example:
        >>> from flowinv_fast.flows.levels import LevelNetwork
        >>> LevelNetwork((0.05, 0.5), size=4)(0.1, torch.zeros(1))
        tensor([[0., 0., 0., 0.]], grad_fn=<AddmmBackward0>)
    """

    def __init__(self, levels: tuple[float, float], size: int, width: int = 64):
        super().__init__()
        low, high = map(math.log, levels)
        self.middle, self.reach = (low + high) / 2, (high - low) / 2 or 1.0
        last = nn.Linear(width, size)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.inside = nn.Sequential(
            nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last
        )

    def forward(self, level: Level, like: Tensor) -> Tensor:
        """(1, size), or (B, size) of levels (B,); dtype and device of ``like``."""
        with torch.autocast(like.device.type, enabled=False):
            return self.inside((_column(level, like).log() - self.middle) / self.reach)


def _column(level: Level, like: Tensor) -> Tensor:
    """(1, 1), or (B, 1) of levels (B,); dtype and device of ``like``."""
    if isinstance(level, Tensor):
        return level.to(like.device, like.dtype)[:, None]
    # Filled, not copied: a CUDA graph may be recording.
    return torch.full((1, 1), level, dtype=like.dtype, device=like.device)
