"""What the solver asks of a prior, a noise model and a forward operator. No base class needed."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Flow(Protocol):
    """A density over images x (B, C, H, W) with latents z (B, N), N = C H W."""

    shape: tuple[int, int, int]

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z (B, N) and log|det dz/dx| (B,)."""

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) and log|det dx/dz| (B,)."""

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats, (B,)."""


@runtime_checkable
class Noise(Protocol):
    """A law of residuals delta = y - f(x), shaped like y."""

    def log_prob(self, residual: Tensor) -> Tensor:
        """log p(delta) in nats, one value per image (B,)."""


@runtime_checkable
class SampledNoise(Noise, Protocol):
    """A noise law that can also be drawn from."""

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """A draw of this shape."""


@runtime_checkable
class Operator(Protocol):
    """A differentiable map from images x (B, C, H, W) to measurements (B, ...)."""

    def __call__(self, x: Tensor) -> Tensor:
        """f(x)."""
