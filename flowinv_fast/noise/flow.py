"""Noise that is itself a normalizing flow, over the whole residual or over placed patches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .._base.errors import require
from .._base.tensors import check_positive, draw_seed


class Flow:
    """delta = scale * sample of a flow: log p(delta) = log p_flow(delta / scale) - N log scale.

    The flow needs support on all of R^n ("unbounded"): the residual can be any real number, and a
    logit flow's density is undefined outside its range.

    Args:
        flow: anything with ``log_prob(x)`` for x (B, C, H, W); ``sample(n)`` to draw.
        scale: positive factor on the flow's images.
    Raises:
        ArgumentError: no log_prob, bounded support, or a scale that is not positive.
    """

    def __init__(self, flow: Any, scale: float = 1.0):
        _check_flow("noise.Flow", flow)
        check_positive("noise.Flow", "scale", scale)
        self.flow, self.scale = flow, float(scale)

    def log_prob(self, residual: Tensor) -> Tensor:
        """log p(residual): (B, C, H, W) to (B,)."""
        size = math.prod(residual.shape[1:])
        return self.flow.log_prob(residual / self.scale) - size * math.log(self.scale)

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """A draw of shape (B, C, H, W)."""
        draw = self.scale * self.flow.sample(shape[0], generator=generator)
        require(tuple(draw.shape) == tuple(shape), "noise.Flow.sample", "shape",
                f"(B, {', '.join(map(str, draw.shape[1:]))})", tuple(shape))  # fmt: skip
        return draw


class PlacedFlow:
    """Patches of noise from a flow at known places, a small Gaussian on all other pixels.

    log p(delta) = sum over k of log p_flow(patch_k / scale) - n_patch log scale
                   + sum over the uncovered pixels of log N(delta; 0, std^2)

    Args:
        flow: density of one-channel patches (1, h, w), support unbounded.
        places: int64 (K, 3) for all images or (B, K, 3): channel, top row, left column.
        std: of the Gaussian elsewhere, positive.
        scale: positive factor on the flow's patches.
    Raises:
        ArgumentError: an argument that does not fit. Places that overlap, or leave the image, are
            refused when a residual is scored.
    """

    def __init__(self, flow: Any, places: Tensor, std: float, scale: float = 1.0):
        _check_flow("noise.PlacedFlow", flow)
        check_positive("noise.PlacedFlow", "std", std)
        check_positive("noise.PlacedFlow", "scale", scale)
        good = isinstance(places, Tensor) and places.dtype == torch.int64
        good = good and places.dim() in (2, 3) and places.shape[-1] == 3
        require(good, "noise.PlacedFlow", "places", "int64 (K, 3) or (B, K, 3)",
                getattr(places, "shape", type(places)))  # fmt: skip
        single = len(flow.shape) == 3 and flow.shape[0] == 1
        require(single, "noise.PlacedFlow", "flow", "a flow of one-channel patches", flow.shape)
        self.flow, self.places, self.std, self.scale = flow, places, float(std), float(scale)
        self.patch = tuple(flow.shape[1:])
        self._kept: tuple[tuple, Tensor] | None = None

    def images(self, part: slice, shape: tuple[int, ...]) -> PlacedFlow:
        """The law of some images of a batch of measurements of this shape."""
        if self.places.dim() == 2:
            return self
        return PlacedFlow(self.flow, self.places[part], self.std, self.scale)

    def _places(self, batch: int, device: torch.device) -> Tensor:
        if self.places.device != torch.device(device):
            self.places = self.places.to(device)
        places = self.places
        return places.expand(batch, -1, 3) if places.dim() == 2 else places

    def _uncovered(self, residual: Tensor) -> Tensor:
        """1 where no patch lies, 0 under one: (B, C, H, W)."""
        key = (residual.shape, residual.dtype, residual.device)
        if self._kept is None or self._kept[0] != key:
            places = self._places(residual.shape[0], residual.device)
            ones = residual.new_ones(*places.shape[:2], *self.patch)
            covered = ops.scatter_patches(ones, places, tuple(residual.shape[1:]))
            overlap = bool((covered > 1).any())
            require(not overlap, "noise.PlacedFlow", "places", "patches that do not overlap",
                    "overlapping places")  # fmt: skip
            self._kept = (key, 1 - covered)
        return self._kept[1]

    def log_prob(self, residual: Tensor) -> Tensor:
        """log p(residual): (B, C, H, W) to (B,)."""
        batch = residual.shape[0]
        uncovered = self._uncovered(residual.detach())
        places = self._places(batch, residual.device)
        patches = ops.gather_patches(residual, places, self.patch)
        patch_size = math.prod(self.patch)
        flat = patches.reshape(-1, 1, *self.patch) / self.scale
        in_patches = self.flow.log_prob(flat).view(batch, -1) - patch_size * math.log(self.scale)
        # Covered pixels enter the Gaussian as zeros; their constant is taken off again.
        elsewhere = ops.gaussian_log_prob(
            residual * uncovered, torch.zeros_like(residual), 0.0, self.std
        )
        constant = math.log(self.std) + 0.5 * math.log(2 * math.pi)
        return in_patches.sum(1) + elsewhere + places.shape[1] * patch_size * constant

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """A draw of shape (B, C, H, W)."""
        places = self._places(shape[0], "cpu")
        patches = self.flow.sample(shape[0] * places.shape[1], generator=generator)
        patches = patches.reshape(shape[0], -1, *self.patch) * self.scale
        digits = ops.scatter_patches(patches, places.to(patches.device), tuple(shape[1:]))
        std = torch.full((), self.std, dtype=patches.dtype, device=patches.device)
        rest = ops.gaussian_noise(0.0, std, shape, draw_seed(generator))
        return digits + rest * self._uncovered(digits)


def _check_flow(name: str, flow: Any) -> None:
    require(
        hasattr(flow, "log_prob"), name, "flow", "an object with log_prob(x)", type(flow).__name__
    )
    support = getattr(getattr(flow, "config", None), "support", "unbounded")
    require(
        support == "unbounded",
        name,
        "flow",
        "a flow with unbounded support",
        f"support {support!r}",
    )
