"""Operators of image restoration."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._base.errors import is_whole, require
from .._base.parameters import numbers
from .._base.tensors import as_like
from .base import LinearOperator, Multiplication, check_batch


class Inpaint(Multiplication):
    """f(x) = mask x.

    Args:
        mask: 1 or True where a pixel is measured, 0 where not; weights in between serve. It
            broadcasts to (B, C, H, W) from the right, as torch does: (H, W) for all, (B, C, H, W)
            or (B, 1, H, W) with a mask per image.
    Raises:
        ArgumentError: a mask of other than finite numbers; at a call, other than floating-point
            batches, or a mask that does not broadcast to them or is for other images.

    >>> Inpaint(torch.tensor([1.0, 0.0]))(torch.ones(1, 1, 1, 2)).tolist()
    [[[[1.0, 0.0]]]]
    """

    attribute = "mask"
    fixed = ("mask",)
    mask: float | Tensor

    def __init__(self, mask: Any):
        super().__init__(mask, booleans=True)

    def guess(self, y: Tensor) -> Tensor:
        """Unmeasured pixels take the mean of the image's measured ones."""
        mask = self._like(y, "y").expand(y.shape)
        dims = tuple(range(1, y.dim()))
        mean = (mask * y).sum(dims, keepdim=True) / mask.sum(dims, keepdim=True).clamp_min(1)
        return torch.where(mask > 0, y, mean)


class Blur(LinearOperator):
    """Convolution of every channel with one kernel, zeros outside, size kept.

    Args:
        kernel: (h, w), odd sizes, one for all images; copied.
    Raises:
        ArgumentError: a kernel of another shape, or of other than finite numbers; images that are
            no floating-point (B, C, H, W).

    >>> Blur(torch.ones(3, 3) / 9)(torch.ones(1, 1, 5, 5))[0, 0, 2, 2].item()
    1.0
    """

    fixed = ("kernel",)
    kernel: Tensor

    def __init__(self, kernel: Any):
        super().__init__()
        own = numbers("Blur", "kernel", kernel)
        shape = tuple(own.shape) if isinstance(own, Tensor) else ()
        good = len(shape) == 2 and all(n % 2 == 1 for n in shape)
        require(good, "Blur", "kernel", "numbers (h, w) of odd sizes", f"shape {shape}")
        assert isinstance(own, Tensor)
        self.register_buffer("kernel", own)

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        check_batch("Blur", "x", x, 4)
        channels = x.shape[1]
        weight = as_like(kernel, x).expand(channels, 1, *kernel.shape)
        padding = (kernel.shape[0] // 2, kernel.shape[1] // 2)
        return F.conv2d(x, weight, padding=padding, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.kernel.flip(0, 1))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._convolve(y, self.kernel)

    def guess(self, y: Tensor) -> Tensor:
        return y


class Downsample(LinearOperator):
    """Means over blocks of factor x factor pixels.

    Args:
        factor: at least 1; H and W must be divisible by it.
    Raises:
        ArgumentError: another factor, or images that are no floating-point (B, C, H, W) or that it
            does not divide.

    >>> Downsample(2)(torch.ones(1, 1, 4, 6)).shape
    torch.Size([1, 1, 2, 3])
    """

    fixed = ("factor",)

    def __init__(self, factor: int):
        super().__init__()
        wanted = "an integer of at least 1"
        require(is_whole(factor, 1), "Downsample", "factor", wanted, factor)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        check_batch("Downsample", "x", x, 4)
        divisible = x.shape[2] % self.factor == 0 and x.shape[3] % self.factor == 0
        require(divisible, "Downsample", "x", f"H and W divisible by {self.factor}", tuple(x.shape))
        return F.avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.guess(y) / self.factor**2

    def guess(self, y: Tensor) -> Tensor:
        check_batch("Downsample", "y", y, 4)
        return y.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)
