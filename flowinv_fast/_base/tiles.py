"""A density of small tiles, summed over an image of any size.

    sum(x) = (1 / c) sum over k of log p(tile_k),  c = K h w / (H W)

The K tiles (C, h, w) of an image (C, H, W) stand on a grid of ``stride`` rows and columns, the last
ones moved inwards so that every pixel is covered; c is the mean number of tiles over a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import ArgumentError, is_whole, require
from .tensors import accumulate_dtype, check_float, image_sum, plain

AT_ONCE = 512  # tiles that are scored together


@dataclass(frozen=True)
class Tiles:
    """What is summed, and how it is called in errors.

    Args:
        function, argument: what the user called, and its image.
        part: the argument that the density came as.
        log_prob: (n, C, h, w) to (n,), or with further dimensions, over which it is summed.
        shape: (C, h, w).
        stride: rows and columns from tile to tile.
    """

    function: str
    argument: str
    part: str
    log_prob: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    stride: int

    def sum(self, x: Tensor) -> Tensor:
        """The sum, (B, C, H, W) to (B,), differentiable once.

        The gradient is computed with the value, some rows of tiles at a time, so that beyond the
        image's own memory does not grow with it.

        Raises:
            ArgumentError: no images, of other channels, or smaller than a tile.
        """
        check_float(self.function, self.argument, x, 4)
        check_covered(self.function, self.argument, tuple(x.shape), self.shape)
        return _Sum.apply(plain(x), self, torch.is_grad_enabled() and x.requires_grad)[0]


def check_covered(
    function: str, argument: str, shape: tuple[int, ...], tile: tuple[int, ...]
) -> None:
    """Refuse a shape other than (B, C, H, W) of a tile's channels and at least its size."""
    channels, *size = tile
    good = len(shape) == 4 and shape[1] == channels
    good = good and all(n >= p for n, p in zip(shape[2:], size))
    wanted = f"images (B, {channels}, H, W) of at least {size[0]} x {size[1]} pixels"
    require(good, function, argument, wanted, f"shape {shape}")


def check_stride(function: str, stride: Any, side: int, usual: int) -> int:
    """A stride of 1 .. side, side the shorter one of a tile; None is the usual one."""
    stride = usual if stride is None else stride
    good = is_whole(stride, 1) and stride <= side
    require(good, function, "stride", f"an integer in 1..{side}", repr(stride))
    return int(stride)


def needed_bytes(tile_bytes: int, shape: tuple[int, ...]) -> int:
    """Bytes that a call needs for the tiles that it scores together."""
    return AT_ONCE * (tile_bytes + 16 * math.prod(shape))


class _Sum(torch.autograd.Function):
    """The sum and, where wanted, its gradient: some rows of tiles at a time."""

    @staticmethod
    def forward(x: Tensor, tiles: Tiles, wanted: bool) -> tuple[Tensor, Tensor]:
        batch, _, height, width = x.shape
        stride, (channels, h, w) = tiles.stride, tiles.shape
        rows = _places(height, h, stride, x.device)
        columns = _places(width, w, stride, x.device)
        total = x.new_zeros(batch, dtype=accumulate_dtype(x.dtype))
        grad = torch.zeros_like(x) if wanted else x[:0]
        many = max(1, AT_ONCE // max(1, batch * len(columns)))
        for first in range(0, len(rows), many):
            some = rows[first : first + many]
            top = min(first * stride, height - h)
            low = min((first + len(some) - 1) * stride, height - h) + h
            with torch.set_grad_enabled(wanted):
                strip = x[:, :, top:low].detach().requires_grad_(wanted)
                across = strip[:, :, (some - top)[:, None, :, None], columns[:, None]]
                each = across.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels, h, w)
                values = image_sum(tiles.log_prob(each))
                values = values.view(batch, len(some) * len(columns)).sum(1)
                if wanted:
                    follows, lost = "a differentiable log_prob", "one that loses the gradient"
                    require(values.requires_grad, tiles.function, tiles.part, follows, lost)
                    grad[:, :, top:low] += torch.autograd.grad(values.sum(), strip)[0]
            total += values.detach()
        weight = height * width / (len(rows) * len(columns) * h * w)
        return total * weight, grad * weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])
        ctx.tiles = inputs[1]

    @staticmethod
    def backward(ctx: Any, of_total: Tensor, _: Any) -> tuple:
        x, grad = ctx.saved_tensors
        return _Once.apply(of_total.view(-1, 1, 1, 1) * grad, x, ctx.tiles), None, None


class _Once(torch.autograd.Function):
    """A gradient as it is; that of a gradient, which depends on x, is refused and not lost."""

    @staticmethod
    def forward(grad: Tensor, x: Tensor, tiles: Tiles) -> Tensor:
        return grad.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.tiles = inputs[2]

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple:
        function, argument = ctx.tiles.function, ctx.tiles.argument
        raise ArgumentError(function, argument, "one derivative", "a second one: it has none")


def _places(size: int, tile: int, stride: int, device: torch.device) -> Tensor:
    """Rows (or columns) of the tiles that cover ``size`` of them: (K, tile) int64."""
    count = -(-(size - tile) // stride) + 1
    first = (stride * torch.arange(count, device=device)).clamp_max(size - tile)
    return first[:, None] + torch.arange(tile, device=device)
